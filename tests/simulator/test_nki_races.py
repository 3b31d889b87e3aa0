"""Races of two cores in shared HBM: pairs of kernels that differ by a barrier, a half, or what they write."""

from __future__ import annotations

import numpy as np
import pytest

from neuron_port.simulator import RaceError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

ROWS, COLUMNS = 128, 64


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    """[128, 64] float32."""
    return rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)


def loaded(tensor):
    """The tensor in an SBUF tile."""
    tile = nl.ndarray(tensor.shape, tensor.dtype, nl.sbuf)
    nisa.dma_copy(tile, tensor)
    return tile


def marked(x):
    """x plus the number of the core, in SBUF."""
    tile = loaded(x)
    nisa.tensor_scalar(tile, tile, nl.add, float(nl.program_id(0)))
    return tile


def written_in_parts(part):
    """A kernel whose core c writes `part(c)` of the columns of its output."""

    def kernel(x):
        tile = marked(x)
        out = nl.zeros(x.shape, x.dtype, nl.shared_hbm)
        columns = part(nl.program_id(0))
        nisa.dma_copy(out[:, columns], tile[:, columns])
        return out

    return kernel


def read_after(synchronize):
    """A kernel in which core 1 reads what core 0 wrote, after `synchronize(shared)` on both."""

    def kernel(x):
        tile = loaded(x)
        shared = nl.ndarray(x.shape, x.dtype, nl.shared_hbm, name="shared")
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        if nl.program_id(0) == 0:
            nisa.dma_copy(shared, tile)
        synchronize(shared)
        if nl.program_id(0) == 1:
            nisa.dma_copy(out, loaded(shared))
        return out

    return kernel


@pytest.mark.parametrize(
    "part",
    [
        lambda core: slice(core * 32, core * 32 + 32),
        lambda core: slice(core, COLUMNS, 2),
    ],
    ids=["halves", "interleaved"],
)
def test_separate_bytes_are_no_race(x: np.ndarray, part) -> None:
    """Cores that write different columns of one tensor do not race, also where the columns interleave."""
    run = run_kernel(written_in_parts(part), x, lnc=2)
    expected = x.copy()
    expected[:, part(1)] += 1
    np.testing.assert_array_equal(run.outputs[0], expected)


def test_overlapping_writes_race(x: np.ndarray) -> None:
    """Two cores that write one column in common, each with its own values, race; the error names both."""
    with pytest.raises(RaceError, match=r"core 0 writes at .* core 1 writes at .*nothing orders") as caught:
        run_kernel(written_in_parts(lambda core: slice(core * 31, core * 31 + 32)), x, lnc=2)
    assert "core_barrier(out, (0, 1))" in caught.value.hint
    assert "test_nki_races.py:" in str(caught.value)


def test_a_barrier_orders_write_and_read(x: np.ndarray) -> None:
    """Reading what the other core wrote needs core_barrier on that tensor."""
    run = run_kernel(read_after(lambda shared: nisa.core_barrier(shared, (0, 1))), x, lnc=2)
    assert run.warnings == ()
    with pytest.raises(RaceError, match=r"core 0 writes .* core 1 reads .*`shared`"):
        run_kernel(read_after(lambda shared: None), x, lnc=2)


def test_synchronization_on_other_data_warns(x: np.ndarray) -> None:
    """sendrecv between write and read orders them by accident only: a warning that asks for the barrier."""

    def sendrecv(shared):
        tile = nl.zeros((1, 1), nl.float32, nl.sbuf)
        nisa.sendrecv(tile, tile, 1 - nl.program_id(0), 1 - nl.program_id(0), 0)

    (warning,) = run_kernel(read_after(sendrecv), x, lnc=2).warnings
    assert "add nisa.core_barrier(shared, (0, 1))" in warning


def test_equal_writes_are_no_race(x: np.ndarray) -> None:
    """Both cores that do all of the same work write and read back the same values in any order."""

    def kernel(x, tile_of):
        tile = tile_of(x)
        shared = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(shared, tile)
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, loaded(shared))
        return out

    np.testing.assert_array_equal(run_kernel(kernel, x, loaded, lnc=2).outputs[0], x)
    with pytest.raises(RaceError):
        run_kernel(kernel, x, marked, lnc=2)


