"""Fixtures of the simulator's tests: run a few instructions on tiles, and compare with plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neuron_port.simulator import KernelRun, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl


@pytest.fixture
def on_tiles() -> Callable[..., np.ndarray]:
    """on_tiles(body, *arrays, shape=, dtype=): load arrays to SBUF, run body(dst, *tiles), return dst."""

    def run(body: Any, *arrays: np.ndarray, **options: Any) -> np.ndarray:
        return run_on_tiles(body, *arrays, **options).outputs[0]

    return run


@pytest.fixture
def run_tiles() -> Callable[..., KernelRun]:
    """Like on_tiles, but returns the whole KernelRun."""
    return run_on_tiles


def run_on_tiles(
    body: Any,
    *arrays: np.ndarray,
    shape: tuple[int, ...] | None = None,
    dtype: Any = nl.float32,
    target: str = "trn2",
) -> KernelRun:
    """Run `body(dst, *tiles)` with every array in an SBUF tile of its own."""

    def kernel(*inputs: Any) -> Any:
        tiles = []
        for tensor in inputs:
            tile = nl.ndarray(tensor.shape, tensor.dtype, nl.sbuf)
            nisa.dma_copy(tile, tensor)
            tiles.append(tile)
        dst = nl.ndarray(shape or inputs[0].shape, dtype, nl.sbuf)
        body(dst, *tiles)
        out = nl.ndarray(dst.shape, dst.dtype, nl.shared_hbm)
        nisa.dma_copy(out, dst)
        return out

    return run_kernel(kernel, *arrays, target=target)


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded source of random numbers."""
    return np.random.default_rng(20261122)
