"""Two cores of a logical NeuronCore: programs, shared memory, sendrecv, core_barrier, and what cannot work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuron_port.simulator import (
    CapacityError,
    ConstraintError,
    OutputError,
    SynchronizationError,
    nki,
    run_kernel,
    simulate,
    to_hbm,
)
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from neuron_port.simulator.runner import call_kernel

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


def halves(x):
    """Each core copies its half of the rows."""
    core = nl.program_id(0)
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    mine = slice(core * 64, core * 64 + 64)
    nisa.dma_copy(out[mine], loaded(x)[mine])
    return out


def exchanging(x, pipe_of_core_1=0, elements_of_core_1=COLUMNS, engine=nisa.dma_engine.dma):
    """Both cores scale x by 1 and 10, exchange it, and store what they received."""
    core = nl.program_id(0)
    tile = loaded(x)
    nisa.tensor_scalar(tile, tile, nl.multiply, 1.0 if core == 0 else 10.0)
    received = nl.ndarray(x.shape, x.dtype, nl.sbuf)
    part = elements_of_core_1 if core == 1 else COLUMNS
    pipe = pipe_of_core_1 if core == 1 else 0
    nisa.sendrecv(tile[:, 0:part], received[:, 0:part], 1 - core, 1 - core, pipe, dma_engine=engine)
    out = nl.ndarray((2, *x.shape), x.dtype, nl.shared_hbm)
    nisa.dma_copy(out[core], received)
    return out


def through_hbm(x, barriers_of_core_1=1):
    """Each core writes half of a shared tensor; after a barrier both read all of it."""
    core = nl.program_id(0)
    tile = loaded(x)
    shared = nl.ndarray(x.shape, x.dtype, nl.shared_hbm, name="shared")
    mine = slice(core * 64, core * 64 + 64)
    nisa.dma_copy(shared[mine], tile[mine])
    if core == 0 or barriers_of_core_1:
        nisa.core_barrier(shared, (0, 1))
    out = nl.ndarray((2, *x.shape), x.dtype, nl.shared_hbm)
    nisa.dma_copy(out[core], loaded(shared))
    return out


def test_both_programs_share_the_output(x: np.ndarray) -> None:
    """Two cores write one tensor in shared HBM, each its half, with traces of their own."""
    run = run_kernel(halves, x, lnc=2)
    np.testing.assert_array_equal(run.outputs[0], x)
    assert len(run.traces) == 2
    assert run.trace is run.traces[0]
    assert run.hbm_write_bytes == x.nbytes
    assert run.hbm_read_bytes == 2 * x.nbytes


@pytest.mark.parametrize(("lnc", "seen"), [(None, (0, 1, 0)), (1, (0, 1, 1)), (2, (1, 2, 1))])
def test_programs_know_their_grid(lnc: int | None, seen: tuple[int, ...]) -> None:
    """program_id, num_programs and program_ndim are those of the launch; without a grid there is no dimension."""
    asked = []

    def kernel(x):
        asked.append((nl.program_id(0), nl.num_programs(0), nl.program_ndim()))

    run_kernel(kernel, to_hbm(np.zeros((1, 1), np.float32), mutable=True), lnc=lnc)
    assert asked[-1] == seen
    assert [program for program, _, _ in asked] == list(range(lnc or 1))


def test_launch_by_subscript(x: np.ndarray) -> None:
    """kernel[2] runs on two cores under run_kernel, simulate and nki.simulate, jitted or plain."""
    kernel = nki.jit(halves)
    assert len(run_kernel(kernel[2], x).traces) == 2
    np.testing.assert_array_equal(simulate(halves, lnc=2)(x), x)
    np.testing.assert_array_equal(nki.simulate(kernel[2])(x), x)


def test_arguments_may_have_the_names_of_options(x: np.ndarray) -> None:
    """call_kernel passes arguments that are called lnc or target to the kernel."""

    def kernel(x, lnc, target):
        assert (lnc, target) == (7, "mine")
        return halves(x)

    run = call_kernel(kernel, [x], {"lnc": 7, "target": "mine"}, lnc=2)
    np.testing.assert_array_equal(run.outputs[0], x)


def test_cores_do_not_share_python_objects(x: np.ndarray) -> None:
    """Lists and records that one core changes are unchanged for the other; tensors in them are shared."""

    class Settings(nl.NKIObject):
        rounds: int

    settings = Settings(rounds=1)

    def kernel(inputs, settings):
        assert settings.rounds == 1
        settings.rounds += 1
        inputs.append(None)
        assert len(inputs) == 2
        return halves(inputs[0])

    np.testing.assert_array_equal(run_kernel(kernel, [x], settings, lnc=2).outputs[0], x)


def test_mutable_inputs_are_updated_by_both(x: np.ndarray) -> None:
    """Each core writes its half of a mutable input in place."""

    def kernel(cache, x):
        mine = slice(nl.program_id(0) * 64, nl.program_id(0) * 64 + 64)
        nisa.dma_copy(cache[mine], x[mine])

    cache = to_hbm(np.zeros_like(x), mutable=True)
    run_kernel(kernel, cache, x, lnc=2)
    np.testing.assert_array_equal(cache.numpy(), x)


def test_sendrecv_swaps_tiles(x: np.ndarray) -> None:
    """Each core receives what the other sends."""
    out = run_kernel(exchanging, x, lnc=2).outputs[0]
    np.testing.assert_array_equal(out[0], x * np.float32(10))
    np.testing.assert_array_equal(out[1], x)


def test_sendrecv_swaps_in_place(x: np.ndarray) -> None:
    """src and dst may be one tile: both cores' data are read before either is written."""

    def kernel(x):
        core = nl.program_id(0)
        tile = loaded(x)
        nisa.tensor_scalar(tile, tile, nl.add, float(core))
        nisa.sendrecv(tile, tile, 1 - core, 1 - core, 0)
        out = nl.ndarray((2, *x.shape), x.dtype, nl.shared_hbm)
        nisa.dma_copy(out[core], tile)
        return out

    out = run_kernel(kernel, x, lnc=2).outputs[0]
    np.testing.assert_array_equal(out, [x + np.float32(1), x])


