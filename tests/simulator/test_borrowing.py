"""A load without a copy is never seen: the tile behaves as one that was copied, and the input stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neuron_port.simulator import ConstraintError, run_kernel, to_hbm
from neuron_port.simulator.borrowing import BorrowedTile
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from neuron_port.simulator.tensor import NkiTensor

SHAPE = (128, 256)


def load(source: Any, dtype: Any = None) -> Any:
    """A new tile with the values of `source`."""
    tile = nl.ndarray(source.shape, dtype or source.dtype, nl.sbuf)
    nisa.dma_copy(tile, source)
    return tile


def store(tile: Any) -> Any:
    """A new output with the values of `tile`."""
    out = nl.ndarray(tile.shape, tile.dtype, nl.shared_hbm)
    nisa.dma_copy(out, tile)
    return out


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    """An input of 128 KiB."""
    return rng.standard_normal(SHAPE).astype(np.float32)


def test_a_large_tile_filled_from_an_input_borrows(x: np.ndarray) -> None:
    """A whole new tile of the input's dtype borrows; it is a plain tile after the first look at its array."""
    kinds = []

    def kernel(source: Any) -> Any:
        tile = load(source)
        kinds.append(type(tile))
        out = store(tile)
        kinds.append(type(tile))
        return out

    np.testing.assert_array_equal(run_kernel(kernel, x).outputs[0], x)
    assert kinds == [BorrowedTile, NkiTensor]


@pytest.mark.parametrize(
    "prepare",
    [
        lambda source: load(source[0:8, 0:8]),
        lambda source: load(source, nl.bfloat16),
        lambda source: load(source.permute((1, 0))[0:128]),
    ],
    ids=["small", "another dtype", "strided elements"],
)
def test_other_loads_copy(x: np.ndarray, prepare: Callable[[Any], Any]) -> None:
    """What would not be faster, or not be the same memory, is copied at once."""
    kinds = []

    def kernel(source: Any) -> Any:
        tile = prepare(source)
        kinds.append(type(tile))
        return store(tile)

    run_kernel(kernel, x)
    assert kinds == [NkiTensor]


def test_an_input_that_may_be_written_is_copied(x: np.ndarray) -> None:
    """Writing a mutable input after the load does not reach the tile."""

    def kernel(source: Any) -> Any:
        tile = load(source)
        zeros = nl.ndarray(SHAPE, nl.float32, nl.sbuf)
        nisa.memset(zeros, 0.0)
        nisa.dma_copy(source, zeros)
        return store(tile)

    np.testing.assert_array_equal(run_kernel(kernel, to_hbm(x, mutable=True)).outputs[0], x)


def test_a_tile_with_another_view_is_copied(x: np.ndarray) -> None:
    """A view that was taken before the load sees the loaded values."""

    def kernel(source: Any) -> Any:
        tile = nl.ndarray(SHAPE, nl.float32, nl.sbuf)
        early = tile[:, 4:8]
        nisa.dma_copy(tile, source)
        return store(early)

    np.testing.assert_array_equal(run_kernel(kernel, x).outputs[0], x[:, 4:8])


OPERATIONS: dict[str, tuple[Callable[[Any], Any], Callable[[np.ndarray], np.ndarray]]] = {
    "in place": (lambda t: nisa.tensor_scalar(t, t, nl.multiply, 2.0) and t, lambda x: x * 2),
    "memset of a part": (
        lambda t: nisa.memset(t[:, 0:1], 5.0) and t,
        lambda x: np.concatenate([x[:, :1] * 0 + 5, x[:, 1:]], 1),
    ),
    "slice": (lambda t: t[32:64, 1:9], lambda x: x[32:64, 1:9]),
    "permute": (
        lambda t: t.reshape((128, 16, 16)).permute((0, 2, 1)),
        lambda x: x.reshape(128, 16, 16).swapaxes(1, 2),
    ),
    "access pattern": (lambda t: t.ap([[256, 128], [2, 100]], offset=3), lambda x: x[:, 3:203:2]),
    "bits": (lambda t: t.view(nl.int32), lambda x: x.view(np.int32)),
    "overwritten by DMA": (
        lambda t: nisa.dma_copy(t[:, 0:128], t[:, 128:256]) and t,
        lambda x: np.concatenate([x[:, 128:]] * 2, 1),
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_use_sees_the_values_and_leaves_the_input(x: np.ndarray, name: str) -> None:
    """Views, writes and reinterpretations of a borrowed tile give what they give on a copy."""
    operation, expected = OPERATIONS[name]
    before = x.copy()
    result = run_kernel(lambda source: store(operation(load(source))), x).outputs[0]
    np.testing.assert_array_equal(result, expected(x))
    np.testing.assert_array_equal(x, before)


def test_matmul_reads_the_input_itself(x: np.ndarray) -> None:
    """A product of two borrowed tiles is that of two copies, bit for bit, and they keep borrowing."""
    kinds = []

    def kernel(source: Any, copies: bool) -> Any:
        left, right = (load(source[:, 0:128]) for _ in range(2))
        if copies:
            left[0:1, 0:1], right[0:1, 0:1]  # a look at the tile ends the borrowing
        psum = nl.ndarray((128, 128), nl.float32, nl.psum)
        for _ in range(2):
            nisa.nc_matmul(psum, left, right)
        kinds.append(type(right))
        result = nl.ndarray((128, 128), nl.float32, nl.sbuf)
        nisa.tensor_copy(result, psum)
        return store(result)

    borrowed, copied = (run_kernel(kernel, x, copies=copies).outputs[0] for copies in (False, True))
    np.testing.assert_array_equal(borrowed, copied)
    assert kinds == [BorrowedTile, NkiTensor]


def test_the_trace_is_that_of_a_copy(x: np.ndarray) -> None:
    """Operands, bytes and capacity are recorded alike."""

    def kernel(source: Any, rows: int) -> Any:
        tile = nl.ndarray(SHAPE, nl.float32, nl.sbuf)
        if rows == 128:
            nisa.dma_copy(tile, source)
        else:
            nisa.dma_copy(tile[0:128], source)  # a view besides the tile: copied
        return store(tile)

    runs = [run_kernel(kernel, x, rows=rows) for rows in (128, 127)]
    facts = [
        [(i.opcode, i.dma_bytes, [(o.shape, o.region, o.dtype) for o in i.operands]) for i in run.trace]
        for run in runs
    ]
    assert facts[0] == facts[1]
    assert runs[0].peak_sbuf_bytes == runs[1].peak_sbuf_bytes
    assert runs[0].hbm_read_bytes == runs[1].hbm_read_bytes == x.nbytes


def test_rules_hold_for_a_borrowed_tile(x: np.ndarray) -> None:
    """Two borrowed tiles of unequal partitions are refused as copies are."""

    def kernel(source: Any) -> Any:
        left, right = load(source[0:64, 0:128]), load(source)
        psum = nl.ndarray((128, 256), nl.float32, nl.psum)
        nisa.nc_matmul(psum, left, right)

    with pytest.raises(ConstraintError, match="both are the contraction dimension"):
        run_kernel(kernel, x)
