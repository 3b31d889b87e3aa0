"""The timeline as one picture: engines over time, the lines that the time goes to, and the roofline.

A lane with few instructions shows each of them. A lane with thousands shows how busy it was in each of some hundred
slices of time, coloured by opcode, because a thousand bars on an inch say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuron_port.profiling.by_line import LineUse, critical_times
from neuron_port.profiling.colours import colours_of
from neuron_port.profiling.files import written_whole
from neuron_port.profiling.profile import Profile
from neuron_port.profiling.words import LANE_NAMES, bytes_text, roofs, share_text, time_text
from neuron_port.simulator.timing.timeline import LANES, Scheduled, Timeline

DENSE = 700  # instructions of one lane that can be told apart on the width of the picture
SEPARATE = 120  # instructions of one lane up to which a white line separates neighbours
SLICES = 900
SHOWN_LINES = 8
SAID_WIDTH = 112  # characters above a bar
INK, QUIET, LINE, TRACK, CRITICAL = "#1b1e22", "#5b626a", "#d9d8d2", "#f1f0ec", "#111111"


def write_picture(profile: Profile, path: Path) -> None:
    """Write the picture to `path` as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timeline = profile.timeline
    rows = len(timeline.lanes)
    figure = Figure(figsize=(14, 4.6 + 0.52 * rows), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 2, height_ratios=[0.55 * rows, 2.7], width_ratios=[2.1, 1],
        left=0.085, right=0.985, top=1 - 1.05 / figure.get_figheight(), bottom=0.62 / figure.get_figheight(),
        hspace=0.95 / (0.55 * rows + 2.7) * 2, wspace=0.16,
    )  # fmt: skip
    _heading(figure, profile)
    _draw_lanes(figure.add_subplot(grid[0, :]), timeline)
    _draw_lines(figure.add_subplot(grid[1, 0]), profile)
    _draw_roofline(figure.add_subplot(grid[1, 1]), timeline)
    with written_whole(path) as aside:
        figure.savefig(aside, dpi=130, format="png", metadata={"Software": None})


def _heading(figure: Any, profile: Profile) -> None:
    timeline = profile.timeline
    height = figure.get_figheight()
    figure.text(
        0.012,
        1 - 0.32 / height,
        f"{profile.kernel} on {timeline.target}",
        fontsize=15,
        weight="bold",
        color=INK,
    )
    figure.text(0.012, 1 - 0.62 / height, headline(timeline), fontsize=10.5, color=QUIET)


def headline(timeline: Timeline) -> str:
    """The figures of the run that matter most, in one sentence."""
    if timeline.bound_lane == "latency":
        bound = "bound by latency: no engine is busy for half of it"
    else:
        use = max(
            (use for use in timeline.lanes if use.lane == timeline.bound_lane),
            key=lambda use: use.utilisation,
        )
        bound = f"bound by {LANE_NAMES[use.lane]}, {share_text(use.utilisation)} busy"
    return (
        f"{time_text(timeline.device_ns)} predicted on the device, {bound}; "
        f"{bytes_text(timeline.hbm_read_bytes)} read from HBM, {bytes_text(timeline.hbm_write_bytes)} written; "
        f"the roofline explains {share_text(timeline.roofline_fraction)}"
    )


# Lanes


