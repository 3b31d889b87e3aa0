"""`nki.collectives`: operations of several ranks, under AWS's names. `run_ranks` gives a kernel its ranks.

Sources and destinations are lists, of one tensor in SBUF or of one or more in HBM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_port.simulator.checks import check_generation
from neuron_port.simulator.context import current_run
from neuron_port.simulator.errors import ConstraintError, UnsupportedError
from neuron_port.simulator.instructions.collective import (
    Part,
    all_gathered,
    all_reduced,
    all_to_all_exchanged,
    exchange_by,
    exchange_counted,
    meet_ranks,
    passed_around,
    permuted,
    reduce_scattered,
    reduced,
    values_of,
)
from neuron_port.simulator.instructions.collective_rules import (
    MAXIMUM_CHANNELS,
    ReplicaGroup,
    check_dim,
    check_divisible,
    check_metadata,
    check_ranks,
    check_reduction,
    check_shape,
    finish,
    group_of,
    of_channels,
    part_of,
    prepare,
)
from neuron_port.simulator.registers import VirtualRegister
from neuron_port.simulator.tensor import NkiTensor

__all__ = [
    "ReplicaGroup", "all_gather", "all_gather_v", "all_reduce", "all_to_all", "all_to_all_v",
    "collective_permute", "collective_permute_implicit",
    "collective_permute_implicit_current_processing_rank_id", "collective_permute_implicit_reduce", "rank_id",
    "reduce_scatter",
]  # fmt: skip


def all_reduce(
    srcs: list[NkiTensor],
    dsts: list[NkiTensor],
    replica_group: ReplicaGroup,
    op: Any,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Every rank gets op over all ranks' sources, computed in float32; op is nl.add, nl.minimum or nl.maximum."""
    part, members = prepare("all_reduce", srcs, dsts, replica_group, priority)
    check_reduction("all_reduce", op)
    for src, dst in zip(part.srcs, part.dsts, strict=True):
        check_shape("all_reduce", dst, src.array.shape, src)
    meet_ranks(part, "all_reduce", members, (op.name,), exchange_by(all_reduced(op)))
    finish("all_reduce", part, members, name, op=op.name)


