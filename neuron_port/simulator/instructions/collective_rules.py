"""What collectives demand of their tensors, their replica groups and their channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuron_port.simulator.checks import check_destination, check_priority, check_source
from neuron_port.simulator.context import Run, current_run, record
from neuron_port.simulator.dtypes import uint32
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.instructions.collective import Part
from neuron_port.simulator.instructions.operators import Operator, add, maximum, minimum
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.nki.objects import NKIObject
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import engine

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


def prepare(
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
    part = part_of(opcode, srcs, dsts, priority, sbuf=sbuf, single=single, channels=channels)
    return part._replace(metadata=metadata), group_of(opcode, part.run, replica_group)


def part_of(
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


def group_of(opcode: str, run: Run, replica_group: Any) -> list[int]:
    """The ranks that work together with this one."""
    if not isinstance(replica_group, ReplicaGroup):
        raise ConstraintError(
            f"{opcode}: replica_group is {replica_group!r}", hint="use ncc.ReplicaGroup([[0, 1], [2, 3]])"
        )
    check_ranks(opcode, run, [rank for group in replica_group.groups for rank in group])
    for group in replica_group.groups:
        if run.rank in group:
            return group
    raise ConstraintError(
        f"{opcode}: rank {run.rank} is in no group of {replica_group!r}",
        hint="every rank that executes a collective belongs to a group",
    )


def check_ranks(opcode: str, run: Run, ranks: Sequence[int]) -> None:
    highest = max(ranks)
    if highest >= run.ranks or min(ranks) < 0:
        raise ConstraintError(
            f"{opcode}: it connects ranks up to {highest}, but the kernel runs on "
            f"{run.ranks} rank{'s' if run.ranks > 1 else ''}",
            hint=f"simulate them together: run_ranks(kernel, [inputs of rank 0, ..., inputs of rank {highest}])",
        )


def of_channels(
    opcode: str, channel_ids: Sequence[int], srcs_by_channel: Any, dsts_by_channel: Any
) -> tuple[list[NkiTensor], list[NkiTensor]]:
    """One source and one destination for each channel."""
    ids = list(channel_ids)
    if ids != list(range(len(ids))) or not 1 <= len(ids) <= MAXIMUM_CHANNELS:
        raise ConstraintError(
            f"{opcode}: channel_ids is {ids}, must be 0, 1, ... up to {MAXIMUM_CHANNELS} of them"
        )
    for label, lists in (("srcs", srcs_by_channel), ("dsts", dsts_by_channel)):
        if len(lists) != len(ids) or any(
            not isinstance(inner, list | tuple) or len(inner) != 1 for inner in lists
        ):
            raise ConstraintError(
                f"{opcode}: {label}_by_channel is {lists!r}, must have one list of one tensor for each of "
                f"{len(ids)} channels"
            )
    return [inner[0] for inner in srcs_by_channel], [inner[0] for inner in dsts_by_channel]


def check_reduction(opcode: str, op: Any) -> None:
    if not isinstance(op, Operator) or op not in REDUCTIONS:
        raise ConstraintError(f"{opcode}: op is {op!r}", hint="use nl.add, nl.minimum or nl.maximum")


def check_dim(opcode: str, src: NkiTensor, dim: int, allowed: tuple[int, ...]) -> None:
    if dim not in allowed or (src.storage.on_chip and src.ndim != 2):
        where = "[P, F] tiles in SBUF" if src.storage.on_chip else "tensors in HBM"
        raise ConstraintError(
            f"{opcode}: collective_dim {dim} of {src!r}; for {where} it must be "
            f"{' or '.join(map(str, allowed))}"
        )


def check_divisible(opcode: str, src: NkiTensor, ranks: int) -> None:
    if src.array.shape[0] % ranks:
        raise ConstraintError(f"{opcode}: dimension 0 of src {src!r} does not divide among {ranks} ranks")


def check_shape(opcode: str, dst: NkiTensor, shape: tuple[int, ...], src: NkiTensor) -> None:
    if dst.array.shape != tuple(shape):
        raise ConstraintError(f"{opcode}: dst {dst!r} must have shape {tuple(shape)}, for src {src!r}")


def check_metadata(opcode: str, metadata: Any, rows: int, ranks: int) -> None:
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


def finish(opcode: str, part: Part, members: Sequence[int], name: str | None, **attributes: Any) -> None:
    """Count the traffic of this rank and record the collective."""
    run = part.run
    for tensors, counter in ((part.srcs, "hbm_read_bytes"), (part.dsts, "hbm_write_bytes")):
        for tensor in tensors:
            if not tensor.storage.on_chip:
                setattr(run, counter, getattr(run, counter) + tensor.size * tensor.dtype.itemsize)
    operands = [*part.dsts, *part.srcs] + ([part.metadata] if part.metadata is not None else [])
    moved = sum(dst.size * dst.dtype.itemsize for dst in part.dsts)
    record(
        opcode, engine.dma, operands, name, writes=len(part.dsts), dma_bytes=moved, ranks=len(members), **attributes,
    )  # fmt: skip
