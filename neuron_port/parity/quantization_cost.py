"""What quantised weights cost: how far the quantised model's answers are from the unquantised model's.

No proof: a proof asks whether kernels and graphs compute what the quantised model says, and that is exact logic. This
asks what the quantised model is worth, and has no limit: whoever converts decides. Both models run in float32 by
transformers on the CPU, so that nothing but the weights differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

MetricValues = dict[str, float]


def logits_cost(reference_LV: torch.Tensor, quantized_LV: torch.Tensor) -> MetricValues:
    """Distances between two models' predictions of the same tokens, over L places and a vocabulary of V.

    Returns: `kl_mean` and `kl_max`, the Kullback-Leibler divergence of the quantised distribution from the reference in
    nats; `top1_agreement`, the share of places where the likeliest token is the same.
    """
    reference = torch.log_softmax(reference_LV.double(), -1)
    quantized = torch.log_softmax(quantized_LV.double(), -1)
    divergence_L = (reference.exp() * (reference - quantized)).sum(-1).clamp_min(0)
    same_L = reference_LV.argmax(-1) == quantized_LV.argmax(-1)
    return {
        "kl_mean": divergence_L.mean().item(),
        "kl_max": divergence_L.max().item(),
        "top1_agreement": same_L.double().mean().item(),
    }


def perplexity(logits_LV: torch.Tensor, tokens: Sequence[int]) -> float:
    """exp of the mean surprise at each token after the first; `logits_LV[n]` precede `tokens[n + 1]`.

    Raises: ValueError for fewer than two tokens, which surprise nobody.
    """
    if len(tokens) < 2:
        raise ValueError("perplexity needs two tokens or more")
    log_probabilities = torch.log_softmax(logits_LV[: len(tokens) - 1].double(), -1)
    chosen = log_probabilities.gather(1, torch.tensor(tokens[1:])[:, None])
    return math.exp(-chosen.mean().item())


def greedy_cost(reference: Sequence[int], quantized: Sequence[int]) -> MetricValues:
    """How many greedy tokens come before the first that differs, of how many."""
    pairs = enumerate(zip(reference, quantized, strict=True))
    equal = next((number for number, (a, b) in pairs if a != b), len(reference))
    return {"equal_greedy_tokens": float(equal), "greedy_tokens": float(len(reference))}


def outputs_cost(
    reference: Mapping[str, torch.Tensor], quantized: Mapping[str, torch.Tensor]
) -> MetricValues:
    """Of models that answer in one pass: relative error (2-norm) and cosine of the output that suffers most."""
    found = []
    for name, expected in reference.items():
        own, other = quantized[name].double().flatten(), expected.double().flatten()
        size = other.norm().item()
        if size == 0:
            continue
        cosine = (own @ other).item() / max(own.norm().item() * size, torch.finfo(torch.float64).tiny)
        found.append(((own - other).norm().item() / size, cosine))
    worst = max(found, default=(0.0, 1.0))
    return {"relative_error": worst[0], "cosine": worst[1]}
