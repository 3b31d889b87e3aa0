"""Embeddings as tables and pictures: each vector's cosine with transformers' own, its neighbour, all similarities.

`parity/embeddings.py` names the cases: "<sample> · <output> · cosine", and "all samples · <output> · ranking", whose
detail is a line of words and behind it the texts and similarities as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from neuron_port.report.cases import split_name
from neuron_port.types import CaseResult

_MOST_DIGITS = 9  # of a cosine
_MOST_PICTURED = 32  # samples; cells of more would be too small to see


@dataclass(frozen=True, kw_only=True)
class Square:
    """One pair of samples in the picture: column and row from 0, opacity 0 to 1, and the values in words."""

    column: int
    row: int
    opacity: float
    title: str


@dataclass(frozen=True, kw_only=True)
class EmbeddingRow:
    """One sample: what it is, its case, and the sample that is nearest to it by transformers and by the port."""

    sample: str
    text: str
    case: CaseResult
    neighbour: str
    reference_similarity: float | None
    ported_similarity: float | None


@dataclass(frozen=True, kw_only=True)
class EmbeddingTable:
    """One output in one dtype. `squares` shows the port above the diagonal and transformers below it."""

    output: str
    dtype: str
    rows: tuple[EmbeddingRow, ...]
    ranking: CaseResult | None
    words: str
    size: int
    squares: tuple[Square, ...]


@dataclass(frozen=True, kw_only=True)
class _Similarities:
    """What travels in a ranking's detail; the lists hold pairs (0,1), (0,2) .. (1,2) .."""

    texts: list[str]
    reference: list[float]
    ported: list[float]

    def place(self, first: int, second: int) -> int:
        """Where the pair stands in the lists."""
        first, second = sorted((first, second))
        return first * (2 * len(self.texts) - first - 1) // 2 + second - first - 1

    def nearest(self, index: int) -> int:
        """The sample that transformers finds nearest."""
        others = [other for other in range(len(self.texts)) if other != index]
        return max(others, key=lambda other: self.reference[self.place(index, other)])


def is_about_embeddings(case: CaseResult) -> bool:
    """Whether the case judges directions or rankings, and no distance."""
    return split_name(case.name).phase in ("cosine", "ranking")


def plain_detail(case: CaseResult) -> str:
    """The case's detail without what is only there to be drawn."""
    return case.detail.partition("\n")[0] if split_name(case.name).phase == "ranking" else case.detail


def cosine_text(distance: float) -> str:
    """A cosine with as many nines as count, never rounded up: 3.25e-5 from one is "0.999967"."""
    if not 0 < distance < 0.1:
        return f"{1 - distance:.3g}"
    digits = min(_MOST_DIGITS, math.ceil(-math.log10(distance)) + 1)
    return f"{math.floor((1 - distance) * 10**digits) / 10**digits:.{digits}f}"


def embedding_tables(cases: Sequence[CaseResult]) -> tuple[EmbeddingTable, ...]:
    """One table for each output and dtype that has directions."""
    groups: dict[tuple[str, str], list[CaseResult]] = {}
    rankings: dict[tuple[str, str], CaseResult] = {}
    for case in cases:
        name = split_name(case.name)
        if name.phase == "cosine":
            groups.setdefault((name.output, case.dtype), []).append(case)
        elif name.phase == "ranking":
            rankings[name.output, case.dtype] = case
    return tuple(
        _table(output, dtype, found, rankings.get((output, dtype)))
        for (output, dtype), found in groups.items()
    )


def _table(
    output: str, dtype: str, cases: Sequence[CaseResult], ranking: CaseResult | None
) -> EmbeddingTable:
    known = _similarities(ranking) if ranking else None
    rows = [
        _row(case, index, known if known and len(known.texts) == len(cases) else None)
        for index, case in enumerate(cases)
    ]
    size = len(known.texts) if known and len(known.texts) <= _MOST_PICTURED else 0
    return EmbeddingTable(
        output=output,
        dtype=dtype,
        rows=tuple(rows),
        ranking=ranking,
        words=plain_detail(ranking) if ranking else "",
        size=size,
        squares=_squares(known) if known and size else (),
    )


def _row(case: CaseResult, index: int, known: _Similarities | None) -> EmbeddingRow:
    sample = split_name(case.name).prompt
    if known is None:
        return EmbeddingRow(
            sample=sample, text=case.detail, case=case, neighbour="", reference_similarity=None, ported_similarity=None,
        )  # fmt: skip
    nearest = known.nearest(index)
    place = known.place(index, nearest)
    return EmbeddingRow(
        sample=sample,
        text=known.texts[index],
        case=case,
        neighbour=known.texts[nearest],
        reference_similarity=known.reference[place],
        ported_similarity=known.ported[place],
    )


def _similarities(ranking: CaseResult) -> _Similarities:
    fields = json.loads(ranking.detail.partition("\n")[2])
    return _Similarities(
        texts=fields["texts"],
        reference=fields["reference_similarities"],
        ported=fields["ported_similarities"],
    )


def _squares(known: _Similarities) -> tuple[Square, ...]:
    finite = [value for value in (*known.reference, *known.ported) if math.isfinite(value)]
    lowest, highest = min(finite, default=0.0), max(finite, default=1.0)
    squares = []
    for row in range(len(known.texts)):
        for column in range(len(known.texts)):
            if row == column:
                continue
            place = known.place(row, column)
            ours = column > row
            value = (known.ported if ours else known.reference)[place]
            share = (
                (value - lowest) / (highest - lowest) if highest > lowest and math.isfinite(value) else 0.0
            )
            pair = f"{min(row, column) + 1} and {max(row, column) + 1}"
            squares.append(
                Square(
                    column=column,
                    row=row,
                    opacity=round(0.06 + 0.94 * share, 3),
                    title=f"{'port' if ours else 'transformers'}: samples {pair}, similarity {value:.4f}",
                )
            )
    return tuple(squares)
