"""Distances between a quantised model's answers and the unquantised model's, on values known by hand."""

from __future__ import annotations

import math

import pytest
import torch

from neuron_port.parity.quantization_cost import greedy_cost, logits_cost, outputs_cost, perplexity


def test_equal_logits_cost_nothing() -> None:
    """The same predictions, or the same plus a constant, are no distance apart."""
    logits = torch.randn(5, 7)
    for other in (logits, logits + 3):
        cost = logits_cost(logits, other)
        assert cost["kl_max"] == pytest.approx(0, abs=1e-12)
        assert cost["top1_agreement"] == 1


def test_divergence_by_hand() -> None:
    """KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln(3/2) + 1/4 ln(1/2); the other place is equal."""
    reference = torch.tensor([[0.75, 0.25], [0.9, 0.1]]).log()
    quantized = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    cost = logits_cost(reference, quantized)
    assert cost["kl_max"] == pytest.approx(expected, rel=1e-6)
    assert cost["kl_mean"] == pytest.approx(expected / 2, rel=1e-6)


def test_another_likeliest_token_is_counted() -> None:
    """One of four places where the likeliest token differs is an agreement of three quarters."""
    reference = torch.eye(4)
    quantized = reference.clone()
    quantized[2] = torch.tensor([0.0, 2.0, 1.0, 0.0])
    assert logits_cost(reference, quantized)["top1_agreement"] == 0.75


def test_perplexity_of_ignorance() -> None:
    """A model that finds every token equally likely has the vocabulary's size as perplexity."""
    assert perplexity(torch.zeros(4, 11), [1, 2, 3, 4]) == pytest.approx(11)


def test_perplexity_looks_one_token_ahead() -> None:
    """Logits at a place predict the next token: certainty about it is a perplexity of one, about its own is not."""
    tokens = [0, 1, 2, 0]
    ahead, behind = torch.full((4, 3), -50.0), torch.full((4, 3), -50.0)
    for place in range(3):
        ahead[place, tokens[place + 1]] = 50
        behind[place, tokens[place]] = 50
    assert perplexity(ahead, tokens) == pytest.approx(1)
    assert perplexity(behind, tokens) > 1e6


def test_perplexity_of_one_token_is_refused() -> None:
    """One token is predicted by nothing."""
    with pytest.raises(ValueError, match="two tokens"):
        perplexity(torch.zeros(1, 3), [1])


def test_greedy_tokens_up_to_the_first_difference() -> None:
    """Tokens that agree again after a difference do not count: they continue another text."""
    assert greedy_cost([1, 2, 3, 4], [1, 2, 9, 4]) == {"equal_greedy_tokens": 2, "greedy_tokens": 4}
    assert greedy_cost([1, 2], [1, 2])["equal_greedy_tokens"] == 2


def test_the_worst_output_counts() -> None:
    """Of several outputs the one that is furthest off is told."""
    reference = {"first": torch.tensor([3.0, 4.0]), "second": torch.tensor([1.0, 0.0])}
    quantized = {"first": torch.tensor([3.0, 4.0]), "second": torch.tensor([1.0, 0.5])}
    cost = outputs_cost(reference, quantized)
    assert cost["relative_error"] == pytest.approx(0.5)
    assert cost["cosine"] == pytest.approx(1 / math.sqrt(1.25))
