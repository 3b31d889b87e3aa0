"""The rows as tables: architectures by recipes, what is covered, what is left and why, and the totals over the zoo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from rich import box
from rich.table import Table

from neuron_port.report.numbers import metric_text, share_text

from .record import Left, Row

_NOT_COVERED = "compiler"


def matrix(rows: Sequence[Row]) -> Iterator[Table]:
    """A table for each family: how many layers of an architecture each recipe serves. Empty columns are left out."""
    for family, found in groupby((row for row in rows if row.failure is None), key=lambda row: row.family):
        members = list(found)
        used = sorted({name for row in members for name in row.recipes})
        shown = Table(title=family, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        shown.add_column("layers served by", no_wrap=True, vertical="bottom")
        for name in (*used, _NOT_COVERED):
            shown.add_column("\n".join(name), justify="right", no_wrap=True, vertical="bottom")
        for row in members:
            counts = [row.recipes.get(name, 0) for name in used]
            left = row.total("layers") - row.total("kernel_layers")
            shown.add_row(row.name, *(str(count) if count else "" for count in (*counts, left)))
        yield shown


def coverage_table(rows: Sequence[Row]) -> Table:
    """What kernels take of each architecture, over all of its graphs; with conversions, what they proved."""
    converted = any(row.converted for row in rows)
    shown = Table(box=box.MARKDOWN)
    for heading in ("architecture", "layers", "in kernels", "FLOPs", "between layers", "bytes", "unused"):
        shown.add_column(heading, justify="left" if heading == "architecture" else "right", no_wrap=True)
    for heading in ("proofs 1, 2, 3", "worst float32 error") if converted else ():
        shown.add_column(heading, overflow="fold")
    for row in rows:
        conversion = _conversion_cells(row) if converted else ()
        if row.failure is not None:
            shown.add_row(row.name, "–", "failed", "–", "–", "–", "–", *conversion)
            continue
        flops = row.total("flops")
        shown.add_row(
            row.name,
            str(row.total("layers")),
            "all" if row.share("layers") == 1 else str(row.total("kernel_layers")),
            share_text(row.share("flops")),
            share_text(row.total("between_flops") / flops if flops else 0.0),
            share_text(row.share("bytes")),
            str(len(row.unused_parameters)),
            *conversion,
        )
    return shown


def _conversion_cells(row: Row) -> tuple[str, str]:
    found = row.converted
    if found is None:
        return "not run", "–"
    worst = "–" if found.worst_float32 is None else metric_text(found.worst_float32)
    return ", ".join(found.proofs) or found.state, worst


@dataclass(kw_only=True)
class LeftOver:
    """Layers of one kind that are left for one reason, over the zoo."""

    layers: list[tuple[Row, Left]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(left.count for _, left in self.layers)

    @property
    def architectures(self) -> list[str]:
        return list(dict.fromkeys(row.name for row, _ in self.layers))


def left_over(rows: Sequence[Row]) -> list[LeftOver]:
    """What is left to the compiler, equal kinds and reasons together, most frequent first."""
    found: dict[tuple[str, str], LeftOver] = {}
    for row in rows:
        for left in row.left:
            found.setdefault((left.kind, _without_numbers(left.reason)), LeftOver()).layers.append(
                (row, left)
            )
    return sorted(found.values(), key=lambda one: -one.count)


def _without_numbers(reason: str) -> str:
    """The reason up to its figures: the same refusal has another difference for every shape."""
    return "; ".join(part.split(": ")[0] for part in reason.split("; "))


def left_table(rows: Sequence[Row]) -> Table:
    """What is left to the compiler over the zoo, most frequent first, with the reason and what would cover it."""
    shown = Table(box=box.MARKDOWN)
    shown.add_column("layers", justify="right", no_wrap=True)
    shown.add_column("kind", overflow="fold")
    shown.add_column("in", overflow="fold")
    shown.add_column("reason, and what would cover it", ratio=1, overflow="fold")
    for one in left_over(rows):
        first = one.layers[0][1]
        names = one.architectures
        where = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        shown.add_row(str(one.count), first.kind, where, f"{first.reason} ({first.inputs}). {first.cure}")
    return shown


def totals(rows: Sequence[Row]) -> list[str]:
    """Sentences over all rows. Absolute FLOPs of tiny models say little: every architecture counts as much as any."""
    measured = [row for row in rows if row.failure is None]
    if not measured:
        return [f"None of {len(rows)} architectures was measured."]
    layers = sum(row.total("layers") for row in measured)
    in_kernels = sum(row.total("kernel_layers") for row in measured)
    covered = [row for row in measured if row.covered]
    sentences = [
        f"{len(measured)} of {len(rows)} architectures measured.",
        f"Layers in kernels: {in_kernels} of {layers}, {share_text(in_kernels / layers)}; "
        f"{share_text(_mean(measured, 'layers'))} as the mean over architectures.",
        f"FLOPs in kernels: {share_text(_mean(measured, 'flops'))} as the mean over architectures; "
        f"{share_text(_pooled(measured, 'flops'))} of all.",
        f"Bytes in kernels: {share_text(_mean(measured, 'bytes'))} as the mean over architectures; "
        f"{share_text(_pooled(measured, 'bytes'))} of all.",
        f"Fully covered: {len(covered)} of {len(rows)} architectures (every layer in a kernel, every parameter used).",
    ]
    return [*sentences, *_conversions(rows)]


def _conversions(rows: Sequence[Row]) -> list[str]:
    found = [row.converted for row in rows if row.converted is not None]
    if not found:
        return []
    proven = sum(one.state == "passed" for one in found)
    worst = max((one.worst_float32 for one in found if one.worst_float32 is not None), default=None)
    error = "" if worst is None else f"; worst error of a whole model in float32: {metric_text(worst)}"
    return [f"Conversions whose three proofs hold: {proven} of {len(found)}{error}."]


def _mean(rows: Sequence[Row], what: str) -> float:
    return sum(row.share(what) for row in rows) / len(rows)


def _pooled(rows: Sequence[Row], what: str) -> float:
    whole = sum(row.total("hbm_bytes" if what == "bytes" else what) for row in rows)
    return sum(row.total(f"kernel_{what}") for row in rows) / whole if whole else 1.0
