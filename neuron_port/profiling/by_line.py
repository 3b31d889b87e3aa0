"""Where the time goes, by source line of the kernel: what each line kept busy, and its share of the critical path.

The critical path is the chain of instructions that each waited for the one before; its parts add up to the device
time, so shares of it say what shortening a line can gain. Busy time alone does not: engines work at the same time.
"""

from __future__ import annotations

import linecache
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from neuron_port.simulator.timing.timeline import Scheduled, Timeline

Place = tuple[str, int]  # file and line
LONGEST_STATEMENT = 20  # lines of one call that are looked at


@dataclass(frozen=True, kw_only=True)
class LineUse:
    """What the instructions of one source line did together."""

    file: str
    line: int
    text: str  # the statement that begins there, on one line; empty when the file cannot be read
    function: str  # the kernel's function that it stands in
    count: int  # instructions
    opcodes: Mapping[str, int]  # instructions by opcode, the most frequent first
    busy_ns: Mapping[str, float]  # lane: time it was occupied, summed over the instructions
    critical_ns: float  # part of the device time that the critical path spends in this line
    waited_ns: float  # between being ready and starting, summed
    transfer_bytes: int  # moved by DMA

    @property
    def place(self) -> Place:
        """File and line."""
        return self.file, self.line

    @property
    def location(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"

    @property
    def total_busy_ns(self) -> float:
        """Busy time of all lanes."""
        return sum(self.busy_ns.values())


def place_of(scheduled: Scheduled) -> Place:
    """The source line that issued an instruction."""
    code = scheduled.instruction.code
    return (code.co_filename if code is not None else "", scheduled.instruction.line)


def critical_times(timeline: Timeline) -> dict[tuple[int, int], float]:
    """(core, index) of every instruction on the critical path: its part of the device time, in ns; they add up to it.

    An instruction owns the time from when the one before let it go until it lets the next one go. What lies between a
    producer's end and a consumer's start (a semaphore, a DMA's descriptor) is the consumer's.
    """
    by_key = {(one.core, one.index): one for one in timeline.scheduled}
    path = [by_key[key] for key in timeline.critical_path]
    times: dict[tuple[int, int], float] = {}
    begun = 0.0
    for number, one in enumerate(path):
        if number + 1 == len(path):
            let_go = timeline.device_ns
        else:
            following = path[number + 1]
            finished = one.free_ns if following.cause in ("engine", "lock") else one.end_ns
            let_go = min(finished, following.start_ns)
        let_go = max(let_go, begun)
        times[(one.core, one.index)] = let_go - begun
        begun = let_go
    return times


def by_line(timeline: Timeline) -> tuple[LineUse, ...]:
    """Every source line that issued an instruction, by its part of the critical path, then by busy time."""
    critical = critical_times(timeline)
    groups: dict[Place, list[Scheduled]] = {}
    for one in timeline.scheduled:
        groups.setdefault(place_of(one), []).append(one)
    uses = [_use(place, members, critical) for place, members in groups.items()]
    return tuple(sorted(uses, key=lambda use: (-use.critical_ns, -use.total_busy_ns, use.file, use.line)))


def _use(place: Place, members: list[Scheduled], critical: Mapping[tuple[int, int], float]) -> LineUse:
    busy: dict[str, float] = {}
    for one in members:
        busy[one.lane] = busy.get(one.lane, 0.0) + one.busy_ns
    code = members[0].instruction.code
    return LineUse(
        file=place[0],
        line=place[1],
        text=statement_at(*place),
        function=code.co_name if code is not None else "",
        count=len(members),
        opcodes=dict(Counter(one.instruction.opcode for one in members).most_common()),
        busy_ns=busy,
        critical_ns=sum(critical.get((one.core, one.index), 0.0) for one in members),
        waited_ns=sum(one.wait_ns for one in members),
        transfer_bytes=sum(one.transfer_bytes for one in members),
    )


def statement_at(file: str, line: int) -> str:
    """The statement that begins at a line, its continuation lines joined; empty when the file cannot be read."""
    parts: list[str] = []
    depth = 0
    for number in range(line, line + LONGEST_STATEMENT):
        text = linecache.getline(file, number).strip()
        code = re.sub(r"#.*$|'[^']*'|\"[^\"]*\"", "", text)
        depth += sum(code.count(bracket) for bracket in "([{") - sum(code.count(bracket) for bracket in ")]}")
        parts.append(text)
        if depth <= 0:
            break
    joined = " ".join(parts)
    return re.sub(r",? ([)\]}])", r"\1", re.sub(r"([(\[{]) ", r"\1", joined))


def sources(lines: Iterable[LineUse]) -> dict[str, tuple[str, ...]]:
    """The source of every file that issued an instruction, line by line; files that cannot be read are left out."""
    found = {use.file: tuple(text.rstrip("\n") for text in linecache.getlines(use.file)) for use in lines}
    return {file: text for file, text in found.items() if text}
