"""Rules of memory, capacity, partitions, engines, outputs: the good kernel passes, the bad one is named."""

from __future__ import annotations

import numpy as np
import pytest

from neuron_port.simulator import (
    CapacityError,
    ConstraintError,
    OutputError,
    SimulatorError,
    UnsupportedError,
    UnwrittenReadError,
    run_kernel,
    simulate,
    to_hbm,
)
from neuron_port.simulator.nki import Kernel, jit
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

X = np.arange(24, dtype=np.float32).reshape(4, 6)


def returning(body):
    """A kernel that runs body() and returns its input copied."""

    def kernel(x):
        body()
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, x)
        return out

    return kernel


def filled(shape, dtype=nl.float32, buffer=nl.sbuf):
    tile = nl.ndarray(shape, dtype, buffer)
    nisa.memset(tile, 1.0)
    return tile


def run(body, target="trn2"):
    return run_kernel(returning(body), X, target=target)


# ---- capacity --------------------------------------------------------------------------------------------


def test_single_tile_beyond_sbuf_is_refused_at_once():
    """A tile larger than a partition is refused where it is allocated; gen2 has less than gen3."""
    run(lambda: filled((128, 50000)), "trn2")
    with pytest.raises(CapacityError, match="200000 bytes per partition"):
        run(lambda: filled((128, 50000)), "trn1")


def test_live_tiles_beyond_sbuf_are_refused_with_their_names():
    """Two half-size tiles fit one after the other and not at once; the message names both."""

    def one_after_the_other():
        for _ in range(3):
            half = filled((128, 30000))
            nisa.tensor_copy(half, half)

    def at_once():
        first_half = nl.ndarray((128, 30000), nl.float32)
        second_half = nl.ndarray((128, 30000), nl.float32)
        nisa.memset(first_half, 1.0)
        nisa.memset(second_half, 1.0)
        nisa.tensor_copy(second_half, first_half)

    assert run(one_after_the_other).peak_sbuf_bytes == 120000
    with pytest.raises(CapacityError, match=r"240000 bytes per partition.*first_half.*second_half"):
        run(at_once)


def test_psum_has_eight_banks():
    """Eight live tiles fill PSUM, however small; nine are refused."""

    def banks(count):
        def body():
            tiles = [filled((4, 2), buffer=nl.psum) for _ in range(count)]
            kept = filled((4, 2))
            for tile in tiles:
                nisa.tensor_copy(kept, tile)

        return body

    assert run(banks(8)).peak_psum_banks == 8
    with pytest.raises(CapacityError, match="9 banks of PSUM"):
        run(banks(9))


def test_partition_count_and_rank_of_a_tile():
    """128 partitions pass, 129 do not; a tile on chip has two to five dimensions."""
    run(lambda: filled((128, 2)))
    with pytest.raises(ConstraintError, match="129 partitions"):
        run(lambda: filled((129, 2)))
    with pytest.raises(ConstraintError, match="1 dimensions"):
        run(lambda: filled((128,)))


def test_psum_address_starts_on_a_bank():
    """An explicit PSUM address is a multiple of 2048 bytes."""
    run(lambda: nl.ndarray((128, 512), nl.float32, nl.psum, address=(0, 2048)))
    with pytest.raises(ConstraintError, match="does not start on a PSUM bank"):
        run(lambda: nl.ndarray((128, 256), nl.float32, nl.psum, address=(0, 1024)))


# ---- poison ----------------------------------------------------------------------------------------------


def test_reading_an_unwritten_tile_is_refused():
    """The message names the tile, where it was allocated, and the cure."""

    def body():
        never_written = nl.ndarray((4, 6), nl.float32)
        nisa.tensor_copy(filled((4, 6)), never_written)

    with pytest.raises(UnwrittenReadError, match=r"`never_written`.*all of its elements") as caught:
        run(body)
    assert caught.value.hint is not None
    assert "test_nki_rules.py" in str(caught.value)


