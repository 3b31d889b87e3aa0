"""How the probe draws a call's tensors, finds its weights, and makes large mixtures small."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuron_port.match import probe as probing
from neuron_port.match.probe import Drawing, bound_weights, materialize, random_parameters, with_few_experts
from neuron_port.types import WeightSource
from neuron_port.walk.calls import Call

SHAPE = (64, 6)


def draw(domain: str, like: torch.Tensor, scale: float = 1000.0) -> torch.Tensor:
    drawing = Drawing(
        generator=torch.Generator().manual_seed(1),
        scale=scale,
        vocabulary=8,
        shapes={},
        domains={id(like): domain},  # type: ignore[dict-item]
    )
    found: torch.Tensor = drawing.draw(like)
    return found


@pytest.mark.parametrize(
    ("domain", "low", "high"),
    [("positive", 0.0, 20.0), ("negative", -20.0, 0.0), ("decay", -20.0, 0.0), ("unit", 0.0, 1.0)],
)
def test_a_domain_bounds_values_and_ignores_the_scale(domain: str, low: float, high: float) -> None:
    """Time steps are positive, decays negative, shares between 0 and 1, at every input scale."""
    values = draw(domain, torch.empty(SHAPE))
    assert values.shape == SHAPE
    assert low <= values.min() < values.max() <= high
    assert values.std() > 0.1


def test_a_normal_tensor_has_the_scale() -> None:
    """What has no domain is multiplied by the scale of the probe."""
    assert 500 < draw("normal", torch.empty(SHAPE)).std() < 2000


def test_distinct_indices_do_not_repeat_in_a_row() -> None:
    """Indices of a top-k: each row holds different ones, below the number of rows of the table."""
    rows = draw("distinct", torch.empty(SHAPE, dtype=torch.int64))
    assert rows.dtype is torch.int64
    assert all(len(set(row)) == SHAPE[1] for row in rows.tolist())
    assert rows.max() < 8
    usual = draw("normal", torch.empty(SHAPE, dtype=torch.int64))
    assert any(len(set(row)) < SHAPE[1] for row in usual.tolist())


def test_a_buffer_may_be_a_weight() -> None:
    """Batch normalisation's running statistics are bound like parameters, and a variance is drawn positive."""
    module = materialize(
        torch.nn.BatchNorm2d(5, device="meta"), random_parameters(torch.Generator().manual_seed(2))
    )
    weights = bound_weights(
        module, {"mean": WeightSource(name="running_mean"), "variance": WeightSource(name="running_var")}
    )
    assert {role: tuple(tensor.shape) for role, tensor in weights.items()} == {"mean": (5,), "variance": (5,)}
    assert weights["mean"].std() > 0
    assert weights["variance"].min() > 0


def test_weights_are_permuted_as_their_source_says() -> None:
    """`permute:2,3,1,0` makes [K, K', C, O] of a convolution's [O, C, K, K']; "transpose" swaps the last two axes."""
    module = torch.nn.Conv2d(3, 4, (2, 5))
    sources = {
        "kernel": WeightSource(name="weight", transform="permute:2,3,1,0"),
        "swapped": WeightSource(name="weight", transform="transpose"),
    }
    weights = bound_weights(module, sources)
    assert weights["kernel"].shape == (2, 5, 3, 4)
    assert weights["kernel"][1, 4, 2, 3] == module.weight[3, 2, 1, 4]
    assert weights["swapped"].shape == (4, 3, 5, 2)


class Experts(torch.nn.Module):
    """Two three-dimensional weights of one first axis, as transformers keeps experts."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_experts = count
        self.hidden_dim = 4
        self.up = torch.nn.Parameter(torch.randn(count, 4, 6))
        self.down = torch.nn.Parameter(torch.randn(count, 6, 4))
        self.bias = torch.nn.Parameter(torch.randn(count, 6))


def call_of(module: torch.nn.Module) -> Call:
    return Call(
        name="experts",
        operation="module",
        module=module,
        owner="Experts",
        function=module.forward,
        args=(),
        kwargs={},
    )


def test_a_large_mixture_is_probed_with_few_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen experts of many, their number told everywhere; the model's own module stays whole."""
    monkeypatch.setattr(probing, "FEW_EXPERTS_ABOVE_BYTES", 1000)
    module = Experts(40)
    few: Any = with_few_experts(call_of(module)).module
    assert few.num_experts == 16
    assert [tuple(tensor.shape) for tensor in few.parameters()] == [(16, 4, 6), (16, 6, 4), (16, 6)]
    assert torch.equal(few.down, module.down[:16])
    assert few.hidden_dim == 4
    assert (module.num_experts, module.up.shape[0]) == (40, 40)


def test_a_small_mixture_and_any_other_module_stay_as_they_are() -> None:
    """Below the limit nothing is cut, and a projection is no mixture however large it is."""
    small = call_of(Experts(40))
    assert with_few_experts(small) is small
    large = call_of(torch.nn.Linear(2**15, 2**15, device="meta"))
    assert with_few_experts(large) is large
