"""What single instructions and transfers cost, against the published single-instruction figures."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from neuron_port.simulator.timing import Scheduled, predict

bf16 = ml_dtypes.bfloat16


def entries(body: Any, *arrays: np.ndarray, target: str = "trn2") -> list[Scheduled]:
    """The timeline of `body(out, *inputs)`, which ends by storing a [128, 1] tile."""

    def kernel(*inputs: Any) -> Any:
        out = nl.ndarray((128, 1), nl.float32, nl.shared_hbm)
        body(*inputs)
        last = nl.ndarray((128, 1), nl.float32, nl.sbuf)
        nisa.memset(last, 0.0)
        nisa.dma_copy(out, last)
        return out

    return list(predict(run_kernel(kernel, *arrays, target=target)).scheduled)


def only(scheduled: list[Scheduled], opcode: str) -> Scheduled:
    """The one entry of that opcode."""
    (entry,) = [entry for entry in scheduled if entry.instruction.opcode == opcode]
    return entry


def tile(shape: tuple[int, ...], dtype: Any = nl.float32, buffer: Any = nl.sbuf) -> Any:
    made = nl.ndarray(shape, dtype, buffer)
    if buffer is nl.sbuf:
        nisa.memset(made, 0.0)
    return made


def latency(body: Any, opcode: str, target: str = "trn2") -> float:
    """Start to visible result, in ns."""
    entry = only(entries(lambda *_: body(), np.zeros((1, 1), np.float32), target=target), opcode)
    return entry.end_ns - entry.start_ns


@pytest.mark.parametrize(
    ("elements", "published_ns"),
    [(128, 402), (4096, 3716)],
)
def test_exp_takes_what_the_published_profile_shows(elements, published_ns):
    """exp on Trn2 takes 402 ns for 128 and 3716 ns for 4096 elements per partition."""

    def body():
        data = tile((128, elements), nl.bfloat16)
        nisa.activation(tile((128, elements), nl.bfloat16), nl.exp, data)

    entry = only(entries(lambda *_: body(), np.zeros((1, 1), np.float32)), "activation")
    assert entry.end_ns - entry.start_ns - entry.table_load_ns == pytest.approx(published_ns, rel=0.03)


def test_a_float32_copy_runs_at_two_elements_a_cycle_on_v3():
    """tensor_copy of 512 float32 within SBUF takes 428 ns on Trn2."""
    measured = latency(
        lambda: nisa.tensor_copy(tile((128, 512)), tile((128, 512)), engine=nisa.engine.vector), "tensor_copy"
    )
    assert measured == pytest.approx(428, rel=0.03)


def test_adding_from_psum_runs_at_one_element_a_cycle_on_v3():
    """tensor_tensor of 512 float32, one side in PSUM, takes 695 ns on Trn2."""

    def body():
        psum = nl.ndarray((128, 512), nl.float32, nl.psum)
        nisa.nc_matmul(psum, tile((128, 128)), tile((128, 512)))
        nisa.tensor_tensor(tile((128, 512)), tile((128, 512)), psum, nl.add)

    assert latency(body, "tensor_tensor") == pytest.approx(695, rel=0.03)


def test_float32_matmuls_take_four_passes():
    """A float32 matmul of 512 columns keeps TensorE busy for two published MATMULs of 429.6 ns; bf16 for a fourth."""

    def busy(dtype):
        def body():
            for _ in range(40):  # long enough for the clock to be up
                psum = nl.ndarray((128, 512), nl.float32, nl.psum)
                nisa.nc_matmul(psum, weights, moving)

        def kernel(*_):
            nonlocal weights, moving
            weights, moving = tile((128, 128), dtype), tile((128, 512), dtype)
            body()

        weights = moving = None
        last = [
            e for e in entries(kernel, np.zeros((1, 1), np.float32)) if e.instruction.opcode == "nc_matmul"
        ][-1]
        return last.busy_ns

    assert busy(nl.float32) == pytest.approx(2 * 429.6, rel=0.01)
    assert busy(nl.float32) == pytest.approx(4 * busy(nl.bfloat16))


@pytest.mark.parametrize(
    ("shape", "engines", "published_ns"),
    [((4, 4096), 1, (1416 + 1217) / 2), ((128, 128), 16, 97)],
)
def test_a_load_uses_one_engine_for_every_eight_partitions(shape, engines, published_ns):
    """[4, 4096] bf16 moves on one DMA engine (1416 ns in, 1217 ns out), [128, 128] on all 16 (97 ns each)."""

    def body(source):
        nisa.dma_copy(nl.ndarray(shape, nl.bfloat16, nl.sbuf), source)

    load = next(e for e in entries(body, np.zeros(shape, bf16)) if e.dma_queue == "load")
    assert len(load.dma_engines) == engines
    assert load.busy_ns == pytest.approx(published_ns, rel=0.1)


def test_neighbouring_rows_of_hbm_are_one_piece_and_strided_rows_are_many():
    """A whole [128, 512] matrix is one run for each engine; half of its columns is one run for each row."""

    def body(source):
        nisa.dma_copy(nl.ndarray((128, 512), nl.float32, nl.sbuf), source)
        nisa.dma_copy(nl.ndarray((128, 256), nl.float32, nl.sbuf), source[0:128, 0:256])

    whole, half = [e for e in entries(body, np.zeros((128, 512), np.float32)) if e.dma_queue == "load"]
    assert (whole.descriptors, half.descriptors) == (16, 128)
    assert half.busy_ns > whole.busy_ns / 2


def test_a_transposed_access_pays_for_every_element():
    """Reading a matrix by columns moves 4-byte pieces and is many times slower than reading it by rows."""

    def body(source):
        nisa.dma_copy(nl.ndarray((128, 128), nl.float32, nl.sbuf), source)
        nisa.dma_copy(nl.ndarray((128, 128), nl.float32, nl.sbuf), source.permute((1, 0)))

    rows, columns = [e for e in entries(body, np.zeros((128, 128), np.float32)) if e.dma_queue == "load"]
    assert columns.descriptor_bytes == 4
    assert columns.busy_ns > 10 * rows.busy_ns


def test_sixteen_bit_vector_work_is_faster_on_v3_only():
    """A bf16 copy within SBUF runs at four elements a cycle on NeuronCore-v3 and at one on v2."""

    def body():
        nisa.tensor_copy(
            tile((128, 4096), nl.bfloat16), tile((128, 4096), nl.bfloat16), engine=nisa.engine.vector
        )

    assert latency(body, "tensor_copy", "trn1") > 3 * latency(body, "tensor_copy", "trn2")


def test_broadcasting_a_partition_costs_no_more_than_reading_it():
    """The number of partitions does not change the cost of an instruction (trainium_inferentia2_arch.rst)."""

    def cost(partitions):
        return latency(
            lambda: nisa.tensor_scalar(tile((partitions, 512)), tile((partitions, 512)), nl.add, 1.0),
            "tensor_scalar",
        )

    assert cost(32) == cost(128)