def partly_written(columns, complete):
    """A kernel that returns the first columns of a tile whose third column may be missing."""

    def kernel(x):
        tile = nl.ndarray((4, 6), nl.float32)
        nisa.memset(tile[:, 0:2], 0.0)
        nisa.memset(tile[:, 3:6], 0.0)
        if complete:
            nisa.memset(tile[:, 1:3], 0.0)
        copied = nl.ndarray((4, 6), nl.float32)
        nisa.tensor_copy(copied, tile)
        out = nl.ndarray((4, columns), x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, copied[:, 0:columns])
        return out

    return kernel


def test_returning_the_written_part_is_fine_and_one_more_is_not():
    """What depends on an unwritten element is followed exactly to the element, and refused in an output."""
    assert run_kernel(partly_written(2, False), X).warnings
    assert not run_kernel(partly_written(6, True), X).warnings
    with pytest.raises(UnwrittenReadError, match="some of its elements") as caught:
        run_kernel(partly_written(3, False), X)
    assert "`tile`" in str(caught.value)


# ---- start partitions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "partitions", "fine"),
    [
        (0, 128, True),
        (32, 32, True),
        (96, 32, True),
        (64, 64, True),
        (64, 40, True),
        (0, 65, True),
        (16, 16, False),
        (32, 33, False),
        (32, 64, False),
        (64, 33, True),
        (1, 1, False),
        (96, 8, True),
    ],
)
def test_compute_starts_at_allowed_partitions(start, partitions, fine):
    """More than 64 partitions start at 0, more than 32 at 0 or 64, others at multiples of 32; DMA any."""

    def computes():
        tile = filled((128, 4))
        nisa.tensor_scalar(tile[start : start + partitions], tile[start : start + partitions], nl.add, 1.0)

    def moves():
        tile, other = filled((128, 4)), nl.ndarray((partitions, 4), nl.float32)
        nisa.dma_copy(other, tile[start : start + partitions])

    run(moves)
    if fine:
        run(computes)
    else:
        with pytest.raises(ConstraintError, match=f"starts at partition {start}"):
            run(computes)


# ---- buffers and engines ---------------------------------------------------------------------------------


def test_compute_reads_no_hbm():
    """An HBM operand of a compute engine is refused with the cure."""

    def kernel(x):
        nisa.tensor_copy(nl.ndarray(x.shape, x.dtype), x)

    with pytest.raises(ConstraintError, match="must be in SBUF or PSUM") as caught:
        run_kernel(kernel, X)
    assert "dma_copy" in caught.value.hint


def test_two_psum_inputs_are_refused():
    """VectorE reads at most one input from PSUM."""

    def body(second):
        def inner():
            a, b, c = filled((4, 6), buffer=nl.psum), filled((4, 6), buffer=second), filled((4, 6))
            nisa.tensor_tensor(c, a, b, nl.add)

        return inner

    run(body(nl.sbuf))
    with pytest.raises(ConstraintError, match="both in PSUM"):
        run(body(nl.psum))


@pytest.mark.parametrize(
    "operation",
    [
        lambda d, t: nisa.tensor_scalar(d, t, nl.rsqrt, None),
        lambda d, t: nisa.tensor_tensor(d, d, t, nl.power),
        lambda d, t: nisa.tensor_copy(d, t, engine=nisa.engine.gpsimd),
        lambda d, t: nisa.tensor_scalar(d, t, nl.rsqrt, None, engine=nisa.engine.gpsimd),
    ],
)
def test_gpsimd_reaches_no_psum(operation):
    """What runs on GpSimdE takes SBUF tiles only."""

    def body(buffer):
        return lambda: operation(filled((4, 6)), filled((4, 6), buffer=buffer))

    run(body(nl.sbuf))
    with pytest.raises(ConstraintError, match="GpSimdE cannot access"):
        run(body(nl.psum))


