"""Choosing tokens: greedy, temperature, top_p, top_k, seeds, log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from neuron_port.serving.sampling import Sampling, choose, generator_of

PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def drawn(sampling: Sampling, count: int = 4000) -> np.ndarray:
    """How often each of four tokens was drawn, as shares."""
    random = np.random.default_rng(1)
    tokens = [choose(LOGITS, sampling, random).token for _ in range(count)]
    return np.bincount(tokens, minlength=4) / count


def test_temperature_zero_takes_the_likeliest() -> None:
    """Greedy is greedy, and the first of equals."""
    assert drawn(Sampling(temperature=0), 10)[0] == 1
    assert choose(np.ones(4, np.float32), Sampling(temperature=0), np.random.default_rng(0)).token == 0


def test_draws_follow_the_probabilities() -> None:
    """Temperature 1 draws as the model says; a lower one sharpens."""
    assert drawn(Sampling()) == pytest.approx(PROBABILITIES, abs=0.03)
    sharp = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert drawn(Sampling(temperature=0.5)) == pytest.approx(sharp, abs=0.03)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_p=0.75), {0, 1}),
        (Sampling(top_p=0.81), {0, 1, 2}),
        (Sampling(top_p=0.1), {0}),
        (Sampling(top_k=3, top_p=0.5), {0}),
    ],
)
def test_top_p_and_top_k_cut_the_tail(sampling: Sampling, allowed: set[int]) -> None:
    """Only tokens within both limits are ever drawn, and all of them are."""
    assert set(np.flatnonzero(drawn(sampling)).tolist()) == allowed


def test_tiny_temperatures_are_greedy() -> None:
    """A temperature next to zero overflows nowhere."""
    assert choose(LOGITS * 50, Sampling(temperature=1e-300), np.random.default_rng(0)).token == 0


def test_seeds_repeat_and_choices_differ() -> None:
    """The same seed gives the same tokens; the choices of one request are not copies of each other."""
    logits = np.zeros(1000, np.float32)

    def tokens(seed: int, choice: int) -> list[int]:
        sampling = Sampling(seed=seed)
        random = generator_of(sampling, choice)
        return [choose(logits, sampling, random).token for _ in range(5)]

    assert tokens(7, 0) == tokens(7, 0)
    assert tokens(7, 0) != tokens(7, 1)
    assert tokens(7, 0) != tokens(8, 0)


def test_logprobs_are_the_models_own() -> None:
    """They are told before temperature, largest first, and the chosen token's own beside them."""
    chosen = choose(LOGITS, Sampling(temperature=0, logprobs=2), np.random.default_rng(0))
    assert chosen.logprob == pytest.approx(np.log(0.5), abs=1e-5)
    assert [token for token, _ in chosen.alternatives] == [0, 1]
    assert choose(LOGITS, Sampling(temperature=0), np.random.default_rng(0)).logprob is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    """One NaN anywhere is found; nothing is made up in its place."""
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(ValueError, match="not finite"):
        choose(logits, Sampling(temperature=0), np.random.default_rng(0))
