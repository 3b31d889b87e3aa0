"""What is special to the residual_add recipe: exact sums, even work for a single token, long DMA rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from neuron_port.recipe import Binding
from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel
from neuron_port.types import TensorSpec

SBUF_LIMIT_BYTES = (192 - 16) * 1024  # gen2, per partition, less what the compiler keeps
RECIPE = Registry()["residual_add"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "residual_add", "residual_add/kernel.py")


def draw(tokens: int, hidden: int, dtype: Any = np.float32) -> list[np.ndarray]:
    """x and y [T, H]."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal((tokens, hidden), dtype=np.float32).astype(dtype) for _ in range(2)]


def run(arrays: list[np.ndarray], target: str = "inf2") -> KernelRun:
    return run_kernel(KERNEL, *arrays, target=target)


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 65), (1, 127), (1, 576), (130, 577), (300, 4096)])
def test_equals_the_rounded_exact_sum(sizes: tuple[int, int], dtype: Any, target: str) -> None:
    """Every element is the exact sum rounded once, also in tails of fewer elements than partitions."""
    x, y = draw(*sizes, dtype)
    expected = (x.astype(np.float64) + y.astype(np.float64)).astype(dtype)
    np.testing.assert_array_equal(run([x, y], target).outputs[0], expected)


@pytest.mark.parametrize(("hidden", "partitions"), [(4096, 128), (576, 96)])
def test_a_single_token_is_spread(hidden: int, partitions: int) -> None:
    """One token takes one instruction on many partitions, not one lane."""
    additions = [item for item in run(draw(1, hidden)).trace if item.opcode == "tensor_tensor"]
    assert [item.operands[0][1][0] for item in additions] == [partitions]


def test_prompt_is_moved_in_long_rows() -> None:
    """A prompt's DMAs move 2 KiB or more per partition, although H alone would give 260 bytes."""
    copies = [item for item in run(draw(1280, 65)).trace if item.opcode == "dma_copy"]
    assert len(copies) == 3
    assert all(item.dma_bytes >= 128 * 2048 for item in copies)


def test_every_byte_is_moved_once() -> None:
    """Both inputs are read once and the result written once, tails included."""
    x, y = draw(130, 577)
    finished = run([x, y])
    assert (finished.hbm_read_bytes, finished.hbm_write_bytes) == (x.nbytes + y.nbytes, x.nbytes)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_memory_stays_bounded(dtype: Any) -> None:
    """Two blocks are in flight within SBUF, however large the activations."""
    assert 2 * run(draw(1024, 4096, dtype)).peak_sbuf_bytes <= SBUF_LIMIT_BYTES


def test_shapes_that_differ_are_refused() -> None:
    """There is no broadcasting: [T, H] + [1, H] is refused."""
    x, y = draw(2, 64)
    run([x, y])
    with pytest.raises(Exception, match="x and y must have one shape"):
        run([x, y[:1]])


def call(*specs: tuple[tuple[int, ...], str], **attributes: Any) -> SimpleNamespace:
    inputs = tuple(TensorSpec(shape=shape, dtype=dtype) for shape, dtype in specs)
    return SimpleNamespace(operation="add", module=None, attributes=attributes, inputs=inputs)


def test_bind_accepts_equal_tensors() -> None:
    """Two activations of one shape and dtype are bound without weights or attributes."""
    assert RECIPE.recipe.bind(call(((2, 3, 8), "bfloat16"), ((2, 3, 8), "bfloat16"))) == Binding()


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(call(((2, 3, 8), "float32"), ((1, 3, 8), "float32")), id="broadcast"),
        pytest.param(call(((2, 3, 8), "float32"), ((2, 3, 8), "bfloat16")), id="dtypes"),
        pytest.param(call(((2, 3), "int64"), ((2, 3), "int64")), id="integers"),
        pytest.param(call(((2, 3, 8), "float32")), id="a number"),
        pytest.param(call(((2, 3, 8), "float32"), ((2, 3, 8), "float32"), alpha=2), id="scaled"),
    ],
)
def test_bind_refuses(refused: SimpleNamespace) -> None:
    """Anything else than a plain sum of two equal activations is not bound."""
    assert RECIPE.recipe.bind(refused) is None


def test_forward_speaks_the_layers_convention() -> None:
    """Around the reference, `forward` equals torch's sum of batches of sequences."""
    x, y = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert torch.equal(RECIPE.recipe.forward(RECIPE.reference, {}, {}, x, y), x + y)
