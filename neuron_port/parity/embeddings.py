"""Proofs of embeddings: the direction of every vector, and the order of the similarities between them.

An embedding is made to be compared with others. So beside the distance of each output, which `model.py` judges, the
cosine of each vector with transformers' own is judged, and then whether any two similarities change places.
N = samples, D = length of a vector.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

import torch

from neuron_port.types import CaseResult, Tier

# The fields of an answer that hold one vector for each input; the first is what a checkpoint pools for itself.
SENTENCE_EMBEDDING = "sentence_embedding"
FIELDS = ("pooler_output", "text_embeds", "image_embeds", "embeddings")

COSINE_DISTANCE_LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}
SIMILARITY_NOISE_FLOAT32 = 1e-5  # two similarities nearer than this have no order
FEWEST_SAMPLES = 3  # of two samples there is one similarity, and no order


def embeddings_of(outputs: Collection[str]) -> tuple[str, ...]:
    """The outputs that are embeddings: the sentence's where the checkpoint says how it is made, else what there is."""
    if SENTENCE_EMBEDDING in outputs:
        return (SENTENCE_EMBEDDING,)
    return tuple(name for name in FIELDS if name in outputs)


def check_direction(
    name: str,
    ours: torch.Tensor,
    truth: torch.Tensor,
    baseline: torch.Tensor | None,
    *,
    dtype: torch.dtype,
    tier: Tier,
    text: str,
) -> CaseResult:
    """1 - cosine of one vector with the truth's.

    The limit is that of the dtype, or twice what transformers itself has in that dtype where that is more: models
    that lose their direction in 16 bit are not the port's fault.

    Args:
        name: "<sample> · <output>"; the case is that with " · cosine" behind.
        ours, truth, baseline: [1, D] (further axes of length one are allowed); baseline None in float32.
        text: what was embedded, for people.
    """
    metrics = {"cosine_distance": _cosine_distance(ours, truth)}
    distance, limit = metrics["cosine_distance"], COSINE_DISTANCE_LIMIT[dtype]
    if baseline is not None:
        metrics["reference_cosine_distance"] = _cosine_distance(baseline, truth)
        limit = max(limit, 2 * metrics["reference_cosine_distance"])
    return CaseResult(
        name=f"{name} · cosine",
        kind="captured",
        tier=tier,
        dtype=str(dtype).removeprefix("torch."),
        shapes=(tuple(ours.shape),),
        seed=None,
        metrics=metrics,
        limits={"cosine_distance": limit},
        passed=distance <= limit,  # false for nan
        detail=text if distance <= limit else f"the cosine is {1 - distance:.6f} for: {text}",
    )


def check_ranking(
    output: str,
    ours: torch.Tensor,
    truth: torch.Tensor,
    baseline: torch.Tensor | None,
    *,
    dtype: torch.dtype,
    tier: Tier,
    texts: Sequence[str],
) -> CaseResult:
    """Whether all similarities between samples stand in the same order as transformers' in float32.

    Two similarities are compared where they lie further apart than the noise: twice the largest change that
    transformers itself shows in the dtype, so that rounding alone cannot swap them. Without any such two the case
    has no limit, and is a measurement.

    Args:
        ours, truth, baseline: [N, D], N at least FEWEST_SAMPLES; baseline None in float32.
        texts: what was embedded, N of them. `detail` is a line of words, and behind it texts and similarities as JSON.
    """
    ported, reference = similarities(ours), similarities(truth)
    rounded = similarities(baseline) if baseline is not None else reference
    noise = max(SIMILARITY_NOISE_FLOAT32, 2 * (rounded - reference).abs().max().item())
    first, second = torch.triu_indices(len(reference), len(reference), offset=1)
    gap, own_gap = reference[first] - reference[second], ported[first] - ported[second]
    told_apart = gap.abs() > noise
    kept = gap * own_gap > 0  # false for nan
    compared = int(told_apart.sum())
    swapped = int((told_apart & ~kept).sum())
    metrics: dict[str, float] = {
        "swapped": swapped,
        "compared": compared,
        "within_noise": len(gap) - compared,
        "swapped_within_noise": int((~told_apart & ~kept & (gap != 0)).sum()),
        "noise": noise,
        "largest_change": (ported - reference).abs().max().item(),
    }
    if baseline is not None:
        metrics["reference_swapped"] = int(
            ((gap * (rounded[first] - rounded[second]) <= 0) & (gap != 0)).sum()
        )
    pictured: Mapping[str, object] = {
        "texts": list(texts),
        "reference_similarities": [round(value, 6) for value in reference.tolist()],
        "ported_similarities": [round(value, 6) for value in ported.tolist()],
    }
    return CaseResult(
        name=f"all samples · {output} · ranking",
        kind="captured",
        tier=tier,
        dtype=str(dtype).removeprefix("torch."),
        shapes=(tuple(ours.shape),),
        seed=None,
        metrics=metrics,
        limits={"swapped": 0.0} if compared else {},
        passed=swapped == 0 and bool(torch.isfinite(ported).all()),
        detail=f"{_ranking_words(len(reference), metrics)}\n{json.dumps(pictured)}",
    )


def _ranking_words(similarities: int, metrics: Mapping[str, float]) -> str:
    count = {
        name: int(metrics[name]) for name in ("compared", "swapped", "within_noise", "swapped_within_noise")
    }
    outcome = f"{count['swapped']} stand in another order" if count["swapped"] else "all keep their order"
    words = (
        f"{count['compared']} pairs of {similarities} similarities lie further apart than rounding can move them "
        f"({metrics['noise']:.1e}): {outcome}".replace("e-0", "e-")
    )
    if count["within_noise"]:
        words += f"; of {count['within_noise']} nearer ones {count['swapped_within_noise']} changed places"
        if "reference_swapped" in metrics:
            words += f" (in transformers' own 16 bit: {metrics['reference_swapped']:.0f})"
    return words


def similarities(vectors: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs of rows: [N, D] -> float64 [N (N-1) / 2], (0,1), (0,2) .. (1,2) .."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit[first] * unit[second]).sum(-1)


def _cosine_distance(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """1 - cosine, from the distance of the unit vectors: exact where the difference of two ones is not."""
    units = [torch.nn.functional.normalize(vector.double().flatten(), dim=0) for vector in (ours, truth)]
    return 0.5 * (units[0] - units[1]).square().sum().item()
