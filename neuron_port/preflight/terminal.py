"""The report of `check` in the terminal: the verdict, then tables. Every state is a word; colour only repeats it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from neuron_port.preflight.fitting import gib
from neuron_port.preflight.records import CheckReport, Finding, Share, Speed
from neuron_port.preflight.roofline import USABLE_SHARE
from neuron_port.preflight.verdict import PREDICTED, money, unit_of

_SEVERITY_STYLE = {"refused": "bold red", "contested": "yellow", "note": "dim"}


def report_text(report: CheckReport) -> RenderableType:
    """Everything that was found, the verdict first."""
    return Group(*_parts(report))


def _parts(report: CheckReport) -> Iterator[RenderableType]:
    yield _verdict(report)
    yield _section("model", _model(report))
    yield _section(
        f"memory of one core, batch {report.options.batch}, {report.context} tokens", _shares(report.shares)
    )
    yield _section(f"{report.options.target} instance types", _candidates(report))
    if report.speeds:
        yield _section(f"speed and price ({PREDICTED})", _speeds(report))
        yield Padding(_basis(report), (0, 0, 0, 2))
    yield _section("compiling", _compiling(report))
    yield _section("known to fail", _findings(report.findings))
    yield _section("what runs it", _support(report))
    if report.notes:
        yield _section("notes", Text("\n".join(f"- {note}" for note in report.notes)))
    yield Text(
        f"\n{report.cpu_seconds:.1f} s of processor time after imports, from the configuration alone",
        style="dim",
    )


def _verdict(report: CheckReport) -> RenderableType:
    """The sentence, its first words in colour."""
    words = "Fits" if report.fits else "Does not fit"
    text = Text(report.verdict)
    text.stylize("bold green" if report.fits else "bold red", 0, len(words))
    return text


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(f"\n{title}", style="bold"), Padding(body, (0, 0, 0, 2)))


LONGEST_TYPE = len("trn1n.32xlarge")


def _table(*columns: str) -> Table:
    """A plain table; a column whose name begins with `>` is aligned to the right, one with `!` is never cut."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for column in columns:
        name = column.lstrip(">!")
        table.add_column(
            name,
            justify="right" if column[0] == ">" else "left",
            no_wrap=column[0] == "!",
            min_width=LONGEST_TYPE if column[0] == "!" else max(map(len, name.split())),
        )
    return table


