"""`nki.collectives`: operations of several ranks, under AWS's names. `run_ranks` gives a kernel its ranks.

Sources and destinations are lists, of one tensor in SBUF or of one or more in HBM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_port.simulator.checks import check_destination, check_generation, check_priority, check_source
from neuron_port.simulator.context import Run, current_run, record
from neuron_port.simulator.dtypes import uint32
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
from neuron_port.simulator.instructions.operators import Operator, add, maximum, minimum
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.nki.language import NKIObject
from neuron_port.simulator.registers import VirtualRegister
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import engine

__all__ = [
    "ReplicaGroup", "all_gather", "all_gather_v", "all_reduce", "all_to_all", "all_to_all_v",
    "collective_permute", "collective_permute_implicit",
    "collective_permute_implicit_current_processing_rank_id", "collective_permute_implicit_reduce", "rank_id",
    "reduce_scatter",
]  # fmt: skip

REDUCTIONS = (add, minimum, maximum)
MAXIMUM_CHANNELS = 4  # of a group of all devices of a node; 2 for other groups (collective_permute_implicit)


class ReplicaGroup(NKIObject):
    """Which ranks work together: lists of ranks without overlap."""

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        self.groups = [[int(rank) for rank in group] for group in groups]
        ranks = [rank for group in self.groups for rank in group]
        if not ranks or len(set(ranks)) != len(ranks) or min(ranks) < 0:
            raise ConstraintError(
                f"ReplicaGroup: {list(groups)} must be lists of ranks, each rank in one of them only"
            )

    def __repr__(self) -> str:
        return f"ReplicaGroup({self.groups})"


def all_reduce(
    srcs: list[NkiTensor],
    dsts: list[NkiTensor],
    replica_group: ReplicaGroup,
    op: Any,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Every rank gets op over all ranks' sources, computed in float32; op is nl.add, nl.minimum or nl.maximum."""
    part, members = _prepare("all_reduce", srcs, dsts, replica_group, priority)
    _check_reduction("all_reduce", op)
    for src, dst in zip(part.srcs, part.dsts, strict=True):
        _check_shape("all_reduce", dst, src.array.shape, src)
    meet_ranks(part, "all_reduce", members, (op.name,), exchange_by(all_reduced(op)))
    _finish("all_reduce", part, members, name, op=op.name)