def _draw_lanes(axes: Any, timeline: Timeline) -> None:
    from matplotlib.patches import Patch

    colours = colours_of(timeline.scheduled)
    scale, unit = _unit(timeline.device_ns)
    critical = critical_times(timeline)
    labels = []
    for row, use in enumerate(timeline.lanes):
        members = [one for one in timeline.scheduled if (one.core, one.lane) == (use.core, use.lane)]
        bottom = len(timeline.lanes) - 1 - row
        axes.broken_barh(
            [(0, timeline.device_ns * scale)], (bottom + 0.08, 0.84), facecolors=TRACK, linewidth=0
        )
        if len(members) > DENSE or use.lane == "dma":
            _draw_dense(axes, members, timeline.device_ns, scale, bottom, colours)
        else:
            _draw_each(axes, members, scale, bottom, colours, timeline.device_ns / 1800)  # about a pixel
        _draw_critical(axes, members, critical, scale, bottom)
        core = f" {use.core}" if timeline.cores > 1 else ""
        labels.append(f"{LANE_NAMES[use.lane]}{core}\n{share_text(use.utilisation)}")
    axes.set_yticks([len(labels) - row - 0.5 for row in range(len(labels))], labels, fontsize=9, color=INK)
    axes.set_ylim(-0.06, len(labels))
    axes.set_xlim(0, timeline.device_ns * scale)
    axes.set_xlabel(f"time since the kernel's first instruction ({unit})", fontsize=9, color=QUIET)
    _plain(axes)
    shown = list(colours)[:12]
    handles = [Patch(color=colours[opcode], label=opcode) for opcode in shown]
    handles.append(Patch(color=CRITICAL, label="critical path"))
    axes.legend(
        handles=handles, ncol=7, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8,
        handlelength=1, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip


def _draw_each(
    axes: Any,
    members: Sequence[Scheduled],
    scale: float,
    bottom: float,
    colours: Mapping[str, str],
    least_ns: float,
) -> None:
    apart = len(members) < SEPARATE
    axes.broken_barh(
        [(one.start_ns * scale, max(one.busy_ns, least_ns) * scale) for one in members],
        (bottom + 0.08, 0.84),
        facecolors=[colours[one.instruction.opcode] for one in members],
        edgecolors="white" if apart else "none",
        linewidth=0.3 if apart else 0,
    )


def _draw_dense(
    axes: Any,
    members: Sequence[Scheduled],
    device_ns: float,
    scale: float,
    bottom: float,
    colours: Mapping[str, str],
) -> None:
    edges = np.linspace(0, device_ns, SLICES + 1)
    floor = np.full(SLICES, bottom + 0.08)
    for opcode in colours:
        chosen = [one for one in members if one.instruction.opcode == opcode]
        if not chosen:
            continue
        share = busy_shares(chosen, edges)
        top = np.minimum(floor + share * 0.84, bottom + 0.92)
        axes.stairs(top, edges * scale, baseline=floor, fill=True, color=colours[opcode], linewidth=0)
        floor = top


def busy_shares(members: Sequence[Scheduled], edges: np.ndarray) -> np.ndarray:
    """How much of each slice of time between `edges` [n + 1] the members occupy: [n], 1 is all of it.

    A transfer counts by the part of the 16 DMA engines that it uses.
    """
    starts = np.array([one.start_ns for one in members])
    ends = np.array([one.free_ns for one in members])
    weights = np.array([len(one.dma_engines) / 16 if one.dma_engines else 1.0 for one in members])
    # Time occupied before an edge is piecewise linear: the sum of min(edge, end) - min(edge, start).
    before = _integral(edges, starts, weights) - _integral(edges, ends, weights)
    return np.diff(before) / np.diff(edges)


def _integral(edges: np.ndarray, moments: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """At every edge, the weighted time that has passed since each moment."""
    order = np.argsort(moments)
    moments, weights = moments[order], weights[order]
    count = np.searchsorted(moments, edges)
    weight_before = np.concatenate(([0.0], np.cumsum(weights)))[count]
    moment_before = np.concatenate(([0.0], np.cumsum(weights * moments)))[count]
    passed: np.ndarray = weight_before * edges - moment_before
    return passed


def _draw_critical(
    axes: Any,
    members: Sequence[Scheduled],
    critical: Mapping[tuple[int, int], float],
    scale: float,
    bottom: float,
) -> None:
    """A dark line under the instructions of the critical path."""
    spans = [
        (one.start_ns * scale, max(one.free_ns, one.end_ns) * scale - one.start_ns * scale)
        for one in members
        if critical.get((one.core, one.index), 0.0) > 0
    ]
    axes.broken_barh(spans, (bottom + 0.0, 0.06), facecolors=CRITICAL, linewidth=0)


# Lines


def _draw_lines(axes: Any, profile: Profile) -> None:
    shown = [use for use in profile.lines[:SHOWN_LINES] if use.critical_ns > 0]
    scale, unit = _unit(max((use.critical_ns for use in shown), default=1.0))
    for row, use in enumerate(shown):
        colour = _line_colour(use, profile.timeline)
        axes.barh(row + 0.26, use.critical_ns * scale, height=0.34, color=colour, linewidth=0)
        said = f"{share_text(profile.share(use.critical_ns)):>6}  {_place(use)}  {use.text}"
        said = said if len(said) <= SAID_WIDTH else said[: SAID_WIDTH - 1] + "…"
        axes.text(0, row + 0.04, said, fontsize=7.5, color=INK, va="bottom", family="monospace")
    axes.set_ylim(max(len(shown), 4) - 0.35, -0.4)
    axes.set_yticks([])
    axes.set_title(
        "where the time goes: the critical path by source line", fontsize=10, loc="left", color=INK
    )
    axes.set_xlabel(f"time on the critical path ({unit})", fontsize=9, color=QUIET)
    _plain(axes)


def _place(use: LineUse) -> str:
    return f"{Path(use.file).name}:{use.line}"


def _line_colour(use: LineUse, timeline: Timeline) -> str:
    colour: str = colours_of(timeline.scheduled)[next(iter(use.opcodes))]
    return colour


# Roofline


def _draw_roofline(axes: Any, timeline: Timeline) -> None:
    """Operations per second over operations per byte, both logarithmic: the two bounds, and where the kernel is."""
    roofline = timeline.roofline
    axes.set_title("roofline", fontsize=10, loc="left", color=INK)
    if roofline.operations_per_byte <= 0 or roofline.memory_ns <= 0 or timeline.device_ns <= 0:
        axes.text(
            0.5, 0.5, "no HBM traffic or no arithmetic", ha="center", transform=axes.transAxes, color=QUIET
        )
        axes.set_axis_off()
        return
    peak, per_byte_rate = roofs(roofline)
    intensity, ridge = roofline.operations_per_byte, peak / per_byte_rate
    reached = roofline.operations / timeline.device_ns * 1e-3
    low, high = min(intensity, ridge) / 8, max(intensity, ridge) * 8
    axes.plot([low, ridge, high], [low * per_byte_rate, peak, peak], color=INK, linewidth=1.4)
    bound = min(peak, intensity * per_byte_rate)
    axes.plot([intensity, intensity], [reached, bound], color=QUIET, linewidth=1, linestyle=":")
    axes.plot([intensity], [reached], marker="o", markersize=8, color="#b3261e")
    axes.annotate(
        f"{reached:.3g} Top/s\n{share_text(timeline.roofline_fraction)} of the bound",
        (intensity, reached), textcoords="offset points",
        xytext=(9, -4) if intensity < (low * high) ** 0.5 else (-9, -4),
        ha="left" if intensity < (low * high) ** 0.5 else "right", va="top", fontsize=8, color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
    )  # fmt: skip
    axes.text(high, peak * 1.12, f"{peak:.3g} Top/s", ha="right", va="bottom", fontsize=8, color=QUIET)
    slope = f"slope: {per_byte_rate * 1e3:.0f} GB/s of HBM"
    axes.text(0.02, 0.97, slope, ha="left", va="top", fontsize=8, color=QUIET, transform=axes.transAxes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(reached, low * per_byte_rate) / 6, peak * 3)
    axes.set_xlabel("arithmetic intensity (operations per HBM byte)", fontsize=9, color=QUIET)
    axes.set_ylabel("Top/s", fontsize=9, color=QUIET)
    _plain(axes)
    axes.grid(True, which="major", color=LINE, linewidth=0.5)


def _plain(axes: Any) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(axis="both", length=3, color=LINE, labelsize=8.5, labelcolor=QUIET)
    axes.tick_params(axis="y", length=0, labelcolor=INK)


def _unit(time_ns: float) -> tuple[float, str]:
    """(factor from nanoseconds, unit) for an axis that ends at `time_ns`."""
    if time_ns < 2000:
        return 1.0, "ns"
    return (1e-3, "µs") if time_ns < 2e6 else (1e-6, "ms")


assert set(LANE_NAMES) == set(LANES)