def billions(count: int) -> str:
    """`70.55 B`, `135.0 M`."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _model(report: CheckReport) -> RenderableType:
    found = report.anatomy
    parts = {
        "embedding and head": found.embedding,
        "attention and mixers": found.attention,
        "MLP": found.mlp,
        "experts": found.experts,
        "norms and other": found.other,
    }
    named = ", ".join(f"{name} {billions(count)}" for name, count in parts.items() if count)
    active = f"; {billions(found.active)} multiplied with for each token" if found.experts else ""
    states = (
        f"{report.state_bytes_per_token:,} bytes for each cached token of a sequence, {gib(report.state_bytes)} in all"
        if report.state_bytes_per_token
        else f"{gib(report.state_bytes)}, the same at every length"
        if report.state_bytes
        else "none"
    )
    lines = (
        f"{found.architecture} ({found.family}), {found.layers} blocks, licence {found.license or 'not known'}, "
        f"from {found.source}",
        f"{billions(found.total)} parameters{active}: {named}",
        f"weights {gib(report.weight_bytes)} in {report.options.weight_format}; states {states}",
    )
    return Text("\n".join(lines))


def _shares(shares: Sequence[Share]) -> RenderableType:
    table = _table(
        ">degree", ">weights", ">states", ">scratch", ">all", ">all-reduces a step", "listed by AWS"
    )
    for share in shares:
        table.add_row(
            str(share.degree),
            gib(share.weight_bytes),
            gib(share.state_bytes),
            gib(share.scratch_bytes),
            gib(share.total_bytes),
            str(share.all_reduces),
            "yes" if share.listed else "no",
        )
    return table


def _candidates(report: CheckReport) -> RenderableType:
    table = _table("!type", "runs it", ">degree", ">replicas", ">$/hour", ">sequences", "memory")
    for one in report.candidates:
        table.add_row(
            one.instance,
            Text("yes", style="green") if one.fits else Text("no", style="red"),
            str(one.degree or ""),
            str(one.replicas or ""),
            f"{one.usd_per_hour:,.2f}" if one.usd_per_hour is not None else "unknown",
            f"{one.room:,}" if one.room is not None else "",
            one.reason,
        )
    return table


def _speeds(report: CheckReport) -> RenderableType:
    encoder = report.anatomy.family == "encoder"
    rate, unit = ">inputs/s" if encoder else ">tokens/s", unit_of(report)
    table = _table(
        "!type",
        ">cores",
        rate,
        ">ms each",
        ">first ms",
        ">prompt k/s",
        f">$/M {unit}",
        f">J/{unit[:-1]}",
        ">price",
    )
    for one in report.speeds:
        table.add_row(*_speed_cells(one), style="bold" if one.kind == "neuron" else None)
    return table


def _speed_cells(one: Speed) -> tuple[str, ...]:
    main = one.items_per_second if one.items_per_second is not None else one.decode_tokens_per_second
    each = one.milliseconds_per_token
    return (
        one.instance,
        f"{one.replicas} x {one.degree}",
        f"{main or 0:,.0f}",
        f"{each:,.1f}" if each is not None else "",
        f"{one.first_token_milliseconds:,.0f}",
        f"{one.prefill_tokens_per_second / 1000:,.{0 if one.prefill_tokens_per_second >= 10_000 else 1}f}",
        money(one.usd_per_million_tokens) if one.usd_per_million_tokens is not None else "unknown",
        f"{one.joules_per_token:,.3g}" if one.joules_per_token is not None else "unknown",
        one.price.confidence,
    )


def _basis(report: CheckReport) -> RenderableType:
    """Where the columns come from, each source once."""
    speeds = {one.speed.source: one for one in report.speeds}
    prompt = f"first ms: a prompt of {max(1, report.context // 2)} tokens; " if report.state_bytes else ""
    lines = [
        f"{prompt}cores: replicas x degree, each replica at the asked batch; "
        "prompt k/s: thousands of prompt tokens per second",
        f"prices: on demand, {report.region}, {report.prices_date} unless marked low; --price TYPE=USD replaces one",
        "joules: published maximum of the accelerators alone, host and cooling not in it; AWS publishes none for "
        "Inferentia2 and Trainium",
    ]
    lines += [
        f"speed of {'GPUs' if one.kind == 'gpu' else one.instance.partition('.')[0]}: {one.speed.source} "
        f"(confidence {one.speed.confidence})"
        for one in speeds.values()
    ]
    return Text("\n".join(lines), style="dim")


def _compiling(report: CheckReport) -> RenderableType:
    host = report.compile_host
    price = f" at ${host.usd_per_hour:,.2f} per hour" if host.usd_per_hour is not None else ""
    own = f"; of the target's own: {', '.join(host.on_target)}" if host.on_target else ""
    return Text(
        f"neuronx-cc wants about {host.memory_gib} GiB of host memory: {host.instance}{price}{own}\n"
        f"usable device memory is taken as {USABLE_SHARE:.0%} of what there is\n"
        f"confidence {host.basis.confidence}: {host.basis.source}"
    )


def _findings(found: Sequence[Finding]) -> RenderableType:
    if not found:
        return Text("nothing that the documented error codes name")
    return Group(
        *(
            Text.assemble(
                (f"{one.severity:10s}", _SEVERITY_STYLE[one.severity]),
                (f"{one.code}  ", "bold"),
                f"{one.cause}\n          {one.cure}\n",
                (f"          {one.source}", "dim"),
            )
            for one in found
        )
    )


def _support(report: CheckReport) -> RenderableType:
    table = _table("framework", f"on {report.options.target}", "architecture")
    for one in report.support:
        table.add_row(one.framework, one.chip, one.architecture)
    return table