def all_gather(
    srcs: list[NkiTensor],
    dsts: list[NkiTensor],
    replica_group: ReplicaGroup,
    collective_dim: int,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Every rank gets all sources along `collective_dim`: 0 in HBM; 0 or 1 of [P, F] tiles in SBUF."""
    part, members = _prepare("all_gather", srcs, dsts, replica_group, priority)
    for src, dst in zip(part.srcs, part.dsts, strict=True):
        _check_dim("all_gather", src, collective_dim, (0, 1) if src.storage.on_chip else (0,))
        shape = list(src.array.shape)
        shape[collective_dim] *= len(members)
        _check_shape("all_gather", dst, tuple(shape), src)
    meet_ranks(part, "all_gather", members, (collective_dim,), exchange_by(all_gathered(collective_dim)))
    _finish("all_gather", part, members, name)


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
    part, members = _prepare("reduce_scatter", srcs, dsts, replica_group, priority)
    _check_reduction("reduce_scatter", op)
    for src, dst in zip(part.srcs, part.dsts, strict=True):
        _check_dim("reduce_scatter", src, collective_dim, (0,))
        _check_divisible("reduce_scatter", src, len(members))
        shape = (src.array.shape[0] // len(members), *src.array.shape[1:])
        _check_shape("reduce_scatter", dst, shape, src)
    meet_ranks(part, "reduce_scatter", members, (op.name,), exchange_by(reduce_scattered(op)))
    _finish("reduce_scatter", part, members, name, op=op.name)


def all_to_all(
    srcs: list[NkiTensor],
    dsts: list[NkiTensor],
    replica_group: ReplicaGroup,
    collective_dim: int,
    priority: int | None = None,
    name: str | None = None,
) -> None:
    """Rank i of the group gets block i, along dimension 0, of every rank's source. HBM only."""
    part, members = _prepare("all_to_all", srcs, dsts, replica_group, priority, sbuf=False)
    for src, dst in zip(part.srcs, part.dsts, strict=True):
        _check_dim("all_to_all", src, collective_dim, (0,))
        _check_divisible("all_to_all", src, len(members))
        _check_shape("all_to_all", dst, src.array.shape, src)
    meet_ranks(part, "all_to_all", members, (), exchange_by(all_to_all_exchanged))
    _finish("all_to_all", part, members, name)


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
    part, members = _prepare(
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
    _check_metadata("all_gather_v", metadata_tensor, 3, len(members))
    exchange = exchange_counted(per_destination=False, recv_counts_known=recv_counts_known, has_rdispls=False)
    meet_ranks(part, "all_gather_v", members, (recv_counts_known,), exchange)
    _finish("all_gather_v", part, members, name)


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
    part, members = _prepare(
        "all_to_all_v", srcs, dsts, replica_group, priority, sbuf=False, single=True, metadata=metadata_tensor
    )
    if has_rdispls:
        check_generation("all_to_all_v", 4, "has_rdispls")
    _check_metadata("all_to_all_v", metadata_tensor, 4 if has_rdispls else 3, len(members))
    exchange = exchange_counted(
        per_destination=True, recv_counts_known=recv_counts_known, has_rdispls=has_rdispls
    )
    meet_ranks(part, "all_to_all_v", members, (recv_counts_known, has_rdispls), exchange)
    _finish("all_to_all_v", part, members, name)


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
    part = _part("collective_permute", srcs, dsts, priority, sbuf=False, single=True)
    _check_ranks("collective_permute", part.run, members)
    _check_shape("collective_permute", part.dsts[0], part.srcs[0].array.shape, part.srcs[0])
    if part.run.rank in members:
        exchange = exchange_by(permuted(members, pairs))
        meet_ranks(part, "collective_permute", members, tuple(pairs), exchange)
        _finish("collective_permute", part, members, name, receives=part.run.rank in targets)


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
    srcs, dsts = _of_channels(opcode, channel_ids, srcs_by_channel, dsts_by_channel)
    part, members = _prepare(opcode, srcs, dsts, replica_group, priority, channels=True)
    for src, dst in zip(part.srcs, part.dsts, strict=True):
        _check_shape(opcode, dst, src.array.shape, src)
    meet_ranks(part, opcode, members, tuple(channel_ids), exchange_by(passed_around))
    _finish(opcode, part, members, name, channels=len(srcs))


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
    _check_reduction(opcode, op)
    srcs0, dsts = _of_channels(opcode, channel_ids, srcs0_by_channel, dsts_by_channel)
    srcs1, _ = _of_channels(opcode, channel_ids, srcs1_by_channel, dsts_by_channel)
    part, members = _prepare(opcode, srcs0, dsts, replica_group, priority, channels=True)
    second, _ = _prepare(opcode, srcs1, dsts, replica_group, priority, channels=True)
    for src0, src1, dst in zip(part.srcs, second.srcs, part.dsts, strict=True):
        _check_shape(opcode, dst, src0.array.shape, src0)
        _check_shape(opcode, dst, src1.array.shape, src1)
    both = part._replace(srcs=(*part.srcs, *second.srcs))

    def reduced_pair(one: Part, position: int) -> np.ndarray:
        pair = (one.srcs[position], one.srcs[len(one.dsts) + position])
        return reduced(op, [values_of(src) for src in pair])

    meet_ranks(both, opcode, members, (op.name, *channel_ids), exchange_by(passed_around, reduced_pair))
    _finish(opcode, both, members, name, op=op.name, channels=len(dsts))


def collective_permute_implicit_current_processing_rank_id(
    iteration_id: int, replica_group: ReplicaGroup, channel_id: int = 0, name: str | None = None
) -> VirtualRegister:
    """The rank whose data is here after `iteration_id` steps around the ring: its own, then its predecessors'."""
    run = current_run()
    opcode = "collective_permute_implicit_current_processing_rank_id"
    members = _group_of(opcode, run, replica_group)
    if not 0 <= channel_id < MAXIMUM_CHANNELS:
        raise ConstraintError(f"{opcode}: channel_id is {channel_id}, must be 0 to {MAXIMUM_CHANNELS - 1}")
    return VirtualRegister(members[(members.index(run.rank) - iteration_id) % len(members)])


def rank_id(name: str | None = None) -> VirtualRegister:
    """The rank of the calling program, in a register."""
    return VirtualRegister(current_run().rank)


# ---- rules -----------------------------------------------------------------------------------------------------


def _prepare(
    opcode: str,
    srcs: Any,
    dsts: Any,
    replica_group: Any,
    priority: int | None,
    *,
    sbuf: bool = True,
    single: bool = False,
    channels: bool = False,
    metadata: NkiTensor | None = None,
) -> tuple[Part, list[int]]:
    """What this rank brings, checked, and the ranks of its group."""
    part = _part(opcode, srcs, dsts, priority, sbuf=sbuf, single=single, channels=channels)
    return part._replace(metadata=metadata), _group_of(opcode, part.run, replica_group)


def _part(
    opcode: str,
    srcs: Any,
    dsts: Any,
    priority: int | None,
    *,
    sbuf: bool,
    single: bool,
    channels: bool = False,
) -> Part:
    """The tensors of one rank: lists of equal length, all in HBM or all in SBUF."""
    run = current_run()
    if priority is not None:
        check_priority(opcode, priority)
    for label, tensors in (("srcs", srcs), ("dsts", dsts)):
        if not isinstance(tensors, list | tuple) or not all(isinstance(t, NkiTensor) for t in tensors):
            raise ConstraintError(f"{opcode}: {label} is {tensors!r}, must be a list of tensors")
    if not srcs or len(srcs) != len(dsts):
        raise ConstraintError(
            f"{opcode}: {len(srcs)} srcs and {len(dsts)} dsts must be equally many, not none"
        )
    sources, targets = [src.resolved() for src in srcs], [dst.resolved() for dst in dsts]
    buffers = {tensor.buffer for tensor in (*sources, *targets)}
    on_chip = MemoryRegion.sbuf in buffers
    if MemoryRegion.psum in buffers or (on_chip and (len(buffers) > 1 or not sbuf)):
        raise ConstraintError(
            f"{opcode}: tensors are in {', '.join(sorted(buffer.name for buffer in buffers))}; they must be "
            + ("all in HBM or all in SBUF" if sbuf else "in HBM"),
            hint="copy with nisa.dma_copy first",
        )
    if len(srcs) > 1 and (single or (on_chip and not channels)):
        raise ConstraintError(
            f"{opcode}: {len(srcs)} tensors at once"
            + ("" if single else " in SBUF")
            + "; it takes exactly one",
            hint="issue one collective for each tensor",
        )
    for src, dst in zip(sources, targets, strict=True):
        if src.dtype is not dst.dtype:
            raise ConstraintError(f"{opcode}: src {src!r} and dst {dst!r} must have one dtype")
        if on_chip:
            check_source(opcode, "src", src)
            check_destination(opcode, "dst", dst)
    for tensor in (*sources, *targets):
        if tensor.storage.allocation.code is None:
            # A comment in the tests of the public nki-library: collectives cannot access the kernel's own inputs.
            run.warn(
                f"{opcode}: {tensor!r} is a kernel input, which the compiler may refuse in collectives; copy it "
                "to a tensor in nl.shared_hbm first"
            )
    return Part(run, sources, targets)


def _group_of(opcode: str, run: Run, replica_group: Any) -> list[int]:
    """The ranks that work together with this one."""
    if not isinstance(replica_group, ReplicaGroup):
        raise ConstraintError(
            f"{opcode}: replica_group is {replica_group!r}", hint="use ncc.ReplicaGroup([[0, 1], [2, 3]])"
        )
    _check_ranks(opcode, run, [rank for group in replica_group.groups for rank in group])
    for group in replica_group.groups:
        if run.rank in group:
            return group
    raise ConstraintError(
        f"{opcode}: rank {run.rank} is in no group of {replica_group!r}",
        hint="every rank that executes a collective belongs to a group",
    )


def _check_ranks(opcode: str, run: Run, ranks: Sequence[int]) -> None:
    highest = max(ranks)
    if highest >= run.ranks or min(ranks) < 0:
        raise ConstraintError(
            f"{opcode}: it connects ranks up to {highest}, but the kernel runs on "
            f"{run.ranks} rank{'s' if run.ranks > 1 else ''}",
            hint=f"simulate them together: run_ranks(kernel, [inputs of rank 0, ..., inputs of rank {highest}])",
        )


def _of_channels(
    opcode: str, channel_ids: Sequence[int], srcs_by_channel: Any, dsts_by_channel: Any
) -> tuple[list[NkiTensor], list[NkiTensor]]:
    """One source and one destination for each channel."""
    ids = list(channel_ids)
    if ids != list(range(len(ids))) or not 1 <= len(ids) <= MAXIMUM_CHANNELS:
        raise ConstraintError(
            f"{opcode}: channel_ids is {ids}, must be 0, 1, ... up to {MAXIMUM_CHANNELS} of them"
        )
    for label, lists in (("srcs", srcs_by_channel), ("dsts", dsts_by_channel)):
        if len(lists) != len(ids) or any(not isinstance(l, list | tuple) or len(l) != 1 for l in lists):
            raise ConstraintError(
                f"{opcode}: {label}_by_channel is {lists!r}, must have one list of one tensor for each of "
                f"{len(ids)} channels"
            )
    return [inner[0] for inner in srcs_by_channel], [inner[0] for inner in dsts_by_channel]


def _check_reduction(opcode: str, op: Any) -> None:
    if not isinstance(op, Operator) or op not in REDUCTIONS:
        raise ConstraintError(f"{opcode}: op is {op!r}", hint="use nl.add, nl.minimum or nl.maximum")


def _check_dim(opcode: str, src: NkiTensor, dim: int, allowed: tuple[int, ...]) -> None:
    if dim not in allowed or (src.storage.on_chip and src.ndim != 2):
        where = "[P, F] tiles in SBUF" if src.storage.on_chip else "tensors in HBM"
        raise ConstraintError(
            f"{opcode}: collective_dim {dim} of {src!r}; for {where} it must be "
            f"{' or '.join(map(str, allowed))}"
        )


def _check_divisible(opcode: str, src: NkiTensor, ranks: int) -> None:
    if src.array.shape[0] % ranks:
        raise ConstraintError(f"{opcode}: dimension 0 of src {src!r} does not divide among {ranks} ranks")


def _check_shape(opcode: str, dst: NkiTensor, shape: tuple[int, ...], src: NkiTensor) -> None:
    if dst.array.shape != tuple(shape):
        raise ConstraintError(f"{opcode}: dst {dst!r} must have shape {tuple(shape)}, for src {src!r}")


def _check_metadata(opcode: str, metadata: Any, rows: int, ranks: int) -> None:
    expected: tuple[int, ...] = (rows, ranks)
    if isinstance(metadata, NkiTensor) and metadata.storage.on_chip:
        expected = (1, rows, ranks)
    if (
        not isinstance(metadata, NkiTensor)
        or metadata.dtype is not uint32
        or metadata.array.shape != expected
        or metadata.buffer is MemoryRegion.psum
    ):
        raise ConstraintError(
            f"{opcode}: metadata_tensor {metadata!r} must be uint32 of shape ({rows}, {ranks}) in HBM or "
            f"(1, {rows}, {ranks}) in SBUF"
        )


def _finish(opcode: str, part: Part, members: Sequence[int], name: str | None, **attributes: Any) -> None:
    """Count the traffic of this rank and record the collective."""
    run = part.run
    for tensors, counter in ((part.srcs, "hbm_read_bytes"), (part.dsts, "hbm_write_bytes")):
        for tensor in tensors:
            if not tensor.storage.on_chip:
                setattr(run, counter, getattr(run, counter) + tensor.size * tensor.dtype.itemsize)
    operands = [*part.dsts, *part.srcs] + ([part.metadata] if part.metadata is not None else [])
    moved = sum(dst.size * dst.dtype.itemsize for dst in part.dsts)
    meeting = run.logical_core.meetings if run.logical_core is not None else 0
    record(
        opcode, engine.dma, operands, name, writes=len(part.dsts), dma_bytes=moved, ranks=len(members),
        meeting=meeting, **attributes,
    )  # fmt: skip
