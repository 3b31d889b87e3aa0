"""The judge: what is right passes, what is slightly wrong does not, at any scale and in both contracts."""

from __future__ import annotations

import pytest
import torch

from neuron_port.parity.comparison import compare, sabotages

DTYPES = [torch.float32, torch.bfloat16]


def problem(dtype, scale=1.0, rows=300, columns=64, length=96):
    """A product of two matrices: its truth, its own result in `dtype`, and one summed in another order."""
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn(rows, length, generator=generator) * scale).to(dtype)
    w = torch.randn(length, columns, generator=generator).to(dtype)
    truth_dtype = torch.float64 if dtype is torch.float32 else torch.float32
    truth = x.to(truth_dtype) @ w.to(truth_dtype)
    baseline = x @ w
    order = torch.randperm(length, generator=generator)
    reordered = (x[:, order].float() @ w[order].float()).to(dtype)
    return truth, baseline, reordered, x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_another_order_of_summation_passes(dtype, scale):
    """A legal reordering is within the noise at every scale: nothing is compared with a constant."""
    truth, baseline, reordered, _ = problem(dtype, scale)
    assert compare(reordered, truth, baseline, reduction_length=96).passed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_every_sabotage_is_refused(dtype, scale):
    """Zeros, a shuffle, a 2 % scale error, a dropped row and an echo of the input fail at every scale."""
    truth, baseline, _, x = problem(dtype, scale, columns=96)
    wrong = sabotages(baseline, (x,))
    assert {"zeros", "shuffled", "scaled by 1.02", "dropped row", "echo of input 0"} == set(wrong)
    for name, tensor in wrong.items():
        assert not compare(tensor, truth, baseline, reduction_length=96).passed, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_tile_is_found(dtype):
    """A single bad element among twenty thousand, or one bad slice of rows, fails."""
    truth, baseline, reordered, _ = problem(dtype)
    element = reordered.clone()
    element[200, 3] += 3 * truth.std().to(dtype)
    if dtype is torch.float32:
        assert not compare(element, truth, baseline, reduction_length=96).passed
    rows = reordered.clone()
    rows[128:160] = rows[128:160] * 1.05
    assert not compare(rows, truth, baseline, reduction_length=96).passed


def test_a_lost_half_of_the_precision_fails_the_float32_contract():
    """Computing in bfloat16 and calling it float32 is refused."""
    truth, baseline, _, x = problem(torch.float32)
    rounded = baseline.bfloat16().float()
    assert not compare(rounded, truth, baseline, reduction_length=96).passed
    assert x.dtype is torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_must_stand_where_the_truth_has_them(value):
    """A NaN in the output fails; an infinity that the truth has too passes, elsewhere it fails."""
    truth, baseline, reordered, _ = problem(torch.float32)
    reordered[1, 2] = value
    found = compare(reordered, truth, baseline, reduction_length=96)
    assert not found.passed
    assert "(1, 2)" in found.detail


def test_wrong_shape_and_dtype_are_named():
    """The sentence says both shapes, and both dtypes."""
    truth, baseline, reordered, _ = problem(torch.float32)
    assert "(300, 64)" in compare(reordered.t(), truth, baseline).detail
    assert "float16" in compare(reordered.half(), truth, baseline).detail


def test_all_zero_truth_accepts_only_zeros():
    """Where the layer gives zeros the kernel must too: there is no noise to hide in."""
    zeros = torch.zeros(4, 8)
    assert compare(zeros, zeros.double(), zeros).passed
    assert not compare(zeros + 1e-12, zeros.double(), zeros).passed
