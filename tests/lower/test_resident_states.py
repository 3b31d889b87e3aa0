"""Buffers that stay with XLA between calls: what serving keeps its caches in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from neuron_port.errors import LoweringError
from neuron_port.lower.execution import XlaExecutable, buffer_to_numpy

pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "apart"])
def accumulate(lower: Callable[..., Any], request: pytest.FixtureRequest) -> XlaExecutable:
    """(x, cache) -> (the cache's double, cache + x written over the cache)."""

    def step(x: torch.Tensor, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        written = cache + x
        return written * 2, written

    graph = lower(step, (torch.zeros(64), torch.zeros(64)), states={1: "cache"})
    return XlaExecutable(graph.hlo, fuse=request.param)


def test_a_state_goes_from_call_to_call_in_its_memory(accumulate: XlaExecutable) -> None:
    """The result that replaces a state is the state's own memory, and the next call goes on from it."""
    cache = accumulate.put("cache", np.zeros(64, np.float32))
    place = cache.unsafe_buffer_pointer()
    for step in (1, 2, 3):
        double, cache = accumulate.run(
            {"x": accumulate.put("x", np.full(64, step, np.float32)), "cache": cache}
        )
        assert cache.unsafe_buffer_pointer() == place
    assert buffer_to_numpy(cache).tolist() == [6.0] * 64
    assert buffer_to_numpy(double).tolist() == [12.0] * 64


def test_a_missing_input_is_named(accumulate: XlaExecutable) -> None:
    """A call without one of its inputs is refused by the input's name."""
    with pytest.raises(LoweringError, match="was not given `cache`"):
        accumulate.run({"x": accumulate.put("x", np.zeros(64, np.float32))})
