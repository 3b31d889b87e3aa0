"""What proofs 2 and 3 found, in a sentence for each dtype: how far from transformers, and how many tokens agree."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_port.report.cases import Margin, by_dtype, is_pooled, margins, unit_of
from neuron_port.report.continuations import Continuation, continuation
from neuron_port.report.embeddings import cosine_text
from neuron_port.report.numbers import metric_text
from neuron_port.types import CaseResult, ParityReport

_TOKEN_METRIC = "different_tokens"  # not told by itself: the count of equal prompts says it


def graph_essentials(reports: Sequence[ParityReport]) -> tuple[str, ...]:
    """One sentence for each dtype: "float32: all outputs within 1.2e-5 of transformers ..."."""
    return _essentials(reports, "all outputs")


def model_essentials(reports: Sequence[ParityReport]) -> tuple[str, ...]:
    """One sentence for each dtype: "float32: 6 prompts × 24 greedy tokens identical ..."."""
    cases = [case for report in reports for case in report.cases]
    return _essentials(reports, "logits" if unit_of(cases) == "prompt" else "all outputs")


def _essentials(reports: Sequence[ParityReport], outputs: str) -> tuple[str, ...]:
    groups = by_dtype(case for report in reports for case in report.cases)
    sentences = []
    for dtype, cases in groups.items():
        texts = [text for case in cases if (text := continuation(case.detail))]
        parts = [*([_tokens(texts)] if texts else []), *_distances(cases, outputs)]
        if parts:
            sentences.append(f"{dtype}: {', '.join(parts)}")
    return tuple(sentences)


def _tokens(texts: Sequence[Continuation]) -> str:
    """How many prompts have equal tokens: "6 prompts × 24 greedy tokens identical"."""
    same = [text for text in texts if text.first_difference is None]
    lengths = {text.reference_tokens for text in texts}
    tokens = f"× {lengths.pop()} greedy tokens" if len(lengths) == 1 else "with all their greedy tokens"
    if len(same) == len(texts):
        return f"{len(texts)} {'prompt' if len(texts) == 1 else 'prompts'} {tokens} identical"
    return f"{len(same)} of {len(texts)} prompts {tokens} identical"


def _distances(cases: Sequence[CaseResult], outputs: str) -> list[str]:
    """For each limited metric, the value that comes closest to its limit."""
    worst: dict[str, tuple[Margin, bool]] = {}
    for case in cases:
        for found in margins(case):
            known = worst.get(found.metric)
            if known is None or found.share > known[0].share:
                worst[found.metric] = (found, is_pooled(case))
    unit = unit_of(cases)
    return [
        _distance(found, f" over all {unit}s" if pooled else "", outputs)
        for metric, (found, pooled) in worst.items()
        if metric != _TOKEN_METRIC
    ]


def _distance(found: Margin, scope: str, outputs: str) -> str:
    if found.metric == "cosine_distance":
        return f"embeddings' cosine at least {cosine_text(found.value)} (limit {1 - found.limit:g})"
    if found.metric == "swapped":
        return (
            "the order of their similarities unchanged"
            if found.value == 0
            else (f"{metric_text(found.value)} pairs of their similarities in another order")
        )
    measured, allowed = metric_text(found.value), f"limit {metric_text(found.limit)}"
    if found.metric == "relative_max":
        return f"{outputs} within {measured} of transformers, relative to the largest values ({allowed})"
    if found.metric == "r_ratio":
        return f"R-ratio at most {measured}{scope} ({allowed})"
    return f"{found.metric} at most {measured} ({allowed})"