def test_gpsimd_dma_is_small(x: np.ndarray) -> None:
    """GpSimdE's DMA takes 256 elements per partition; one more is refused."""
    wide = np.tile(x, (1, 4))
    for columns, accepted in ((256, True), (257, False)):

        def kernel(x, columns=columns):
            core = nl.program_id(0)
            tile = nl.zeros((ROWS, columns), nl.bfloat16, nl.sbuf)
            nisa.sendrecv(tile, tile, 1 - core, 1 - core, 0, dma_engine=nisa.dma_engine.gpsimd_dma)
            return halves(x)

        if accepted:
            run_kernel(kernel, wide, lnc=2)
        else:
            with pytest.raises(ConstraintError, match=r"257 elements .* at most 256 \(512 bytes"):
                run_kernel(kernel, wide, lnc=2)


def test_barrier_publishes_shared_data(x: np.ndarray) -> None:
    """After core_barrier both cores read what either wrote."""
    out = run_kernel(through_hbm, x, lnc=2).outputs[0]
    np.testing.assert_array_equal(out, [x, x])


def test_barrier_without_counterpart_names_both_cores(x: np.ndarray) -> None:
    """A barrier that one core never reaches is an error with the place of the one and the end of the other."""
    with pytest.raises(
        SynchronizationError, match=r"core_barrier .*core 0 waits .*`shared`.*core 1 has ended"
    ):
        run_kernel(through_hbm, x, barriers_of_core_1=0, lnc=2)


@pytest.mark.parametrize(
    ("difference", "error", "message"),
    [
        ({"pipe_of_core_1": 1}, SynchronizationError, r"core 0 .*pipe_id=0 at .*core 1 .*pipe_id=1 at "),
        (
            {"elements_of_core_1": 32},
            ConstraintError,
            r"core 0 sends .*\(128, 64\).*core 1 sends .*\(128, 32\)",
        ),
    ],
)
def test_unequal_exchanges_name_both_cores(
    x: np.ndarray, difference: dict[str, int], error: type[Exception], message: str
) -> None:
    """Exchanges that differ in pipe or shape are refused with both cores' lines."""
    with pytest.raises(error, match=message):
        run_kernel(exchanging, x, lnc=2, **difference)


def test_shared_allocations_must_agree(x: np.ndarray) -> None:
    """The i-th tensors in shared HBM are one tensor; other sizes on the other core are an error."""

    def kernel(x, columns_of_core_1):
        columns = columns_of_core_1 if nl.program_id(0) else COLUMNS
        scratch = nl.ndarray((ROWS, columns), nl.float32, nl.shared_hbm)
        assert scratch.shape == (ROWS, columns)
        return halves(x)

    run_kernel(kernel, x, COLUMNS, lnc=2)
    with pytest.raises(SynchronizationError, match=r"number 1 .*\(128, 64\).* core 0 .*\(128, 32\).* core 1"):
        run_kernel(kernel, x, 32, lnc=2)


