"""What is special to the embedding recipe: rows are copied bit for bit, and only those that are asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, OutOfBoundsError, load_kernel_source, run_kernel
from neuron_port.types import TensorSpec

SBUF_LIMIT_BYTES = (192 - 16) * 1024  # gen2, per partition, less what the compiler keeps
RECIPE = Registry()["embedding"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "embedding", "embedding/kernel.py")


def draw(tokens: int, vocabulary: int, hidden: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """ids [T], table [V, H]."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocabulary, tokens).astype(np.int32)
    return ids, generator.standard_normal((vocabulary, hidden), dtype=np.float32).astype(dtype)


def run(ids: np.ndarray, table: np.ndarray, target: str = "inf2") -> KernelRun:
    return run_kernel(KERNEL, ids, table, target=target)


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 50, 576), (128, 9, 64), (130, 77, 577), (3, 5, 20000)])
def test_copies_rows_exactly(sizes: tuple[int, int, int], dtype: Any, target: str) -> None:
    """Repeated ids, the first and the last row, partial tiles: every row arrives bit for bit."""
    ids, table = draw(*sizes, dtype)
    ids[0], ids[-1] = 0, sizes[1] - 1
    np.testing.assert_array_equal(run(ids, table, target).outputs[0], table[ids])


def test_special_values_survive() -> None:
    """NaN, infinities and subnormals are moved, not computed with."""
    table = np.array([[np.nan, np.inf, -np.inf, 1e-42, -0.0]], dtype=np.float32)
    output = run(np.zeros(3, np.int32), table).outputs[0]
    assert output.tobytes() == np.repeat(table, 3, axis=0).tobytes()


@pytest.mark.parametrize("bad", [-1, 50])
def test_id_out_of_range_is_refused(bad: int) -> None:
    """An id outside the vocabulary stops the kernel; its neighbours inside do not."""
    ids, table = draw(4, 50, 8)
    ids[2] = 49
    run(ids, table)
    ids[2] = bad
    with pytest.raises(OutOfBoundsError):
        run(ids, table)


def test_only_named_rows_are_read() -> None:
    """Traffic is that of the rows asked for, whatever the vocabulary, and TensorE stays idle."""
    ids, table = draw(130, 5000, 64)
    finished = run(ids, table)
    assert finished.hbm_read_bytes == ids.nbytes + 130 * table[0].nbytes
    assert finished.hbm_write_bytes == 130 * table[0].nbytes
    assert finished.matmul_macs == 0


def test_memory_stays_bounded() -> None:
    """Four blocks of a very wide table are in flight within SBUF."""
    assert 4 * run(*draw(130, 10, 40000)).peak_sbuf_bytes <= SBUF_LIMIT_BYTES


def call(module: torch.nn.Module, dtype: str = "int64") -> SimpleNamespace:
    inputs = (TensorSpec(shape=(2, 3), dtype=dtype),)
    return SimpleNamespace(operation="module", module=module, attributes={}, inputs=inputs)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_bind_reads_a_table(dtype: str) -> None:
    """An embedding called with integer ids is bound to its weight as it lies in the checkpoint."""
    (binding,) = RECIPE.recipe.bindings(call(torch.nn.Embedding(9, 4), dtype))
    assert binding.weights["table"].transform == "none"
    assert binding.attributes == {"argument": 0, "offset": 0, "scale": 1.0}


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(call(torch.nn.Embedding(9, 4), "float32"), id="floating point input"),
        pytest.param(call(torch.nn.Embedding(9, 4, max_norm=1.0)), id="max_norm"),
        pytest.param(call(torch.nn.Linear(3, 4)), id="bias"),
        pytest.param(call(torch.nn.LayerNorm(3, bias=False)), id="vector"),
    ],
)
def test_bind_refuses(refused: SimpleNamespace) -> None:
    """What is no plain lookup in one table is not bound."""
    assert RECIPE.recipe.bind(refused) is None


def test_forward_speaks_the_layers_convention() -> None:
    """Around the reference, `forward` equals torch's own layer on int64 ids of any shape."""
    layer = torch.nn.Embedding(9, 4)
    ids = torch.tensor([[1, 8, 0], [2, 2, 7]])
    plain = {"argument": 0, "offset": 0, "scale": 1.0}
    forward, weights = RECIPE.recipe.forward, {"table": layer.weight}
    assert torch.equal(forward(RECIPE.reference, weights, plain, ids), layer(ids))
    past_two = plain | {"offset": 2}
    assert torch.equal(forward(RECIPE.reference, weights, past_two, ids % 7), layer(ids % 7 + 2))


def test_places_that_the_module_counts_itself() -> None:
    """Without ids among the arguments the places are counted, after as many as the second argument says."""
    layer = torch.nn.Embedding(9, 4)
    counted = {"argument": None, "offset": 2, "scale": 1.0}
    hidden = torch.zeros(1, 3, 4)
    found = RECIPE.recipe.forward(RECIPE.reference, {"table": layer.weight}, counted, hidden, 2)
    assert torch.equal(found, layer(torch.tensor([[4, 5, 6]])))
