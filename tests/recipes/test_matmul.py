"""What is special to the matmul recipe: every spelling of a batched product, small problems, one operand for all."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from neuron_port.match.probe import RELATIVE_LIMIT, probe
from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel
from neuron_port.walk.calls import Call

RECIPE = Registry()["matmul"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "matmul", "matmul/kernel.py")


def draw(a_shape: tuple[int, ...], b_shape: tuple[int, ...], dtype: Any = np.float32) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    a = generator.standard_normal(a_shape, dtype=np.float32)
    b = generator.standard_normal(b_shape, dtype=np.float32) * a_shape[-1] ** -0.5
    return [a.astype(dtype), b.astype(dtype)]


def run(arrays: list[np.ndarray], target: str = "inf2") -> KernelRun:
    return run_kernel(KERNEL, *arrays, target=target)


SHAPES = [
    pytest.param((5, 70, 65), (5, 65, 130), id="small problems"),
    pytest.param((40, 9, 3), (40, 3, 5), id="tiny problems"),
    pytest.param((3, 1, 512), (3, 512, 600), id="a row each"),
    pytest.param((2, 200, 300), (2, 300, 700), id="large problems"),
    pytest.param((1, 20, 140), (4, 140, 30), id="one a"),
    pytest.param((4, 20, 140), (1, 140, 30), id="one b"),
]


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES)
def test_equals_float64_product(a_shape: tuple[int, ...], b_shape: tuple[int, ...], target: str) -> None:
    """Every way through the kernel gives the product in float64."""
    a, b = draw(a_shape, b_shape)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(run([a, b], target).outputs[0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES)
def test_no_product_is_wasted_or_skipped(a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
    """TensorE multiplies exactly Z * M * K * N times."""
    problems = max(a_shape[0], b_shape[0])
    assert run(draw(a_shape, b_shape)).matmul_macs == problems * a_shape[1] * a_shape[2] * b_shape[2]


def test_one_b_is_read_once() -> None:
    """A b that all problems share crosses HBM once, because the rows of all problems are one problem."""
    arrays = draw((6, 40, 128), (1, 128, 256))
    assert run(arrays).hbm_read_bytes == sum(array.nbytes for array in arrays)


def test_small_problems_share_dmas() -> None:
    """Sixty-four problems of 1 KiB need a DMA for every sixteen, not one for each."""
    counts = run(draw((64, 16, 16), (64, 16, 16))).trace.counts_by_opcode()
    assert counts["dma_copy"] == 3 * 64 // 16


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_memory_stays_bounded(dtype: Any) -> None:
    """SBUF and PSUM suffice for long rows and for many tokens."""
    for shapes in (((2, 600, 14336), (2, 14336, 64)), ((1, 1100, 2048), (1, 2048, 64))):
        finished = run(draw(*shapes, dtype))
        assert finished.peak_sbuf_bytes + 2 * 16 * 1024 <= (192 - 16) * 1024
        assert finished.peak_psum_banks <= 8


def call(function: Any, *args: Any, **kwargs: Any) -> Call:
    """The call as the model's walk records it."""
    attributes = {"function": function.__name__}
    return Call(
        name="#matmul", operation="matmul", module=None, owner="Mixer", function=function, args=args, kwargs=kwargs,
        attributes=attributes,
    )  # fmt: skip


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(call(torch.matmul, tensor(3, 4), tensor(4, 5)), id="matrices"),
        pytest.param(call(torch.Tensor.__matmul__, tensor(2, 6, 3, 4), tensor(2, 6, 4, 5)), id="@"),
        pytest.param(call(torch.Tensor.__rmatmul__, tensor(4, 5), tensor(2, 3, 4)), id="@ from the right"),
        pytest.param(call(torch.matmul, tensor(2, 6, 3, 4), tensor(4, 5)), id="one b"),
        pytest.param(call(torch.matmul, tensor(3, 4), tensor(2, 6, 4, 5)), id="one a"),
        pytest.param(call(torch.matmul, tensor(1, 1, 3, 4), tensor(6, 4, 5)), id="one a of higher rank"),
        pytest.param(call(torch.matmul, tensor(6, 3, 4), tensor(1, 1, 4, 5)), id="one b of higher rank"),
        pytest.param(call(torch.matmul, tensor(2, 1, 3, 4), tensor(1, 6, 4, 5)), id="broadcast on both sides"),
        pytest.param(call(torch.bmm, tensor(6, 3, 4), tensor(6, 4, 5)), id="bmm"),
        pytest.param(call(torch.bmm, tensor(6, 3, 4), mat2=tensor(6, 4, 5)), id="bmm by name"),
        pytest.param(
            call(torch.baddbmm, tensor(6, 3, 5), tensor(6, 3, 4), tensor(6, 4, 5), beta=0.5, alpha=2.0), id="baddbmm"
        ),
        pytest.param(call(torch.einsum, "bij,bjk->bik", tensor(2, 3, 4), tensor(2, 4, 5)), id="einsum"),
        pytest.param(call(torch.einsum, "bhid, bhjd -> bhij", tensor(2, 6, 3, 4), tensor(2, 6, 5, 4)), id="scores"),
        pytest.param(call(torch.einsum, "bcln,bhpcl->bchpn", tensor(2, 3, 4, 5), tensor(2, 6, 7, 3, 4)), id="chunks"),
        pytest.param(call(torch.einsum, "ab,bc->ca", tensor(3, 4), tensor(4, 5)), id="turned"),
        pytest.param(call(torch.einsum, "abc,bcd->ad", tensor(3, 4, 5), tensor(4, 5, 6)), id="two sums"),
        pytest.param(call(torch.einsum, "ab,bc->ac", [tensor(3, 4), tensor(4, 5)]), id="a list"),
    ],
)  # fmt: skip
def test_the_probe_accepts_every_spelling(subject: Call) -> None:
    """Each spelling is bound, and computes what torch computes."""
    (binding,) = RECIPE.recipe.bindings(subject)
    assert max(probe(subject, RECIPE.recipe, RECIPE.reference, binding).values()) <= RELATIVE_LIMIT


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(call(torch.matmul, tensor(3, 4), tensor(4)), id="a vector"),
        pytest.param(call(torch.einsum, "ab,cd->abcd", tensor(3, 4), tensor(4, 5)), id="an outer product"),
        pytest.param(
            call(torch.einsum, "abc,bd->ad", tensor(3, 4, 5), tensor(4, 6)), id="a sum over one operand"
        ),
        pytest.param(call(torch.einsum, "aab,bc->ac", tensor(3, 3, 4), tensor(4, 5)), id="a diagonal"),
        pytest.param(call(torch.einsum, "...b,bc->...c", tensor(3, 4), tensor(4, 5)), id="an ellipsis"),
        pytest.param(call(torch.einsum, "ab,bc", tensor(3, 4), tensor(4, 5)), id="no result"),
        pytest.param(
            call(torch.einsum, "ab,bc,cd->ad", tensor(3, 4), tensor(4, 5), tensor(5, 6)), id="three"
        ),
        pytest.param(call(torch.matmul, tensor(3, 4), tensor(4, 5).double()), id="two dtypes"),
    ],
)
def test_bind_refuses(subject: Call) -> None:
    """What is no batched product of two matrices is not bound."""
    assert RECIPE.recipe.bind(subject) is None
