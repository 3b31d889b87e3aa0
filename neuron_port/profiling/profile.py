"""Everything that is said about one predicted run, in one record; what prints, draws or writes it takes it from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuron_port.profiling.advice import Advice, Evidence, advise
from neuron_port.profiling.by_line import LineUse, by_line, sources
from neuron_port.profiling.memory import MemoryPeak, memory_peaks
from neuron_port.simulator import Target, Trace
from neuron_port.simulator.timing.timeline import Timeline


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One kernel call: its timeline, and what follows from it."""

    kernel: str
    timeline: Timeline
    lines: tuple[LineUse, ...]  # by part of the critical path
    advice: tuple[Advice, ...]  # by expected gain
    memory: tuple[MemoryPeak, MemoryPeak]  # SBUF, PSUM
    sources: Mapping[str, tuple[str, ...]]  # file: its lines
    warnings: tuple[str, ...]

    def share(self, time_ns: float) -> float:
        """A time as a part of the device time."""
        return time_ns / self.timeline.device_ns if self.timeline.device_ns else 0.0


def make_profile(
    kernel: str, timeline: Timeline, traces: Sequence[Trace], target: Target, warnings: Sequence[str] = ()
) -> Profile:
    """The profile of one run.

    Args:
        kernel: its name, for headings.
        timeline: the prediction.
        traces: what each core executed.
        target: on which machine.
        warnings: the simulator's.
    """
    lines = by_line(timeline)
    return Profile(
        kernel=kernel,
        timeline=timeline,
        lines=lines,
        advice=advise(Evidence(timeline=timeline, target=target, traces=traces)),
        memory=memory_peaks(traces, target),
        sources=sources(lines),
        warnings=tuple(warnings),
    )
