"""What is special about global_response_norm: transformers' own layer is taken, in either role, and near ones are not."""

from __future__ import annotations

import pytest
import torch
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN

from neuron_port.match.probe import RELATIVE_LIMIT, probe
from neuron_port.registry import data_folder, load_recipe
from neuron_port.walk.calls import Call

FOUND = load_recipe(data_folder("recipes") / "global_response_norm")


class MeanFreeNorm(ConvNextV2GRN):
    """The same without the residual: nothing but the numbers tells it apart."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) - hidden_states


def worst_differences(module: torch.nn.Module, shape: tuple[int, ...]) -> list[float]:
    """Of each binding, the largest difference at any scale."""
    args = (torch.zeros(shape),)
    call = Call(
        name="grn",
        operation="module",
        module=module,
        owner="GRN",
        function=module,
        args=args,
        kwargs={},
        attributes={},
    )
    bindings = FOUND.recipe.bindings(call)
    return [max(probe(call, FOUND.recipe, FOUND.reference, binding).values()) for binding in bindings]


def test_the_layer_of_transformers_is_taken_in_one_role() -> None:
    """Of the two ways to read the two parameters, exactly the right one agrees with ConvNextV2GRN."""
    right, swapped = worst_differences(ConvNextV2GRN(48), (2, 7, 7, 48))
    assert right <= RELATIVE_LIMIT
    assert swapped > 1e-2


def test_a_layer_without_the_residual_is_refused() -> None:
    """A layer that looks the same from outside and adds no residual is another layer."""
    assert min(worst_differences(MeanFreeNorm(48), (2, 7, 7, 48))) > 1e-2


@pytest.mark.parametrize(
    ("channels", "shape"), [(48, (2, 49, 48)), (3073, (1, 2, 2, 3073))], ids=["tokens", "too many channels"]
)
def test_other_shapes_are_not_bound(channels: int, shape: tuple[int, ...]) -> None:
    """Sequences of tokens, and more channels than PSUM sums, are not offered to the probe."""
    assert worst_differences(ConvNextV2GRN(channels), shape) == []