def all_gather(
    srcs: list[NkiTensor],
    dsts: list[NkiTensor],
    replica_group: ReplicaGroup,
    collective_dim: int,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Every rank gets all sources along `collective_dim`: 0 in HBM; 0 or 1 of [P, F] tiles in SBUF."""
    part, members = prepare("all_gather", srcs, dsts, replica_group, priority)
    for src, dst in zip(part.srcs, part.dsts, strict=True):
        check_dim("all_gather", src, collective_dim, (0, 1) if src.storage.on_chip else (0,))
        shape = list(src.array.shape)
        shape[collective_dim] *= len(members)
        check_shape("all_gather", dst, tuple(shape), src)
    meet_ranks(part, "all_gather", members, (collective_dim,), exchange_by(all_gathered(collective_dim)))
    finish("all_gather", part, members, name)


def reduce_scatter(
    srcs: list[NkiTensor],
    dsts: list[NkiTensor],
    replica_group: ReplicaGroup,
    collective_dim: int,
    op: Any,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Rank i of the group gets block i, along dimension 0, of op over all ranks' sources."""
    part, members = prepare("reduce_scatter", srcs, dsts, replica_group, priority)
    check_reduction("reduce_scatter", op)
    for src, dst in zip(part.srcs, part.dsts, strict=True):
        check_dim("reduce_scatter", src, collective_dim, (0,))
        check_divisible("reduce_scatter", src, len(members))
        shape = (src.array.shape[0] // len(members), *src.array.shape[1:])
        check_shape("reduce_scatter", dst, shape, src)
    meet_ranks(part, "reduce_scatter", members, (op.name,), exchange_by(reduce_scattered(op)))
    finish("reduce_scatter", part, members, name, op=op.name)


def all_to_all(
    srcs: list[NkiTensor],
    dsts: list[NkiTensor],
    replica_group: ReplicaGroup,
    collective_dim: int,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Rank i of the group gets block i, along dimension 0, of every rank's source. HBM only."""
    part, members = prepare("all_to_all", srcs, dsts, replica_group, priority, sbuf=False)
    for src, dst in zip(part.srcs, part.dsts, strict=True):
        check_dim("all_to_all", src, collective_dim, (0,))
        check_divisible("all_to_all", src, len(members))
        check_shape("all_to_all", dst, src.array.shape, src)
    meet_ranks(part, "all_to_all", members, (), exchange_by(all_to_all_exchanged))
    finish("all_to_all", part, members, name)


def all_gather_v(
    srcs: list[NkiTensor],
    dsts: list[NkiTensor],
    replica_group: ReplicaGroup,
    metadata_tensor: NkiTensor,
    recv_counts_known: bool = False,
    has_rdispls: bool = False,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Every rank sends one chunk of its flat source to all; sender s's lands in slot s of dst.size / n elements.

    metadata_tensor: uint32, [3, n] @ HBM or [1, 3, n] @ SBUF. Rows: send count and displacement (column 0
    only), received counts (written, unless recv_counts_known). On two cores and groups of four ranks.
    """
    part, members = prepare(
        "all_gather_v", srcs, dsts, replica_group, priority, sbuf=False, single=True, metadata=metadata_tensor
    )
    if has_rdispls:
        raise UnsupportedError("all_gather_v: has_rdispls=True is not supported by NKI either")
    if part.run.num_programs != 2 or len(members) != 4:
        raise ConstraintError(
            f"all_gather_v: {len(members)} ranks of {part.run.num_programs} cores; NKI supports groups of four "
            "ranks of two cores only",
            hint="run_ranks(kernel, inputs of 4 ranks, lnc=2)",
        )
    check_metadata("all_gather_v", metadata_tensor, 3, len(members))
    exchange = exchange_counted(per_destination=False, recv_counts_known=recv_counts_known, has_rdispls=False)
    meet_ranks(part, "all_gather_v", members, (recv_counts_known,), exchange)
    finish("all_gather_v", part, members, name)


def all_to_all_v(
    srcs: list[NkiTensor],
    dsts: list[NkiTensor],
    replica_group: ReplicaGroup,
    metadata_tensor: NkiTensor,
    recv_counts_known: bool = False,
    has_rdispls: bool = False,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Every rank sends another chunk of its flat source to each rank; sender s's lands in slot s, or at rdispls.

    metadata_tensor: uint32, [3 or 4, n] @ HBM or [1, 3 or 4, n] @ SBUF. Rows: send counts, send displacements,
    received counts (written, unless recv_counts_known), receive displacements (with has_rdispls, on
    NeuronCore-v4). Which devices the ranks sit on, and so which groups exist, is not modelled.
    """
    part, members = prepare(
        "all_to_all_v", srcs, dsts, replica_group, priority, sbuf=False, single=True, metadata=metadata_tensor
    )
    if has_rdispls:
        check_generation("all_to_all_v", 4, "has_rdispls")
    check_metadata("all_to_all_v", metadata_tensor, 4 if has_rdispls else 3, len(members))
    exchange = exchange_counted(
        per_destination=True, recv_counts_known=recv_counts_known, has_rdispls=has_rdispls
    )
    meet_ranks(part, "all_to_all_v", members, (recv_counts_known, has_rdispls), exchange)
    finish("all_to_all_v", part, members, name)


def collective_permute(
    srcs: list[NkiTensor],
    dsts: list[NkiTensor],
    source_target_pairs: list[tuple[int, int]],
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Send from source to target for each pair of ranks; a rank that is no target keeps its dst. HBM only."""
    pairs = [(int(source), int(target)) for source, target in source_target_pairs]
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    if not pairs or len(set(sources)) != len(pairs) or len(set(targets)) != len(pairs):
        raise ConstraintError(
            f"collective_permute: {pairs} must have pairs, each rank once as a source and once as a target"
        )
    members = sorted({*sources, *targets})
    part = part_of("collective_permute", srcs, dsts, priority, sbuf=False, single=True)
    check_ranks("collective_permute", part.run, members)
    check_shape("collective_permute", part.dsts[0], part.srcs[0].array.shape, part.srcs[0])
    if part.run.rank in members:
        exchange = exchange_by(permuted(members, pairs))
        meet_ranks(part, "collective_permute", members, tuple(pairs), exchange)
        finish("collective_permute", part, members, name, receives=part.run.rank in targets)


def collective_permute_implicit(
    srcs_by_channel: list[list[NkiTensor]],
    dsts_by_channel: list[list[NkiTensor]],
    replica_group: ReplicaGroup,
    channel_ids: Sequence[int] = (0,),
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Send to the successor in the ring of the group and receive from the predecessor, on every channel."""
    opcode = "collective_permute_implicit"
    srcs, dsts = of_channels(opcode, channel_ids, srcs_by_channel, dsts_by_channel)
    part, members = prepare(opcode, srcs, dsts, replica_group, priority, channels=True)
    for src, dst in zip(part.srcs, part.dsts, strict=True):
        check_shape(opcode, dst, src.array.shape, src)
    meet_ranks(part, opcode, members, tuple(channel_ids), exchange_by(passed_around))
    finish(opcode, part, members, name, channels=len(srcs))


def collective_permute_implicit_reduce(
    srcs0_by_channel: list[list[NkiTensor]],
    srcs1_by_channel: list[list[NkiTensor]],
    dsts_by_channel: list[list[NkiTensor]],
    replica_group: ReplicaGroup,
    op: Any,
    channel_ids: Sequence[int] = (0,),
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Send op(srcs0, srcs1) to the successor in the ring and receive the predecessor's, on every channel."""
    opcode = "collective_permute_implicit_reduce"
    check_reduction(opcode, op)
    srcs0, dsts = of_channels(opcode, channel_ids, srcs0_by_channel, dsts_by_channel)
    srcs1, _ = of_channels(opcode, channel_ids, srcs1_by_channel, dsts_by_channel)
    part, members = prepare(opcode, srcs0, dsts, replica_group, priority, channels=True)
    second, _ = prepare(opcode, srcs1, dsts, replica_group, priority, channels=True)
    for src0, src1, dst in zip(part.srcs, second.srcs, part.dsts, strict=True):
        check_shape(opcode, dst, src0.array.shape, src0)
        check_shape(opcode, dst, src1.array.shape, src1)
    both = part._replace(srcs=(*part.srcs, *second.srcs))

    def reduced_pair(one: Part, position: int) -> np.ndarray:
        pair = (one.srcs[position], one.srcs[len(one.dsts) + position])
        return reduced(op, [values_of(src) for src in pair])

    meet_ranks(both, opcode, members, (op.name, *channel_ids), exchange_by(passed_around, reduced_pair))
    finish(opcode, both, members, name, op=op.name, channels=len(dsts))


def collective_permute_implicit_current_processing_rank_id(
    iteration_id: int, replica_group: ReplicaGroup, channel_id: int = 0, name: str | None = None
) -> VirtualRegister:
    """The rank whose data is here after `iteration_id` steps around the ring: its own, then its predecessors'."""
    run = current_run()
    opcode = "collective_permute_implicit_current_processing_rank_id"
    members = group_of(opcode, run, replica_group)
    if not 0 <= channel_id < MAXIMUM_CHANNELS:
        raise ConstraintError(f"{opcode}: channel_id is {channel_id}, must be 0 to {MAXIMUM_CHANNELS - 1}")
    return VirtualRegister(members[(members.index(run.rank) - iteration_id) % len(members)])


def rank_id(name: str | None = None) -> VirtualRegister:
    """The rank of the calling program, in a register."""
    return VirtualRegister(current_run().rank)
