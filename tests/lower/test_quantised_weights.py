"""Weights in one byte reach the graph as bytes, become floats there, and the scale multiplies behind the product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from neuron_port.checkpoint.quantization import CLASSES, FORMATS, QuantizedLinear, quantize
from neuron_port.lower import read_module

Lower = Callable[..., Any]


def layer(form: str) -> QuantizedLinear:
    """A quantised layer of 8 features and 6 outputs, with a bias."""
    torch.manual_seed(0)
    made = CLASSES[form](6, 8, torch.nn.Parameter(torch.randn(6)))
    stored_NK, scale_N = quantize(torch.randn(6, 8), FORMATS[form])
    setattr(made, made.stored_name, torch.nn.Parameter(stored_NK, requires_grad=False))
    made.weight_scale = torch.nn.Parameter(scale_N, requires_grad=False)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMATS)
def test_graph_equals_layer(form: str, dtype: torch.dtype, lower: Lower) -> None:
    """The emitted graph, run by XLA-CPU on the stored bytes, is the layer."""
    module, x = layer(form), torch.randn(3, 8).to(dtype)
    module.bias = torch.nn.Parameter(module.bias.to(dtype))
    graph = lower(module, [x])
    limits = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(graph.run(x)[0], module(x).detach(), **limits)


@pytest.mark.parametrize(("form", "stored"), [("int8", "int8"), ("fp8", "uint8")])
def test_the_graph_takes_bytes_and_scales_last(form: str, stored: str, lower: Lower) -> None:
    """Parameters are bytes; they are converted as they are, and nothing but the product's rows is multiplied."""
    module = read_module(lower(layer(form), [torch.randn(3, 8)]).hlo)
    assert [item.shape.dtype for item in module.entry.parameters].count(stored) == 1
    made = {item.opcode: item.shape for _, item in module.instructions()}
    assert made["multiply"].dimensions == (3, 6)
    types = {item.shape.dtype for _, item in module.instructions()}
    assert ("float8_e4m3" in types) == (form == "fp8")
    assert "float8_e4m3fn" not in types  # NCC_EVRF051


@pytest.mark.parametrize(("code", "finite"), [(0x77, True), (0x78, False)])
def test_bits_beyond_240_show_in_the_proof(code: int, finite: bool, lower: Lower) -> None:
    """240 is the chip's largest; the next code, torch's 256, is infinite in the graph as it is on the chip."""

    def decode(bits: torch.Tensor) -> torch.Tensor:
        return bits.view(torch.float8_e4m3fn).to(torch.float32)

    bits = torch.tensor([code], dtype=torch.uint8)
    (value,) = lower(decode, [bits]).run(bits)
    assert bool(torch.isfinite(value).all()) is finite
    if finite:
        assert torch.equal(value, decode(bits))
