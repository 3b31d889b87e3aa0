"""The profile as text for a terminal, and as plain data for other programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neuron_port.profiling.picture import headline
from neuron_port.profiling.profile import Profile
from neuron_port.profiling.words import (
    LANE_NAMES,
    bytes_text,
    counted,
    energy_text,
    roofs,
    share_text,
    time_text,
)

LABEL = 14
SOURCE_WIDTH = 70


def profile_text(profile: Profile, shown_lines: int = 12) -> str:
    """Figures, time by source line, and advice. Readable without colour, at about 120 columns."""
    parts = [
        *_figures(profile),
        "",
        *_engines(profile),
        "",
        *_lines(profile, shown_lines),
        "",
        *_advice(profile),
    ]
    return "\n".join(parts)


def _row(label: str, text: str) -> str:
    return f"{label:<{LABEL}}{text}".rstrip()


def _figures(profile: Profile) -> Iterable[str]:
    timeline = profile.timeline
    roofline = timeline.roofline
    sbuf, psum = profile.memory
    yield _row("kernel", f"{profile.kernel} on {timeline.target}: {headline(timeline)}")
    yield _row(
        "latency",
        f"{time_text(timeline.latency_ns)} for a call: {time_text(timeline.device_ns)} on the device "
        f"({time_text(timeline.in_order_ns)} in strict program order), "
        f"{time_text(timeline.overhead_ns)} to start and end a kernel",
    )
    meet = ""
    if roofline.memory_ns > 0:
        peak, rate = roofs(roofline)
        meet = f", the bounds meet at {peak / rate:.0f}"
    yield _row(
        "roofline",
        f"{time_text(roofline.bound_ns)}, {roofline.bound} bound: {roofline.operations_per_byte:.1f} operations per "
        f"HBM byte{meet}; reached {share_text(timeline.roofline_fraction)}",
    )
    yield _row(
        "HBM",
        f"{bytes_text(timeline.hbm_read_bytes)} read, {bytes_text(timeline.hbm_write_bytes)} written; "
        f"{bytes_text(timeline.dma_bytes)} moved by DMA in all",
    )
    yield _row(
        "memory",
        f"SBUF {bytes_text(sbuf.used)} of {bytes_text(sbuf.capacity)} per partition, "
        f"PSUM {psum.used} of {psum.capacity} banks",
    )
    lost = (
        f"{time_text(timeline.tensor_cold_ns)} lost while it is slow"
        if timeline.tensor_cold_ns
        else "nothing lost"
    )
    yield _row("TensorE clock", lost)
    yield _row(
        "tables",
        f"{counted(timeline.table_loads, 'load')} of activation functions, {time_text(timeline.table_load_ns)}",
    )
    yield _row("energy proxy", f"{energy_text(timeline.energy.total_pj)}, to compare variants by")


def _engines(profile: Profile) -> Iterable[str]:
    timeline = profile.timeline
    yield f"{'engine':<{LABEL}}{'instructions':>12}{'busy':>12}{'utilisation':>13}{'busy alone':>13}"
    for use in timeline.lanes:
        name = LANE_NAMES[use.lane] + (f" {use.core}" if timeline.cores > 1 else "")
        yield (
            f"{name:<{LABEL}}{use.instructions:>12,}{time_text(use.busy_ns):>12}"
            f"{share_text(use.utilisation):>13}{time_text(use.exposed_ns):>13}"
        )


def _lines(profile: Profile, shown: int) -> Iterable[str]:
    yield f"{'line':<24}{'count':>8}{'critical path':>15}{'share':>8}   {'busy':<22} source"
    for use in profile.lines[:shown]:
        busy = ", ".join(f"{LANE_NAMES[lane]} {time_text(time)}" for lane, time in use.busy_ns.items())
        text = use.text if len(use.text) <= SOURCE_WIDTH else use.text[: SOURCE_WIDTH - 1] + "…"
        place = f"{Path(use.file).name}:{use.line}"
        yield (
            f"{place:<24}{use.count:>8,}{time_text(use.critical_ns):>15}"
            f"{share_text(profile.share(use.critical_ns)):>8}   {busy:<22} {text}"
        )
    if len(profile.lines) > shown:
        rest = profile.lines[shown:]
        time = sum(use.critical_ns for use in rest)
        yield f"{len(rest)} more lines: {time_text(time)} on the critical path"


def _advice(profile: Profile) -> Iterable[str]:
    if not profile.advice:
        yield "advice        none: no rule found anything worth a hundredth of the time"
        return
    yield "advice, by expected gain in device time"
    for advice in profile.advice:
        share = share_text(profile.share(advice.gain_ns))
        yield f"{time_text(advice.gain_ns):>10} {share:>6}  {advice.location}: {advice.change}"
        yield f"{'':>19}{advice.measured}"
        yield f"{'':>19}[{advice.rule}; {advice.source}]"


def profile_facts(profile: Profile) -> dict[str, Any]:
    """Everything that is printed, as plain data; times in ns, sizes in bytes."""
    timeline = profile.timeline
    return {
        "kernel": profile.kernel,
        "target": timeline.target,
        "cores": timeline.cores,
        "device_ns": timeline.device_ns,
        "in_order_ns": timeline.in_order_ns,
        "latency_ns": timeline.latency_ns,
        "bound": timeline.bound_lane,
        "roofline": asdict(timeline.roofline),
        "roofline_fraction": timeline.roofline_fraction,
        "energy_pj": asdict(timeline.energy),
        "hbm_read_bytes": timeline.hbm_read_bytes,
        "hbm_write_bytes": timeline.hbm_write_bytes,
        "dma_bytes": timeline.dma_bytes,
        "tensor_cold_ns": timeline.tensor_cold_ns,
        "table_loads": timeline.table_loads,
        "table_load_ns": timeline.table_load_ns,
        "lanes": [asdict(use) for use in timeline.lanes],
        "memory": [asdict(peak) for peak in profile.memory],
        "lines": [asdict(use) for use in profile.lines],
        "advice": [asdict(advice) for advice in profile.advice],
        "warnings": list(profile.warnings),
    }
