"""What collectives do to data: ranks meet, their sources are read at one moment, and every rank gets its part.

A rank's programs meet those with the same program_id on the other ranks. When both cores of a logical core issue
the same collective on tensors in shared HBM, all reads come before all writes, so that the two are one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from neuron_port.simulator.context import Run
from neuron_port.simulator.cores import Meeting
from neuron_port.simulator.dtypes import FLOAT32
from neuron_port.simulator.errors import ConstraintError, OutOfBoundsError, UnwrittenReadError
from neuron_port.simulator.instructions.operators import Operator
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.values import write_raw

Arrays = list[np.ndarray]


class Part(NamedTuple):
    """What one rank brings to a collective."""

    run: Run
    srcs: Sequence[NkiTensor]
    dsts: Sequence[NkiTensor]
    metadata: NkiTensor | None = None


def meet_ranks(
    part: Part,
    opcode: str,
    members: Sequence[int],
    agreement: tuple[Any, ...],
    exchange: Callable[[list[Meeting]], Callable[[], None]],
) -> None:
    """Wait for the other ranks in `members` to issue the same collective, then let `exchange` do it.

    `agreement` holds the arguments that must be equal on all of them.
    """
    run = part.run
    positions = [rank * run.num_programs + run.program_id for rank in members]
    described = ", ".join(repr(src) for src in part.srcs)
    meeting = Meeting(
        opcode,
        (opcode, tuple(members), agreement),
        positions,
        part,
        exchange,
        f"{opcode} of {described} among ranks {list(members)}",
    )
    if run.scheduler is None:
        exchange([meeting])()  # a group of one rank
    else:
        run.scheduler.meet(run, meeting)


def exchange_by(
    compute: Callable[[Arrays], Sequence[np.ndarray | None]],
    source: Callable[[Part, int], np.ndarray] | None = None,
) -> Callable[[list[Meeting]], Callable[[], None]]:
    """The exchange that gives the ranks `compute` of their sources: n arrays become n results, for each tensor.

    A result of None leaves that rank's destination as it is. `source(part, position)` is what a rank sends, its
    source in that position unless said otherwise.
    """

    def exchange(meetings: list[Meeting]) -> Callable[[], None]:
        parts: list[Part] = [meeting.offer for meeting in meetings]
        _check_alike(meetings)
        for meeting, part in zip(meetings, parts, strict=True):
            for src in part.srcs:
                require_written_at(meeting, src)
        results = []
        for position in range(len(parts[0].dsts)):
            sent = [
                values_of(part.srcs[position]) if source is None else source(part, position) for part in parts
            ]
            for part, value in zip(parts, compute(sent), strict=True):
                if value is not None:
                    dst = part.dsts[position]
                    results.append((dst, np.array(dst.dtype.rounded(value))))

        def deliver() -> None:
            for dst, value in results:
                write_raw(dst, value)

        return deliver

    return exchange


def values_of(tensor: NkiTensor) -> np.ndarray:
    """The values to compute with: float32 for floats, the integers themselves otherwise."""
    array = tensor.array
    return array if not tensor.dtype.is_float or array.dtype == FLOAT32 else array.astype(FLOAT32)


def require_written_at(meeting: Meeting, src: NkiTensor) -> None:
    """Refuse to send what nothing has written, at the line of the collective."""
    if not src.is_written():
        raise UnwrittenReadError(
            f"{meeting.opcode}: {src!r} is sent, but some of its elements were never written (allocated at "
            f"{src.storage.allocation.location})",
            location=meeting.location,
            hint="write all of it before the collective",
        )


def _check_alike(meetings: list[Meeting]) -> None:
    """Every rank brings tensors of the same shapes and dtypes."""
    first = meetings[0]
    for other in meetings[1:]:
        for mine, theirs in zip(first.offer.srcs, other.offer.srcs, strict=False):
            if mine.array.shape != theirs.array.shape or mine.dtype is not theirs.dtype:
                raise ConstraintError(
                    f"{first.opcode}: rank {first.offer.run.rank} sends {mine!r}, rank {other.offer.run.rank} "
                    f"sends {theirs!r}",
                    location=first.location,
                    hint="all ranks of a group send tensors of one shape and dtype",
                )


# ---- what becomes of the sources ---------------------------------------------------------------------------


def reduced(op: Operator, arrays: Arrays) -> np.ndarray:
    """All arrays combined in the order of the ranks; integers exactly, then saturated by the dtype's rounding."""
    total = arrays[0]
    for array in arrays[1:]:
        if total.dtype == FLOAT32 or op.name != "add":
            total = op.alu(total, array)
        else:
            bounds = np.iinfo(array.dtype)
            exact = total.astype(np.int64) + array
            total = np.clip(exact, bounds.min, bounds.max).astype(array.dtype)
    return total