def test_private_hbm_is_private(x: np.ndarray) -> None:
    """Tensors in private HBM belong to one core, whatever the other allocates."""

    def kernel(x):
        core = nl.program_id(0)
        scratch = nl.ndarray((ROWS, COLUMNS - core), x.dtype, nl.private_hbm)
        nisa.dma_copy(scratch, x[:, 0 : COLUMNS - core])
        out = nl.ndarray((2, ROWS, COLUMNS - 1), x.dtype, nl.shared_hbm)
        nisa.dma_copy(out[core], scratch[:, 0 : COLUMNS - 1])
        return out

    np.testing.assert_array_equal(run_kernel(kernel, x, lnc=2).outputs[0], [x[:, :-1], x[:, :-1]])


def test_shared_zeros_are_filled_once(x: np.ndarray) -> None:
    """nl.zeros in shared HBM on the second core does not erase what the first wrote."""

    def kernel(x):
        core = nl.program_id(0)
        out = nl.zeros((2, *x.shape), x.dtype, nl.shared_hbm)
        nisa.dma_copy(out[core], x)
        return out

    np.testing.assert_array_equal(run_kernel(kernel, x, lnc=2).outputs[0], [x, x])


def test_capacity_is_checked_for_each_core(x: np.ndarray) -> None:
    """A core that alone exceeds its SBUF is refused, though the other does not."""

    def kernel(x, tiles):
        if nl.program_id(0) == 1:
            held = [nl.zeros((ROWS, 32768), nl.float32, nl.sbuf) for _ in range(tiles)]
            for tile in held:
                nisa.tensor_scalar(tile, tile, nl.add, 1.0)
        return halves(x)

    run = run_kernel(kernel, x, 1, lnc=2)
    assert run.peak_sbuf_bytes >= 32768 * 4
    with pytest.raises(CapacityError, match="SBUF are live at once"):
        run_kernel(kernel, x, 2, lnc=2)


def test_cores_return_the_same_tensors(x: np.ndarray) -> None:
    """Cores that return different tensors are refused."""

    def kernel(x, swapped):
        first, second = halves(x), halves(x)
        return (second, first) if swapped and nl.program_id(0) else (first, second)

    assert len(run_kernel(kernel, x, False, lnc=2).outputs) == 2
    with pytest.raises(OutputError, match=r"core 0 returns .* core 1 returns"):
        run_kernel(kernel, x, True, lnc=2)


@pytest.mark.parametrize("kernel", [exchanging, through_hbm])
def test_one_core_has_no_partner(x: np.ndarray, kernel: Any) -> None:
    """sendrecv and core_barrier in a kernel on one core are refused, with the way to launch it on two."""
    with pytest.raises(ConstraintError, match=r"runs on one core(.|\n)*kernel\[2\]"):
        run_kernel(kernel, x)


def test_two_cores_need_generation_3(x: np.ndarray) -> None:
    """NeuronCore-v2 has no logical cores of two."""
    run_kernel(halves, x, lnc=2, target="trn3")
    with pytest.raises(ConstraintError, match="2 cores; a logical core of gen2 has 1"):
        run_kernel(halves, x, lnc=2, target="trn1")


def test_errors_say_which_core(x: np.ndarray) -> None:
    """An error of one core carries a note with its number, and ends the other."""

    def kernel(x):
        if nl.program_id(0) == 1:
            nisa.memset(nl.ndarray((ROWS, 1), nl.float32, nl.sbuf)[0:48], 0.0)
        return through_hbm(x)

    def bad(x):
        if nl.program_id(0) == 1:
            nisa.memset(nl.ndarray((ROWS, 1), nl.float32, nl.sbuf)[16:48], 0.0)
        return through_hbm(x)

    run_kernel(kernel, x, lnc=2)
    with pytest.raises(ConstraintError, match="starts at partition 16") as caught:
        run_kernel(bad, x, lnc=2)
    assert caught.value.__notes__ == ["on core 1"]


def test_diverging_hardware_loops_are_warned_of(x: np.ndarray) -> None:
    """Hardware loops with different numbers of iterations on the two cores are a warning with both numbers."""

    def kernel(x, extra):
        nl.fori_loop(0, 2 + extra * nl.program_id(0), lambda i: None)
        return halves(x)

    assert run_kernel(kernel, x, 0, lnc=2).warnings == ()
    (warning,) = run_kernel(kernel, x, 1, lnc=2).warnings
    assert "core 0 runs 2 iterations" in warning
    assert "core 1 runs 3 iterations" in warning


def test_two_runs_are_equal(x: np.ndarray) -> None:
    """The same kernel gives the same bits and the same instructions in the same order, on both cores."""
    first, second = (run_kernel(through_hbm, x, lnc=2) for _ in range(2))
    assert first.outputs[0].tobytes() == second.outputs[0].tobytes()
    for a, b in zip(first.traces, second.traces, strict=True):
        assert [repr(i) for i in a] == [repr(i) for i in b]
