"""The proof of one layer says what it did not try: sizes that the layer itself refuses are named."""

from __future__ import annotations

import torch

from neuron_port.parity.kernel import verify_layer
from neuron_port.registry import data_folder, load_recipe
from neuron_port.types import Match, WeightSource
from neuron_port.walk.calls import Call, plain_attributes
from neuron_port.walk.walker import describe


class Picky(torch.nn.LayerNorm):
    """A layer norm that refuses a single token, as norms over places do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-2] == 1:
            raise ValueError("Expected more than 1 value per channel")
        return super().forward(x)


def proof_of(module: torch.nn.Module):
    x_BTH = torch.randn(1, 5, 32)
    call = Call(
        name="norm", operation="module", module=module, owner=type(module).__name__, function=module,
        args=(x_BTH,), kwargs={}, attributes=plain_attributes(module),
    )  # fmt: skip
    with torch.no_grad():
        layer = describe(call, module(x_BTH), 0)
    match = Match(
        signature=layer.signature, layers=("norm",), decision="recipe", recipe="layer_norm", reason="",
        weights={name: WeightSource(name=name) for name in ("weight", "bias")}, attributes={"eps": 1e-5},
    )  # fmt: skip
    return verify_layer(
        layer, call, match, load_recipe(data_folder("recipes") / "layer_norm"),
        read_weight=lambda name, first: module.state_dict()[name.removeprefix("norm.")],
        target="trn2", dtypes=(torch.float32,), oracle="torch",
    )  # fmt: skip


def test_a_tail_that_the_layer_refuses_is_named():
    """The report says which size was not tried and what the layer said; the others are judged."""
    report = proof_of(Picky(32))
    assert report.passed, report.worst
    left_out = [text for text in report.not_proven if "the layer itself refuses it" in text]
    assert left_out
    assert all("Expected more than 1 value per channel" in text for text in left_out)


def test_a_layer_that_takes_every_tail_leaves_none_out():
    """The same norm without the refusal is proven on one token too."""
    report = proof_of(torch.nn.LayerNorm(32))
    assert report.passed, report.worst
    assert not any("refuses" in text for text in report.not_proven)
