"""Tiles, loads and copies that the ports share."""

from __future__ import annotations

from typing import Any

from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

P = 128  # partitions
BANK = 512  # float32 columns of a PSUM bank


def sbuf(*shape: int, dtype: Any = nl.float32) -> Any:
    """A new tile in SBUF."""
    return nl.ndarray(shape, dtype, nl.sbuf)


def psum(*shape: int, dtype: Any = nl.float32) -> Any:
    """A new tile in PSUM."""
    return nl.ndarray(shape, dtype, nl.psum)


def zeros(*shape: int, dtype: Any = nl.float32) -> Any:
    """A tile of zeros in SBUF."""
    tile = sbuf(*shape, dtype=dtype)
    nisa.memset(tile, 0.0)
    return tile


def hbm(*shape: int, dtype: Any = nl.float32) -> Any:
    """A new tensor in HBM."""
    return nl.ndarray(shape, dtype, nl.shared_hbm)


def load(source: Any, dtype: Any = None) -> Any:
    """The view as a tile in SBUF; `dtype` casts on the way."""
    tile = nl.ndarray(source.shape, dtype or source.dtype, nl.sbuf)
    nisa.dma_copy(tile, source)
    return tile


def scalar_copy(source: Any, dtype: Any = None) -> Any:
    """A copy by ScalarE: what the old nl.copy and assignments of PSUM results became."""
    tile = nl.ndarray(source.shape, dtype or source.dtype, nl.sbuf)
    nisa.activation(tile, nl.copy, source)
    return tile


def vector_copy(source: Any, dtype: Any = None) -> Any:
    """A copy that names VectorE."""
    tile = nl.ndarray(source.shape, dtype or source.dtype, nl.sbuf)
    nisa.tensor_copy(tile, source, engine=nisa.engine.vector)
    return tile


def copy(source: Any, dtype: Any = None) -> Any:
    """A copy that leaves the engine to the compiler."""
    tile = nl.ndarray(source.shape, dtype or source.dtype, nl.sbuf)
    nisa.tensor_copy(tile, source)
    return tile


def transpose(data: Any) -> Any:
    """data [p, f] transposed by TensorE: [f, p] in PSUM."""
    result = nl.ndarray((data.shape[1], data.shape[0]), data.dtype, nl.psum)
    nisa.nc_transpose(result, data)
    return result