def test_only_the_last_writes_decide(x: np.ndarray) -> None:
    """Cores that both clear and then fill a tensor with the same values agree at the end; reading it does not."""

    def kernel(x, reads):
        tile, zeros = loaded(x), nl.zeros(x.shape, x.dtype, nl.sbuf)
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, zeros)
        nisa.dma_copy(out, tile)
        if reads:
            nisa.dma_copy(tile, out)
        return out

    run_kernel(kernel, x, False, lnc=2)
    with pytest.raises(RaceError, match=r"writes .* reads"):
        run_kernel(kernel, x, True, lnc=2)


def scattering(x, index):
    """Each core scatters its half of the rows, marked, to where `index` says."""
    core = nl.program_id(0)
    mine = slice(core * 64, core * 64 + 64)
    tile, rows = marked(x), loaded(index)
    out = nl.zeros((ROWS, COLUMNS), x.dtype, nl.shared_hbm)
    nisa.dma_copy(out.ap([[COLUMNS, 64], [1, COLUMNS]], vector_offset=rows[mine]), tile[mine])
    return out


def test_scattered_rows_race_by_row(x: np.ndarray, rng: np.random.Generator) -> None:
    """Scatters of both cores race only where their indices meet."""
    index = rng.permutation(ROWS).astype(np.int32).reshape(ROWS, 1)
    out = run_kernel(scattering, x, index, lnc=2).outputs[0]
    np.testing.assert_array_equal(out[index[:64, 0]], x[:64])
    index[100] = index[3]
    with pytest.raises(RaceError, match=r"core 0 writes .* core 1 writes"):
        run_kernel(scattering, x, index, lnc=2)


def test_a_sink_for_padding_warns(x: np.ndarray, rng: np.random.Generator) -> None:
    """A row that a core by itself scatters into twice is one that nobody reads: both cores may send padding there."""
    index = rng.permutation(ROWS).astype(np.int32).reshape(ROWS, 1)
    sink = index[3, 0]
    index[4] = index[100] = sink
    warnings = run_kernel(scattering, x, index, lnc=2).warnings
    assert any(f"scatter into the same row {sink}" in warning for warning in warnings)


def test_a_copy_of_a_tensor_onto_itself_is_a_fence(x: np.ndarray) -> None:
    """Both cores may end with dma_copy(out, out); with a different tensor the same line races."""

    def kernel(x, fence):
        tile = marked(x) if not fence else loaded(x)
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        nisa.dma_copy(out, out)
        return out

    run_kernel(kernel, x, True, lnc=2)
    with pytest.raises(RaceError):
        run_kernel(kernel, x, False, lnc=2)


def test_gathered_rows_race_by_row(x: np.ndarray) -> None:
    """Gathering rows that the other core writes races; gathering others does not."""

    def kernel(x, index):
        core = nl.program_id(0)
        tile, rows = loaded(x), loaded(index)
        shared = nl.ndarray((ROWS, COLUMNS), x.dtype, nl.shared_hbm)
        nisa.dma_copy(shared[core * 64 : core * 64 + 64], tile[core * 64 : core * 64 + 64])
        gathered = nl.ndarray((32, COLUMNS), x.dtype, nl.sbuf)
        out = nl.zeros((2, 32, COLUMNS), x.dtype, nl.shared_hbm)
        if core == 1:
            pattern = [[COLUMNS, 32], [1, COLUMNS]]
            nisa.dma_copy(gathered, shared.ap(pattern, vector_offset=rows))
            nisa.dma_copy(out[1], gathered)
        return out

    own = np.arange(64, 96, dtype=np.int32).reshape(32, 1)
    np.testing.assert_array_equal(run_kernel(kernel, x, own, lnc=2).outputs[0][1], x[64:96])
    with pytest.raises(RaceError, match=r"core 0 writes .* core 1 reads"):
        run_kernel(kernel, x, own - 1, lnc=2)


def test_a_read_of_an_input_is_no_race(x: np.ndarray) -> None:
    """Both cores may read the same input without order, and each writes what it read plus its number."""
    run = run_kernel(written_in_parts(lambda core: slice(core * 32, core * 32 + 32)), x, lnc=2)
    np.testing.assert_array_equal(run.outputs[0], x + np.repeat(np.float32([0, 1]), 32))