def test_scalar_engine_copies_from_gen3_on():
    """tensor_copy on ScalarE is refused on Trn1."""

    def body():
        nisa.tensor_copy(filled((4, 6)), filled((4, 6)), engine=nisa.engine.scalar)

    run(body, "trn2")
    with pytest.raises(ConstraintError, match="NeuronCore-v3"):
        run(body, "trn1")


def test_vector_operands_are_float32_columns():
    """operand0 of tensor_scalar is a float32 [P, 1] tile."""

    def body(shape, dtype):
        return lambda: nisa.tensor_scalar(filled((4, 6)), filled((4, 6)), nl.add, filled(shape, dtype))

    run(body((4, 1), nl.float32))
    with pytest.raises(ConstraintError, match="must be float32"):
        run(body((4, 1), nl.bfloat16))
    with pytest.raises(ConstraintError, match=r"must have shape \(4, 1\)"):
        run(body((4, 6), nl.float32))


def test_operator_classes_do_not_mix():
    """A bitwise op0 with an arithmetic op1 is refused."""

    def body():
        tile = nl.ndarray((4, 6), nl.int32)
        nisa.memset(tile, 1)
        nisa.tensor_scalar(tile, tile, nl.bitwise_and, 1, op1=nl.add, operand1=1)

    with pytest.raises(ConstraintError, match="bitwise and op1"):
        run(body)


# ---- outputs ---------------------------------------------------------------------------------------------


def output_kernel(buffer, columns):
    def kernel(x):
        out = nl.ndarray(x.shape, x.dtype, buffer)
        nisa.dma_copy(out[:, 0:columns], x[:, 0:columns])
        return out

    return kernel


def test_outputs_are_whole_tensors_in_shared_hbm():
    """A tile, private HBM, a half-written output and nothing at all are refused."""
    np.testing.assert_array_equal(simulate(output_kernel(nl.shared_hbm, 6))(X), X)
    with pytest.raises(OutputError, match="20 of 24 elements"):
        run_kernel(output_kernel(nl.shared_hbm, 5), X)
    with pytest.raises(OutputError, match="not in shared HBM"):
        run_kernel(output_kernel(nl.hbm, 6), X)
    with pytest.raises(OutputError, match="not in shared HBM"):
        run_kernel(output_kernel(nl.sbuf, 6), X)
    with pytest.raises(OutputError, match="returns None"):
        run_kernel(lambda x: None, X)


def test_outputs_are_in_the_order_of_their_storage():
    """A reshaped output is the same bytes; a permuted one would come off a device in another order."""

    def kernel(x, permuted):
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, x)
        return out.permute((1, 0)) if permuted else out.reshape((X.shape[1], X.shape[0]))

    np.testing.assert_array_equal(run_kernel(kernel, X, permuted=False).outputs[0], X.reshape(6, 4))
    with pytest.raises(OutputError, match="in another order than it is stored in"):
        run_kernel(kernel, X, permuted=True)


def test_several_outputs_come_back_in_order():
    """A tuple of tensors is a tuple of arrays."""

    def kernel(x):
        one, two = (nl.ndarray(x.shape, dtype, nl.shared_hbm) for dtype in (nl.float32, nl.int32))
        nisa.dma_copy(one, x)
        nisa.dma_copy(two, x)
        return one, two

    one, two = simulate(kernel)(X)
    np.testing.assert_array_equal(one, two)
    assert two.dtype == np.int32


# ---- running ---------------------------------------------------------------------------------------------


def test_kernels_run_only_under_the_simulator():
    """Calling a kernel, or nki outside of one, says what to do instead."""
    kernel = jit(returning(lambda: None))
    assert isinstance(kernel, Kernel)
    with pytest.raises(SimulatorError, match="called directly"):
        kernel(X)
    with pytest.raises(SimulatorError, match="inside a running kernel"):
        nl.ndarray((4, 6), nl.float32)
    np.testing.assert_array_equal(simulate(kernel)(X), X)


