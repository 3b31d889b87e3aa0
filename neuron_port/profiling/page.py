"""The profile as one HTML file: no network, both colour schemes, a timeline to zoom in, the source with its heat.

All texts and tables are in the file and readable without the script, which only draws the timeline. Names and source
come from strangers' kernels: everything is escaped, and the page allows nothing but its own style and script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import string
from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path

from neuron_port.profiling.by_line import LineUse
from neuron_port.profiling.colours import colours_of
from neuron_port.profiling.files import written_whole
from neuron_port.profiling.page_data import page_data
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
from neuron_port.simulator.timing.timeline import Timeline

AROUND = 4  # lines of source shown around those that issue instructions
SHOWN_LINES = 25


def write_page(profile: Profile, path: Path) -> None:
    """Write the page to `path`, wholly or not at all."""
    with written_whole(path) as aside:
        aside.write_text(render(profile), encoding="utf-8")


def render(profile: Profile) -> str:
    """The page's HTML."""
    style, script = _asset("page.css"), _asset("page.js")
    data = json.dumps(page_data(profile), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    timeline = profile.timeline
    return string.Template(_asset("page.html")).substitute(
        style_digest=_digest(style),
        script_digest=_digest(script),
        style=style,
        script=script,
        data=data,
        kernel=escape(profile.kernel),
        target=escape(timeline.target),
        headline=escape(_sentence(headline(timeline))).replace(" %", "&nbsp;%"),
        figures="".join(_figures(profile)),
        legend="".join(_legend(profile)),
        advice="".join(_advice(profile))
        or "<p>Nothing: no rule found anything worth a hundredth of the time.</p>",
        lines="".join(_lines(profile)),
        source="".join(_source(profile)),
        lanes="".join(_lanes(timeline)),
        roofline=_roofline(timeline),
        memory="".join(_memory(profile)),
        warnings="".join(f"<li>{escape(text)}</li>" for text in profile.warnings) or "<li>None.</li>",
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _figures(profile: Profile) -> Iterable[str]:
    """The figures of the head: name, value, what it is made of."""
    timeline = profile.timeline
    roofline = timeline.roofline
    sbuf, psum = profile.memory
    exposed = sum(use.exposed_ns for use in timeline.lanes)
    rows = [
        ("device time", time_text(timeline.device_ns), f"{time_text(timeline.in_order_ns)} in strict program order"),
        ("call latency", time_text(timeline.latency_ns), f"{time_text(timeline.overhead_ns)} to start and end a kernel"),
        ("roofline", share_text(timeline.roofline_fraction), f"{time_text(roofline.bound_ns)}, {roofline.bound} bound"),
        ("one engine alone", time_text(exposed), f"{share_text(profile.share(exposed))} of the time nothing overlaps"),
        ("HBM traffic", bytes_text(roofline.hbm_bytes), f"{roofline.operations_per_byte:.1f} operations per byte"),
        ("SBUF peak", bytes_text(sbuf.used), f"per partition, of {bytes_text(sbuf.capacity)}"),
        ("PSUM peak", counted(psum.used, "bank"), f"of {psum.capacity}"),
        ("energy proxy", energy_text(timeline.energy.total_pj), "to compare variants by"),
    ]  # fmt: skip
    for name, value, made_of in rows:
        yield f"<div><dt>{name}</dt><dd><b>{escape(value)}</b><span>{escape(made_of)}</span></dd></div>"


def _legend(profile: Profile) -> Iterable[str]:
    for opcode, colour in colours_of(profile.timeline.scheduled).items():
        yield f'<li><svg><rect width="10" height="10" fill="{colour}"/></svg>{escape(opcode)}</li>'


def _advice(profile: Profile) -> Iterable[str]:
    for advice in profile.advice:
        place = next((use.place for use in profile.lines if use.location == advice.location), None)
        link = f'<a href="#{_anchor(*place)}">{escape(_short(advice.location))}</a>' if place else escape(
            _short(advice.location)
        )  # fmt: skip
        yield (
            f'<li><p class="gain"><b>{escape(time_text(advice.gain_ns))}</b>'
            f"<span>{escape(share_text(profile.share(advice.gain_ns)))}</span></p>"
            f"<div><p><b>{escape(advice.change)}</b></p><p>{escape(advice.measured)}</p>"
            f'<p class="quiet">{link} · {escape(advice.rule)} · {escape(advice.source)}</p></div></li>'
        )


def _lines(profile: Profile) -> Iterable[str]:
    for use in profile.lines[:SHOWN_LINES]:
        share = profile.share(use.critical_ns)
        busy = ", ".join(f"{LANE_NAMES[lane]} {time_text(time)}" for lane, time in use.busy_ns.items())
        yield (
            f'<tr><th scope="row"><a href="#{_anchor(*use.place)}">{escape(_short(use.location))}</a></th>'
            f'<td class="n">{use.count:,}</td><td class="n">{escape(time_text(use.critical_ns))}</td>'
            f'<td class="n strong">{escape(share_text(share))}</td><td>{_bar(share)}</td>'
            f'<td>{escape(busy)}</td><td class="code">{escape(use.text)}</td></tr>'
        )


def _bar(share: float) -> str:
    fill = f'<rect class="fill" width="{share * 100:.2f}%" height="100%"/>'
    return f'<svg class="bar"><rect class="track" width="100%" height="100%"/>{fill}</svg>'


def _short(location: str) -> str:
    return location.rpartition("/")[2]


def _anchor(file: str, line: int) -> str:
    return f"L{hashlib.sha256(file.encode()).hexdigest()[:6]}-{line}"


# Source


def _source(profile: Profile) -> Iterable[str]:
    """Every file that issues instructions: its lines with share of the time and busy time; far lines are left out."""
    by_place = {use.place: use for use in profile.lines}
    numbers = {use.place: number for number, use in enumerate(profile.lines)}
    most = max((use.critical_ns for use in profile.lines), default=0.0) or 1.0
    for file, text in profile.sources.items():
        used = {line for of_file, line in by_place if of_file == file}
        yield f'<h3 class="code">{escape(file)}</h3><div class="scroll"><table class="source"><tbody>'
        before = 0
        for number, code in enumerate(text, start=1):
            if all(abs(number - line) > AROUND for line in used):
                continue
            if number != before + 1:
                yield '<tr class="gap"><td colspan="4">⋯</td></tr>'
            before = number
            yield _source_row(profile, file, number, code, by_place.get((file, number)), numbers, most)
        yield "</tbody></table></div>"


def _source_row(
    profile: Profile,
    file: str,
    number: int,
    code: str,
    use: LineUse | None,
    numbers: dict[tuple[str, int], int],
    most: float,
) -> str:
    anchor = _anchor(file, number)
    if use is None:
        cells = f'<td class="n quiet">{number}</td><td></td><td></td><td class="code">{escape(code)}</td>'
        return f'<tr id="{anchor}">{cells}</tr>'
    heat = math.sqrt(use.critical_ns / most)
    share = share_text(profile.share(use.critical_ns)) if use.critical_ns else ""
    return (
        f'<tr id="{anchor}" class="hot heat{round(heat * 5)}" data-place="{numbers[use.place]}">'
        f'<td class="n">{number}</td><td class="n">{escape(share)}</td>'
        f'<td class="n quiet">{use.count:,} × {escape(time_text(use.total_busy_ns / use.count))}</td>'
        f'<td class="code">{escape(code)}</td></tr>'
    )


# Engines, roofline, memory


def _lanes(timeline: Timeline) -> Iterable[str]:
    for use in timeline.lanes:
        core = f", core {use.core}" if timeline.cores > 1 else ""
        yield (
            f'<tr><th scope="row">{LANE_NAMES[use.lane]}{core}</th><td class="n">{use.instructions:,}</td>'
            f'<td class="n">{escape(time_text(use.busy_ns))}</td>'
            f'<td class="n strong">{escape(share_text(use.utilisation))}</td>'
            f'<td>{_bar(use.utilisation)}</td><td class="n">{escape(time_text(use.exposed_ns))}</td></tr>'
        )


def _memory(profile: Profile) -> Iterable[str]:
    for peak in profile.memory:
        share = peak.used / peak.capacity
        tiles = ", ".join(f"{escape(tile.name)} {tile.used:,}" for tile in peak.tiles[:8])
        more = f" and {len(peak.tiles) - 8} more" if len(peak.tiles) > 8 else ""
        where = f"at {escape(_short(peak.location))}: {tiles}{more}" if peak.used else ""
        yield (
            f'<tr><th scope="row">{peak.memory}</th>'
            f'<td class="n">{peak.used:,} of {peak.capacity:,} {peak.unit}</td>'
            f'<td class="n strong">{escape(share_text(share))}</td><td>{_bar(share)}</td></tr>'
            f'<tr><td></td><td class="quiet" colspan="3">{where}</td></tr>'
        )


def _roofline(timeline: Timeline) -> str:
    """The roofline as SVG, 520 x 250: both axes logarithmic."""
    roofline = timeline.roofline
    if roofline.operations_per_byte <= 0 or roofline.memory_ns <= 0 or timeline.device_ns <= 0:
        return "<p>No HBM traffic or no arithmetic: there is no roofline.</p>"
    peak, rate = roofs(roofline)
    ridge, intensity = peak / rate, roofline.operations_per_byte
    reached = roofline.operations / timeline.device_ns * 1e-3
    low, high = min(intensity, ridge) / 8, max(intensity, ridge) * 8
    bottom, top = min(reached, low * rate) / 4, peak * 3

    def across(value: float) -> float:
        return round(56 + 450 * math.log(value / low) / math.log(high / low), 1)

    def up(value: float) -> float:
        return round(214 - 200 * math.log(value / bottom) / math.log(top / bottom), 1)

    ticks_x = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    ticks_y = [10.0**power for power in range(math.ceil(math.log10(bottom)), math.floor(math.log10(top)) + 1)]
    x, y = across(intensity), up(reached)
    bound = up(min(peak, intensity * rate))
    side = "start" if x < 300 else "end"
    shift = 10 if x < 300 else -10
    parts = [
        *(_tick(f"M{across(tick)} 14V214", across(tick), 229, "middle", tick) for tick in ticks_x),
        *(_tick(f"M56 {up(tick)}H506", 50, up(tick) + 4, "end", tick) for tick in ticks_y),
        f'<path class="roof" d="M{across(low)} {up(low * rate)}L{across(ridge)} {up(peak)}H{across(high)}"/>',
        f'<text x="504" y="{up(peak) - 6}" text-anchor="end">{peak:.3g} Top/s</text>',
        f'<text x="62" y="24">slope: {rate * 1e3:.0f} GB/s of HBM</text>',
        f'<path class="drop" d="M{x} {y}V{bound}"/><circle cx="{x}" cy="{y}" r="5"/>',
        f'<text class="strong" x="{x + shift}" y="{y + 16}" text-anchor="{side}">{reached:.3g} Top/s, '
        f"{share_text(timeline.roofline_fraction)}</text>",
        '<text x="281" y="247" text-anchor="middle">arithmetic intensity (operations per HBM byte)</text>',
        '<text x="14" y="114" text-anchor="middle" transform="rotate(-90 14 114)">Top/s</text>',
    ]  # fmt: skip
    return (
        f'<svg class="roofline" viewBox="0 0 520 252" role="img" aria-label="Roofline">{"".join(parts)}</svg>'
    )


def _tick(line: str, x: float, y: float, anchor: str, value: float) -> str:
    return f'<path class="grid" d="{line}"/><text x="{x}" y="{y}" text-anchor="{anchor}">{value:g}</text>'
