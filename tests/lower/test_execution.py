"""Running emitted bytes: bound weights, in-place states, dtypes at the boundary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from neuron_port.errors import LoweringError, NeuronPortError
from neuron_port.lower.execution import XlaExecutable, from_torch, to_torch

pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")
Lower = Callable[..., Any]


@pytest.fixture(scope="module")
def accumulate(lower: Lower) -> XlaExecutable:
    """(weight, x, cache) -> (weight * x, cache + x), the second written over the cache."""
    graph = lower(
        lambda weight, x, cache: (weight * x, cache + x),
        (torch.zeros(64), torch.zeros(64), torch.zeros(64)),
        states={1: "cache"},
    )
    return XlaExecutable(graph.hlo)


def test_bound_weights_stay_over_calls(accumulate: XlaExecutable) -> None:
    """Bound inputs are given once; later calls give only the others, in order."""
    bound = accumulate.bind({"weight": np.full(64, 2, np.float32)})
    assert list(bound.free_inputs) == ["x", "cache"]
    assert list(accumulate.free_inputs) == ["weight", "x", "cache"]
    cache = np.zeros(64, np.float32)
    for step in (1, 2, 3):
        product, cache = bound(np.full(64, step, np.float32), cache)
        assert product.tolist() == [2 * step] * 64
    assert cache.tolist() == [6] * 64


def test_weights_are_not_copied(accumulate: XlaExecutable) -> None:
    """XLA reads an aligned weight where it lies: a change of it afterwards shows (and must not be made)."""
    weight = from_torch(torch.ones(64))
    bound = accumulate.bind({"weight": weight})
    weight[:] = 5
    product, _ = bound(np.ones(64, np.float32), np.zeros(64, np.float32))
    assert product.tolist() == [5] * 64


def test_state_of_the_caller_is_not_written(accumulate: XlaExecutable) -> None:
    """The in-place write goes to XLA's own buffer, never to the array that the caller passed."""
    cache = from_torch(torch.zeros(64))
    accumulate(np.ones(64, np.float32), np.ones(64, np.float32), cache)
    assert not cache.any()


def test_state_cannot_be_bound(accumulate: XlaExecutable) -> None:
    """A state is used up by each call, so it cannot be bound once."""
    with pytest.raises(LoweringError, match="`cache` of graph `graph` is written in place"):
        accumulate.bind({"cache": np.zeros(64, np.float32)})


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ([np.zeros(64, np.float32)], "takes 3 inputs, got 1"),
        ([np.zeros(64, np.float32)] * 2 + [np.zeros(64)], r"`cache` .* is float32\[64\], got float64\(64,\)"),
        ([np.zeros(64, np.float32)] * 2 + [np.zeros(32, np.float32)], r"got float32\(32,\)"),
    ],
)
def test_wrong_inputs_are_named(arrays: list[Any], problem: str, accumulate: XlaExecutable) -> None:
    """A wrong number, dtype or shape of inputs is refused before XLA sees it."""
    with pytest.raises(LoweringError, match=problem):
        accumulate(*arrays)


def test_unknown_weight_is_refused(accumulate: XlaExecutable) -> None:
    """Binding a name that the graph does not have is a mistake of the caller."""
    with pytest.raises(LoweringError, match="has no input `wieght`"):
        accumulate.bind({"wieght": np.zeros(64, np.float32)})


def test_int64_is_narrowed_when_it_fits(lower: Lower) -> None:
    """int64 ids go into s32 inputs; a value beyond 32 bits is refused instead of wrapped."""
    executable = XlaExecutable(lower(lambda ids: ids + 1, (torch.zeros(2, dtype=torch.int64),)).hlo)
    (result,) = executable(np.array([1, 2], np.int64))
    assert result.dtype == np.int32
    assert result.tolist() == [2, 3]
    with pytest.raises(LoweringError, match="beyond 32 bits"):
        executable(np.array([1, 2**31], np.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.bool])
def test_arrays_and_tensors_convert_both_ways(dtype: torch.dtype) -> None:
    """Every dtype, bfloat16 included, keeps its bits from torch to NumPy and back."""
    tensor = (torch.randn(3, 4) * 5).to(dtype)
    assert torch.equal(to_torch(from_torch(tensor)), tensor)
    assert to_torch(from_torch(tensor)).dtype == dtype


def test_graph_that_xla_refuses_is_our_error(lower: Lower) -> None:
    """A module that breaks XLA's shape rules is reported as one sentence, not as a C++ trace."""
    from dataclasses import replace

    from neuron_port.lower.module import Shape, read_module

    module = read_module(lower(lambda x: x.exp(), (torch.zeros(4),)).hlo)
    entry = module.entry
    wrong = [
        replace(item, shape=Shape("float32", (5,))) if item.opcode == "exponential" else item
        for item in entry.instructions
    ]
    broken = replace(module, computations=(replace(entry, instructions=tuple(wrong)),))
    with pytest.raises(LoweringError, match="XLA-CPU refuses graph `graph`"):
        XlaExecutable(broken.to_bytes())


def test_missing_jaxlib_names_the_cure(lower: Lower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jaxlib the error says what to install."""
    graph = lower(lambda x: x + 1, (torch.zeros(2),))
    monkeypatch.setitem(sys.modules, "jaxlib", None)
    with pytest.raises(NeuronPortError, match="needs jaxlib") as caught:
        XlaExecutable(graph.hlo)
    assert caught.value.hint == "pip install neuron-port[verify]"
