"""Modules that compute nothing are told from those that do, by the operators that run."""

from __future__ import annotations

import pytest
import torch

from neuron_port.match.glue import only_moves_data
from neuron_port.walk.calls import Call
from neuron_port.walk.walker import describe


class Cut(torch.nn.Module):
    """Drops the last position, or halves it away: one line apart."""

    def __init__(self, factor: float | None = None) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cut = x[:, :-1].transpose(1, 2)
        return cut if self.factor is None else cut * self.factor


def moves_only(module: torch.nn.Module) -> bool:
    x = torch.zeros(1, 8, 16, device="meta")
    call = Call(
        name="it", operation="module", module=module, owner=type(module).__name__, function=module.forward,
        args=(x,), kwargs={},
    )  # fmt: skip
    return only_moves_data(describe(call, call.run(), flops=0), call)


@pytest.mark.parametrize("module", [torch.nn.ZeroPad2d((0, 0, 1, -1)), Cut(), torch.nn.Flatten()])
def test_padding_slicing_and_reshaping_are_glue(module):
    """A pad, a slice with a transpose, and a reshape compute nothing."""
    assert moves_only(module)


@pytest.mark.parametrize("module", [torch.nn.ReLU(), Cut(factor=0.5), torch.nn.MaxPool1d(2)])
def test_what_looks_at_values_is_not_glue(module):
    """An activation, a product and a maximum compute, although the first and the last only give inputs back."""
    assert not moves_only(module)


def test_what_has_parameters_is_not_glue():
    """An embedding gathers rows of a parameter: that is a layer."""
    table = torch.nn.Embedding(4, 2, device="meta")
    ids = torch.zeros(1, 3, dtype=torch.int64, device="meta")
    call = Call(
        name="it", operation="module", module=table, owner="Embedding", function=table.forward, args=(ids,),
        kwargs={},
    )  # fmt: skip
    assert not only_moves_data(describe(call, call.run(), flops=0), call)
