"""What the page's script draws: the timeline as columns of numbers, and every text once.

A kernel of a million instructions cannot be a page. Beyond `MOST_ROWS`, neighbours on one track that come from the same
source line become one row that says how many they are, with growing gaps between them until the page is small enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuron_port.profiling.by_line import critical_times, place_of
from neuron_port.profiling.colours import colours_of
from neuron_port.profiling.perfetto import dma_tracks
from neuron_port.profiling.profile import Profile
from neuron_port.profiling.words import LANE_NAMES, attributes_text, bytes_text, cause_text, operands_text
from neuron_port.simulator.timing.timeline import DMA_LANE, Scheduled

MOST_ROWS = 40_000


@dataclass(slots=True)
class Row:
    """One bar: an instruction, or a run of neighbours from one source line."""

    lane: int
    track: int  # 0, or the track of a transfer
    first: Scheduled
    start_ns: float
    free_ns: float
    busy_ns: float
    critical_ns: float
    count: int = 1


@dataclass(slots=True)
class _Texts:
    """Every text once, with its number."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))


def page_data(profile: Profile, most_rows: int = MOST_ROWS) -> dict[str, Any]:
    """Plain data for the script: lanes, opcodes with colours, and the columns of the rows in order of start."""
    timeline = profile.timeline
    rows = merged(_rows(profile), most_rows)
    rows.sort(key=lambda row: row.start_ns)
    place_numbers = {use.place: number for number, use in enumerate(profile.lines)}
    colours = colours_of(timeline.scheduled)
    opcode_numbers = {opcode: number for number, opcode in enumerate(colours)}
    row_of = {(row.first.core, row.first.index): number for number, row in enumerate(rows)}
    texts = _Texts()
    columns: dict[str, list[Any]] = {
        "lane": [row.lane for row in rows],
        "track": [row.track for row in rows],
        "start": [round(row.start_ns, 1) for row in rows],
        "free": [round(row.free_ns, 1) for row in rows],
        "busy": [round(row.busy_ns, 1) for row in rows],
        "end": [round(row.first.end_ns, 1) for row in rows],
        "ready": [round(row.first.ready_ns, 1) for row in rows],
        "critical": [round(row.critical_ns, 1) for row in rows],
        "count": [row.count for row in rows],
        "index": [row.first.index for row in rows],
        "opcode": [opcode_numbers[row.first.instruction.opcode] for row in rows],
        "place": [place_numbers[place_of(row.first)] for row in rows],
        "text": [texts.number(operands_text(row.first.instruction)) for row in rows],
        "facts": [texts.number(_facts_text(row.first)) for row in rows],
        "cause": [texts.number(cause_text(row.first)) for row in rows],
        "waited": [_waited(row, row_of) for row in rows],
    }
    return {
        "device_ns": round(timeline.device_ns, 1),
        "lanes": [
            {
                "name": LANE_NAMES[use.lane] + (f" {use.core}" if timeline.cores > 1 else ""),
                "utilisation": round(use.utilisation, 4),
                "tracks": 1 + max((row.track for row in rows if row.lane == number), default=0),
            }
            for number, use in enumerate(timeline.lanes)
        ],
        "opcodes": [[opcode, colour] for opcode, colour in colours.items()],
        "places": [[use.location, use.text] for use in profile.lines],
        "texts": list(texts.numbers),
        "rows": columns,
        "instructions": len(timeline.scheduled),
    }


def _waited(row: Row, row_of: dict[tuple[int, int], int]) -> int:
    """The row that a single instruction waited for; -1 for none, and for one inside a merged row."""
    if row.first.waited_index is None or row.count > 1:
        return -1
    return row_of.get((row.first.core, row.first.waited_index), -1)


def _facts_text(one: Scheduled) -> str:
    """What is special about an instruction, in one line."""
    facts = [attributes_text(one.instruction)] if one.instruction.attributes else []
    if one.instruction.name:
        facts.append(f"name {one.instruction.name}")
    if one.lane == DMA_LANE:
        engines = f"{len(one.dma_engines)} DMA engine{'' if len(one.dma_engines) == 1 else 's'}"
        facts.append(
            f"{bytes_text(one.transfer_bytes)} in {one.descriptors} pieces of {bytes_text(one.descriptor_bytes)}, "
            f"{engines}, queue {one.dma_queue}"
        )
    if one.table_load_ns:
        facts.append(f"loads its table of functions for {one.table_load_ns:.0f} ns")
    if one.cold_ns:
        facts.append(f"loses {one.cold_ns:.0f} ns to the slow clock")
    return "; ".join(fact for fact in facts if fact)


def _rows(profile: Profile) -> list[Row]:
    timeline = profile.timeline
    lanes = {(use.core, use.lane): number for number, use in enumerate(timeline.lanes)}
    tracks = dma_tracks([one for one in timeline.scheduled if one.lane == DMA_LANE])
    critical = critical_times(timeline)
    return [
        Row(
            lane=lanes[one.core, one.lane],
            track=tracks.get((one.core, one.index), 0),
            first=one,
            start_ns=one.start_ns,
            free_ns=one.free_ns,
            busy_ns=one.busy_ns,
            critical_ns=critical.get((one.core, one.index), 0.0),
        )
        for one in timeline.scheduled
    ]


def merged(rows: list[Row], most_rows: int) -> list[Row]:
    """At most `most_rows` rows: neighbours of one track and line become one, first those that nearly touch."""
    gap_ns = 50.0
    while len(rows) > most_rows:
        fewer = _merged_within(rows, gap_ns)
        if gap_ns > 1e12:  # nothing left but alternating lines: every track shows its rows as they are
            return fewer
        rows, gap_ns = fewer, gap_ns * 4
    return rows


def _merged_within(rows: Sequence[Row], gap_ns: float) -> list[Row]:
    last: dict[tuple[int, int], Row] = {}
    result: list[Row] = []
    for row in _by_start(rows):
        before = last.get((row.lane, row.track))
        if (
            before is not None
            and place_of(before.first) == place_of(row.first)
            and before.first.instruction.opcode == row.first.instruction.opcode
            and row.start_ns - before.free_ns <= gap_ns
        ):
            before.free_ns = max(before.free_ns, row.free_ns)
            before.busy_ns += row.busy_ns
            before.critical_ns += row.critical_ns
            before.count += row.count
        else:
            last[row.lane, row.track] = row
            result.append(row)
    return result


def _by_start(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.start_ns, row.first.core, row.first.index))