def test_a_failed_run_leaves_no_trace():
    """After an error the next kernel runs, and a kernel cannot start another."""
    with pytest.raises(SimulatorError):
        run(lambda: simulate(returning(lambda: None))(X))
    np.testing.assert_array_equal(run(lambda: None).outputs[0], X)


def test_uncovered_instructions_are_refused_by_name():
    """What is not simulated says so instead of guessing."""
    with pytest.raises(AttributeError, match="no_such_instruction"):
        run(lambda: nisa.no_such_instruction)
    with pytest.raises(UnsupportedError, match="divide"):
        run(lambda: nl.divide(nl.ones((4, 6), nl.float32), 2.0))
    with pytest.raises(AttributeError, match="no_such_thing"):
        run(lambda: nl.no_such_thing)
    with pytest.raises(UnsupportedError, match="trn9"):
        run_kernel(returning(lambda: None), X, target="trn9")
    with pytest.raises(UnsupportedError, match="int64"):
        run_kernel(returning(lambda: None), X.astype(np.int64))


def test_machine_sizes_follow_the_target():
    """nl.tile_size and the generation are those of the target that the kernel runs on."""
    seen = []

    def body():
        seen.append(
            (
                nl.tile_size.pmax,
                nl.tile_size.psum_num_banks,
                nl.tile_size.sbuf_fmax_bytes,
                nisa.get_nc_version(),
            )
        )

    run(body, "inf2")
    run(body, "trn2")
    assert seen == [
        (128, 8, 176 * 1024, nisa.nc_version.gen2),
        (128, 8, 208 * 1024 - 8, nisa.nc_version.gen3),
    ]


def test_dynamic_loops_run_their_body():
    """fori_loop hands a register to its body; Python may not look into it."""

    def kernel(x):
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)

        def body(i):
            tile = nl.ndarray((1, 6), nl.float32)
            nisa.dma_copy(tile, x.ap([[6, 1], [1, 6]], scalar_offset=i))
            nisa.dma_copy(out.ap([[6, 1], [1, 6]], scalar_offset=i), tile)

        nl.fori_loop(0, nisa.register_alloc(4), body)
        return out

    np.testing.assert_array_equal(run_kernel(kernel, X).outputs[0], X)
    with pytest.raises(UnsupportedError, match="register"):
        run(lambda: nl.fori_loop(0, 2, range))


@pytest.mark.parametrize(
    "call",
    [
        lambda t: nisa.tensor_copy(t, 3.0),
        lambda t: nisa.tensor_tensor(t, t, 3.0, nl.add),
        lambda t: nisa.tensor_reduce(t, nl.add, None, 1),
        lambda t: nisa.nc_matmul(t, t, None),
        lambda t: nisa.nc_transpose(t, "data"),
        lambda t: nisa.dma_copy(t, np.ones((4, 6))),
        lambda t: nisa.memset(0.0, t),
        lambda t: nisa.max8(t, 1),
        lambda t: nisa.nc_stream_shuffle(t, None, [0] * 32),
    ],
)
def test_operands_are_tensors(call):
    """A number, None or an array where a tensor belongs is named with its place."""
    with pytest.raises(ConstraintError, match="must be a tensor"):
        run(lambda: call(filled((4, 6))))


def test_updated_inputs_come_back_as_copies():
    """An input that a kernel updates and returns is not changed by the next call."""

    def add_one(cache):
        tile = nl.ndarray(cache.shape, cache.dtype)
        nisa.dma_copy(tile, cache)
        nisa.tensor_scalar(tile, tile, nl.add, 1.0)
        nisa.dma_copy(cache, tile)
        return cache

    handle = to_hbm(X, mutable=True)
    first = run_kernel(add_one, handle).outputs[0]
    second = run_kernel(add_one, handle).outputs[0]
    np.testing.assert_array_equal(first, X + 1)
    np.testing.assert_array_equal(second, X + 2)
    np.testing.assert_array_equal(handle.numpy(), X + 2)