def all_reduced(op: Operator) -> Callable[[Arrays], Arrays]:
    """Everybody gets the reduction."""
    return lambda arrays: [reduced(op, arrays)] * len(arrays)


def all_gathered(dim: int) -> Callable[[Arrays], Arrays]:
    """Everybody gets all sources, one behind the other along `dim`."""
    return lambda arrays: [np.concatenate(arrays, axis=dim)] * len(arrays)


def reduce_scattered(op: Operator) -> Callable[[Arrays], Arrays]:
    """Rank i of the group gets block i of the reduction, along dimension 0."""
    return lambda arrays: np.split(reduced(op, arrays), len(arrays), axis=0)


def all_to_all_exchanged(arrays: Arrays) -> Arrays:
    """Rank i of the group gets block i of every source, one behind the other along dimension 0."""
    blocks = [np.split(array, len(arrays), axis=0) for array in arrays]
    return [np.concatenate([block[i] for block in blocks], axis=0) for i in range(len(arrays))]


def permuted(members: Sequence[int], pairs: Sequence[tuple[int, int]]) -> Callable[[Arrays], Any]:
    """The target of each pair of ranks gets the source's array, the others nothing."""
    source_of = {target: members.index(source) for source, target in pairs}
    return lambda arrays: [arrays[source_of[rank]] if rank in source_of else None for rank in members]


def passed_around(arrays: Arrays) -> Arrays:
    """Each rank gets its predecessor's source: the ring sends to the successor."""
    return [arrays[-1], *arrays[:-1]]


# ---- variable lengths ----------------------------------------------------------------------------------------


def exchange_counted(
    *, per_destination: bool, recv_counts_known: bool, has_rdispls: bool
) -> Callable[[list[Meeting]], Callable[[], None]]:
    """The exchange of all_gather_v (one chunk for everybody) and all_to_all_v (one chunk for each destination).

    Rows of the metadata: send counts, send displacements, received counts, receive displacements, in elements.
    """

    def exchange(meetings: list[Meeting]) -> Callable[[], None]:
        tables = [_table_of(meeting) for meeting in meetings]
        writes: list[tuple[NkiTensor, int, np.ndarray]] = []
        for target, meeting in enumerate(meetings):
            dst = meeting.offer.dsts[0]
            slot = dst.size // len(meetings)
            counts = np.zeros(len(meetings), np.uint32)
            for source, (sender, table) in enumerate(zip(meetings, tables, strict=True)):
                column = target if per_destination else 0
                count, begin = int(table[0, column]), int(table[1, column])
                chunk = _chunk(sender, begin, count)
                into = int(tables[target][3, source]) if has_rdispls else source * slot
                room = dst.size - into if has_rdispls else slot
                if count > room:
                    raise OutOfBoundsError(
                        f"{meeting.opcode}: rank {sender.offer.run.rank} sends {count} elements to rank "
                        f"{meeting.offer.run.rank}, whose {dst!r} has room for {max(room, 0)} at element {into}",
                        location=meeting.location,
                        hint="without displacements dst has one slot of dst.size / ranks for each sender",
                    )
                counts[source] = count
                if count:
                    writes.append((dst, into, chunk))
            if not recv_counts_known:
                writes.append((meeting.offer.metadata, 2 * len(meetings), counts))

        def deliver() -> None:
            for tensor, begin, values in writes:
                shape = (1, tensor.size) if tensor.storage.on_chip else (tensor.size,)
                write_raw(tensor.reshape(shape)[..., begin : begin + len(values)], values)

        return deliver

    return exchange


def _table_of(meeting: Meeting) -> np.ndarray:
    metadata = meeting.offer.metadata
    rows = metadata.array.reshape(-1, metadata.array.shape[-1])
    known = metadata[:, 0:2, :] if metadata.storage.on_chip else metadata[0:2]
    require_written_at(meeting, known)
    return rows.copy()


def _chunk(sender: Meeting, begin: int, count: int) -> np.ndarray:
    src = sender.offer.srcs[0]
    if begin + count > src.size:
        raise OutOfBoundsError(
            f"{sender.opcode}: rank {sender.offer.run.rank} sends elements {begin} to {begin + count} of {src!r}, "
            f"which has {src.size}",
            location=sender.location,
            hint="send_displ + send_count must not exceed the source's size",
        )
    if count:
        require_written_at(sender, src.reshape((src.size,))[begin : begin + count])
    return src.array.reshape(-1)[begin : begin + count].copy()
