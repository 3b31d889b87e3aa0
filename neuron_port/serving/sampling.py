"""Chooses the next token from logits, on the host.  V = vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuron_port.serving.backends import Floats


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 leave the distribution whole."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    logprobs: int | None = None  # how many alternatives are told with each token; None: nothing is told


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A token with the logarithm of its probability, and the most probable alternatives, if they were asked for."""

    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


def generator_of(sampling: Sampling, choice: int) -> np.random.Generator:
    """The source of randomness of one choice: equal seeds give equal texts, choices of one request differ."""
    return np.random.default_rng(None if sampling.seed is None else [sampling.seed, choice])


def choose(logits_V: Floats, sampling: Sampling, random: np.random.Generator) -> Chosen:
    """The next token.

    Log-probabilities are those of the model, before temperature, top_k and top_p.

    Raises: ValueError when the logits hold no finite maximum: the model's answer cannot be used.
    """
    greedy = int(np.argmax(logits_V))  # of NaN the first, so that looking at one value finds any
    if not np.isfinite(logits_V[greedy]):
        raise ValueError(f"the model's logits are not finite: {logits_V[greedy]}")
    token = greedy if sampling.temperature == 0 else _draw(logits_V, sampling, random)
    if sampling.logprobs is None:
        return Chosen(token=token)
    logprobs_V = log_softmax(logits_V)
    best = _largest(logprobs_V, sampling.logprobs)
    return Chosen(
        token=token,
        logprob=float(logprobs_V[token]),
        alternatives=tuple((int(index), float(logprobs_V[index])) for index in best),
    )


def log_softmax(logits_V: Floats) -> Floats:
    """Logarithms of probabilities, in float32 as the logits are."""
    shifted = logits_V - logits_V.max()
    result: Floats = shifted - np.log(np.exp(shifted).sum())
    return result


def _draw(logits_V: Floats, sampling: Sampling, random: np.random.Generator) -> int:
    """A token drawn after temperature, then top_k, then top_p."""
    whole = not sampling.top_k and sampling.top_p >= 1
    candidates = np.arange(logits_V.size) if whole else _largest(logits_V, sampling.top_k or logits_V.size)
    below = (
        logits_V[candidates].astype(np.float64) - logits_V.max()
    )  # at most 0, so that nothing overflows upwards
    with np.errstate(over="ignore"):
        weights = np.exp(below / sampling.temperature)
    weights /= weights.sum()
    if sampling.top_p < 1:
        # The smallest set whose probability reaches top_p: all before the one that crosses it, and that one.
        kept = int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1
        candidates, weights = candidates[:kept], weights[:kept] / weights[:kept].sum()
    drawn = int(np.searchsorted(np.cumsum(weights), random.random(), side="right"))
    return int(candidates[min(drawn, len(candidates) - 1)])


def _largest(values: Floats, count: int) -> np.ndarray:
    """Indices of the `count` largest values, largest first."""
    count = min(count, values.size)
    if count == 0:
        return np.zeros(0, np.int64)
    found = np.argpartition(-values, count - 1)[:count] if count < values.size else np.arange(values.size)
    return found[np.argsort(-values[found], kind="stable")]
