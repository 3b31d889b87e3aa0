"""How a router's choices are compared: by expert, and not at all where a score is zero."""

from __future__ import annotations

import torch

from neuron_port.registry import data_folder, load_recipe

RECIPE = load_recipe(data_folder("recipes") / "moe_router").recipe
LOGITS_TE = torch.tensor([[4.0, 900.0, 1.0, 2.0]])


def compared(scores: list[float], experts: list[int]) -> list[list[float]]:
    """[scores, experts] of one token as the judge sees them."""
    results = RECIPE.comparable([LOGITS_TE, torch.tensor([scores]), torch.tensor([experts])])
    return [results[1][0].tolist(), results[2][0].tolist()]


def test_the_order_of_choices_does_not_matter():
    """The same experts in another order are the same choice; another expert is another."""
    assert compared([0.75, 0.25], [1, 3]) == compared([0.25, 0.75], [3, 1])
    assert compared([0.75, 0.25], [1, 3]) != compared([0.75, 0.25], [1, 2])


def test_experts_of_score_zero_are_alike():
    """Where softmax leaves nothing for the others, it is the same which of them is chosen; what it leaves counts."""
    assert compared([1.0, 0.0], [1, 0]) == compared([1.0, 0.0], [1, 3]) == [[0.0, 1.0], [-1, 1]]
    assert compared([1.0, 1e-6], [1, 0]) != compared([1.0, 1e-6], [1, 3])
