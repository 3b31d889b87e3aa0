"""MX matrices of NeuronCore-v4: quantize_mx and nc_matmul_mx against plain NumPy, and the rules of their layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import (
    AccumulationError,
    ConstraintError,
    KernelRun,
    UnwrittenReadError,
    run_kernel,
)
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

NATIVE = {
    "float8_e5m2_x4": ml_dtypes.float8_e5m2,
    "float8_e4m3fn_x4": ml_dtypes.float8_e4m3fn,
    "float4_e2m1fn_x4": ml_dtypes.float4_e2m1fn,
}
LARGEST_EXPONENT = {"float8_e5m2_x4": 15, "float8_e4m3fn_x4": 8}


def expected_quantized(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(elements [P, F] in the small dtype, scale bytes [P / 8, F / 4]) one group after the other, in float64."""
    partitions, free = x.shape
    elements = np.zeros(x.shape, NATIVE[kind])
    scales = np.zeros((partitions // 8, free // 4), np.uint8)
    wide = x.astype(np.float64)
    for row in range(0, partitions, 8):
        for column in range(0, free, 4):
            group = wide[row : row + 8, column : column + 4]
            largest = np.abs(group).max()
            exponent = -127
            if largest > 0:
                exponent = max(-127, int(np.floor(np.log2(largest))) - (LARGEST_EXPONENT[kind] - 1))
            scales[row // 8, column // 4] = exponent + 127
            scaled = (group / 2.0**exponent).astype(np.float32)
            elements[row : row + 8, column : column + 4] = scaled.astype(NATIVE[kind])
    return elements, scales


def used_rows(partitions: int, offset: int = 0) -> np.ndarray:
    """The partitions of a scale tile that hold scales: four at the start of each quadrant."""
    return np.concatenate([q + offset + np.arange(4) for q in range(0, partitions, 32)])


def packed_bits(elements: np.ndarray) -> np.ndarray:
    """Small floats [P, 4 N] as the integers [P, N] that hold four of them, the first in the lowest bits."""
    codes = elements.view(np.uint8).reshape(elements.shape[0], -1, 4)
    if elements.dtype == ml_dtypes.float4_e2m1fn:
        wide = codes.astype(np.uint16)
        return wide[..., 0] | wide[..., 1] << 4 | wide[..., 2] << 8 | wide[..., 3] << 12
    return np.ascontiguousarray(codes).view(np.uint32)[..., 0]


def quantizing_kernel(kind: str, scale_dtype: Any = nl.uint8) -> Callable[..., Any]:
    """A kernel that quantizes x and returns the packed bits and the whole scale tile."""

    def kernel(x: Any) -> Any:
        partitions, free = x.shape
        tile = nl.ndarray(x.shape, x.dtype, nl.sbuf)
        nisa.dma_copy(tile, x)
        data = nl.ndarray((partitions, free // 4), getattr(nl, kind), nl.sbuf)
        scale = nl.ndarray((partitions, free // 4), nl.uint8, nl.sbuf)
        nisa.memset(scale, 99)
        nisa.quantize_mx(data, tile, scale if scale_dtype is nl.uint8 else scale.view(scale_dtype))
        out = nl.ndarray(data.shape, nl.uint32, nl.shared_hbm)
        out_scale = nl.ndarray(scale.shape, nl.uint8, nl.shared_hbm)
        nisa.dma_copy(out, data.view(nl.uint32))
        nisa.dma_copy(out_scale, scale)
        return out, out_scale

    return kernel


@pytest.mark.parametrize("kind", ["float8_e5m2_x4", "float8_e4m3fn_x4"])
@pytest.mark.parametrize("partitions", [32, 64, 96, 128])
def test_quantize_mx_follows_the_published_formula(rng, kind, partitions):
    """Scales and elements are those of the documented formula, for groups of all magnitudes, bit for bit."""
    x = rng.standard_normal((partitions, 64)) * np.exp2(rng.integers(-40, 40, (partitions, 64)))
    x[:8, :4] = 0.0
    x = x.astype(ml_dtypes.bfloat16)
    bits, scale = run_kernel(quantizing_kernel(kind), x, target="trn3").outputs
    elements, scales = expected_quantized(x, kind)
    np.testing.assert_array_equal(bits, packed_bits(elements))
    np.testing.assert_array_equal(scale[used_rows(partitions)], scales)


def test_quantize_mx_reserves_a_binade_so_that_nothing_saturates():
    """A group whose largest value is just below a power of two is scaled twice as far as OCP's sample algorithm."""
    x = np.full((32, 4), 1.9921875, ml_dtypes.bfloat16)  # the largest bfloat16 below 2
    bits, scale = run_kernel(quantizing_kernel("float8_e4m3fn_x4"), x, target="trn3").outputs
    assert scale[0, 0] == 127 - 7
    np.testing.assert_array_equal(bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32), 256.0)


def test_quantize_mx_leaves_other_partitions_of_the_scale_tile_alone(rng):
    """Only four partitions of every quadrant are written."""
    x = rng.standard_normal((128, 16)).astype(ml_dtypes.bfloat16)
    _, scale = run_kernel(quantizing_kernel("float8_e4m3fn_x4"), x, target="trn3").outputs
    others = np.setdiff1d(np.arange(128), used_rows(128))
    np.testing.assert_array_equal(scale[others], 99)


def test_scales_may_be_floats_of_powers_of_two(rng):
    """A float8_e8m0fnu scale tile receives the same bytes as a uint8 one."""
    x = rng.standard_normal((64, 16)).astype(np.float16)
    plain = run_kernel(quantizing_kernel("float8_e5m2_x4"), x, target="trn3").outputs
    floats = run_kernel(quantizing_kernel("float8_e5m2_x4", nl.float8_e8m0fnu), x, target="trn3").outputs
    for one, other in zip(plain, floats, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_group_with_infinity_becomes_nan_with_a_warning():
    """Infinity has no scale: the group's scale is NaN, and the run warns."""
    x = np.ones((32, 8), ml_dtypes.bfloat16)
    x[3, 2] = np.inf
    run = run_kernel(quantizing_kernel("float8_e4m3fn_x4"), x, target="trn3")
    assert run.outputs[1][0].tolist() == [255, 127 - 7]
    assert any("NaN or infinity" in warning for warning in run.warnings)


def matmul_kernel(
    left_kind: str, right_kind: str, dtype: Any = nl.float32, times: int = 1, **options: Any
) -> Callable[..., Any]:
    """Load packed bits and contiguous scales, spread the scales over quadrants, multiply `times` times."""

    def kernel(left: Any, left_scale: Any, right: Any, right_scale: Any) -> Any:
        tiles = []
        for bits, scale, kind in ((left, left_scale, left_kind), (right, right_scale, right_kind)):
            data = nl.ndarray(bits.shape, getattr(nl, kind), nl.sbuf)
            nisa.dma_copy(data, bits.view(getattr(nl, kind)))
            spread = nl.ndarray(bits.shape, nl.uint8, nl.sbuf)
            for quadrant in range(bits.shape[0] // 32):
                rows = slice(quadrant * 4, quadrant * 4 + 4)
                nisa.dma_copy(spread[quadrant * 32 : quadrant * 32 + 4], scale[rows])
            tiles.append((data, spread))
        (a, a_scale), (b, b_scale) = tiles
        product = nl.ndarray((a.shape[1], b.shape[1]), dtype, nl.psum)
        for _ in range(times):
            nisa.nc_matmul_mx(product, a, b, a_scale, b_scale, **options)
        result = nl.ndarray(product.shape, dtype, nl.sbuf)
        nisa.tensor_copy(result, product)
        out = nl.ndarray(product.shape, dtype, nl.shared_hbm)
        nisa.dma_copy(out, result)
        return out

    return kernel


def random_matrix(rng: np.random.Generator, kind: str, partitions: int, columns: int) -> tuple[Any, Any, Any]:
    """(packed bits, scales, the float64 matrix [P, columns, 4] that they mean)."""
    elements = rng.uniform(-6, 6, (partitions, 4 * columns)).astype(np.float32).astype(NATIVE[kind])
    scales = rng.integers(120, 130, (partitions // 8, columns)).astype(np.uint8)
    factors = np.exp2(scales.astype(np.float64) - 127).repeat(8, axis=0)
    meaning = elements.astype(np.float64).reshape(partitions, columns, 4) * factors[..., None]
    return packed_bits(elements), scales, meaning


@pytest.mark.parametrize(
    ("left_kind", "right_kind"),
    [
        ("float8_e4m3fn_x4", "float8_e4m3fn_x4"),
        ("float8_e5m2_x4", "float8_e4m3fn_x4"),
        ("float4_e2m1fn_x4", "float8_e5m2_x4"),
        ("float4_e2m1fn_x4", "float4_e2m1fn_x4"),
    ],
)
@pytest.mark.parametrize("partitions", [32, 128])
def test_nc_matmul_mx_multiplies_dequantized_matrices(rng, left_kind, right_kind, partitions):
    """The product contracts partitions and the four values of each element, for every pair of formats."""
    left, left_scale, a = random_matrix(rng, left_kind, partitions, 16)
    right, right_scale, b = random_matrix(rng, right_kind, partitions, 24)
    kernel = matmul_kernel(left_kind, right_kind)
    (result,) = run_kernel(kernel, left, left_scale, right, right_scale, target="trn3").outputs
    np.testing.assert_allclose(result, np.einsum("kiq,kjq->ij", a, b), rtol=1e-5, atol=1e-3)


def test_nc_matmul_mx_accumulates_into_bfloat16(rng):
    """A second matmul adds to a bfloat16 PSUM tile, rounding each sum."""
    kind = "float8_e4m3fn_x4"
    left, left_scale, a = random_matrix(rng, kind, 64, 8)
    right, right_scale, b = random_matrix(rng, kind, 64, 8)
    kernel = matmul_kernel(kind, kind, nl.bfloat16, times=2)
    run = run_kernel(kernel, left, left_scale, right, right_scale, target="trn3")
    once = np.einsum("kiq,kjq->ij", a, b).astype(np.float32)
    rounded = once.astype(ml_dtypes.bfloat16).astype(np.float32)
    expected = (rounded + once).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_allclose(run.outputs[0].astype(np.float32), expected, rtol=2**-7)
    assert run.matmul_macs == 2 * 64 * 4 * 8 * 8


def test_nc_matmul_mx_refuses_to_add_to_what_was_never_written(rng):
    """accumulate=True on fresh PSUM is named."""
    kind = "float8_e4m3fn_x4"
    left, left_scale, _ = random_matrix(rng, kind, 32, 8)
    with pytest.raises(AccumulationError, match="never written"):
        run_kernel(
            matmul_kernel(kind, kind, accumulate=True), left, left_scale, left, left_scale, target="trn3"
        )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tile_position": (32, 0), "tile_size": (32, 128)}, None),
        ({"tile_position": (32, 64), "tile_size": (32, 64)}, "divide the columns"),
        ({"tile_position": (16, 0), "tile_size": (32, 128)}, "multiple"),
        ({"tile_position": (0, 0)}, "both be given"),
    ],
)
def test_nc_matmul_mx_tiles_rows_only(rng, options, complaint):
    """Rows of the array may be divided, columns not."""
    kind = "float8_e4m3fn_x4"
    left, left_scale, a = random_matrix(rng, kind, 32, 8)
    kernel = matmul_kernel(kind, kind, **options)
    if complaint is None:
        (result,) = run_kernel(kernel, left, left_scale, left, left_scale, target="trn3").outputs
        np.testing.assert_allclose(result, np.einsum("kiq,kjq->ij", a, a), rtol=1e-5)
    else:
        with pytest.raises(ConstraintError, match=complaint):
            run_kernel(kernel, left, left_scale, left, left_scale, target="trn3")


def test_one_scale_tile_holds_the_scales_of_four_matrices(rng):
    """Scales may start at partition 0, 4, 8 or 12 of the quadrants, as in AWS's guide on scale packing."""

    def kernel(x: Any, y: Any) -> Any:
        scales = nl.ndarray((128, 32), nl.uint8, nl.sbuf)
        packs = []
        for position, source in enumerate((x, y)):
            tile = nl.ndarray(source.shape, source.dtype, nl.sbuf)
            nisa.dma_copy(tile, source)
            columns = source.shape[1] // 4
            data = nl.ndarray((128, columns), nl.float8_e4m3fn_x4, nl.sbuf)
            scale = scales[12 * position :, :columns]
            nisa.quantize_mx(data, tile, scale)
            packs.append((data, scale))
        product = nl.ndarray((16, 32), nl.float32, nl.psum)
        nisa.nc_matmul_mx(product, packs[0][0], packs[1][0], packs[0][1], packs[1][1])
        result = nl.ndarray(product.shape, nl.float32, nl.sbuf)
        nisa.tensor_copy(result, product)
        out = nl.ndarray(product.shape, nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, result)
        return out

    x = rng.standard_normal((128, 64)).astype(ml_dtypes.bfloat16)
    y = rng.standard_normal((128, 128)).astype(ml_dtypes.bfloat16)
    (result,) = run_kernel(kernel, x, y, target="trn3").outputs

    def dequantized(values: np.ndarray) -> np.ndarray:
        elements, scales = expected_quantized(values, "float8_e4m3fn_x4")
        factors = np.exp2(scales.astype(np.float64) - 127).repeat(8, axis=0)[..., None]
        return elements.astype(np.float64).reshape(128, -1, 4) * factors

    expected = np.einsum("kiq,kjq->ij", dequantized(x), dequantized(y))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)


def quantize(
    shape: tuple[int, int] = (64, 32),
    dtype: Any = nl.bfloat16,
    data: tuple[int, int] = (64, 8),
    kind: Any = nl.float8_e4m3fn_x4,
    scale: tuple[int, int] = (64, 8),
    scale_dtype: Any = nl.uint8,
    first: int = 0,
    buffer: Any = None,
    target: str = "trn3",
) -> KernelRun:
    """One quantize_mx whose every operand can be chosen; the defaults are legal."""

    def kernel(x: Any) -> Any:
        source = nl.ndarray(shape, dtype, buffer or nl.sbuf)
        nisa.memset(source, 1.0)
        quantized = nl.ndarray(data, kind, nl.sbuf)
        scales = nl.ndarray(scale, scale_dtype, nl.sbuf)
        nisa.quantize_mx(quantized, source, scales[first:])
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, x)
        return out

    return run_kernel(kernel, np.zeros((1, 1), np.float32), target=target)


def test_a_legal_quantize_mx_passes():
    """The operands that the next test breaks one by one are legal."""
    for run in (quantize(), quantize(first=4), quantize(shape=(32, 32), data=(32, 8), scale=(4, 8))):
        assert run.trace.counts_by_opcode()["quantize_mx"] == 1


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"target": "trn2"}, "NeuronCore-v4"),
        ({"dtype": nl.float32}, "src .* must be float16 or bfloat16"),
        ({"kind": nl.float4_e2m1fn_x4}, "dst .* must be float8_e5m2_x4 or float8_e4m3fn_x4"),
        ({"kind": nl.uint32}, "dst .* must be"),
        ({"scale_dtype": nl.int8}, "dst_scale .* must be uint8"),
        ({"shape": (48, 32), "data": (48, 8)}, "32, 64, 96 or 128"),
        ({"shape": (64, 30)}, "multiple of 4"),
        ({"data": (64, 16)}, "a packed element holds"),
        ({"scale": (8, 8)}, "four partitions in every quadrant"),
        ({"scale": (64, 4)}, "four partitions in every quadrant"),
        ({"first": 2}, "0, 4, 8 or 12"),
        ({"buffer": nl.psum}, "must be in SBUF"),
    ],
)
def test_quantize_mx_names_the_operand_that_breaks_a_rule(broken, complaint):
    """Generation, dtypes, sizes, the layout of scales and the memory are checked."""
    with pytest.raises(ConstraintError, match=complaint):
        quantize(**broken)


def multiply(
    left: tuple[int, int] = (64, 8),
    right: tuple[int, int] = (64, 16),
    kind: Any = nl.float8_e4m3fn_x4,
    product: tuple[int, int] = (8, 16),
    dtype: Any = nl.float32,
    buffer: Any = None,
    written: int = 64,
    target: str = "trn3",
) -> KernelRun:
    """One nc_matmul_mx of zeros whose every operand can be chosen; the defaults are legal."""

    def kernel(x: Any) -> Any:
        tiles = []
        for shape in (left, right):
            data = nl.ndarray(shape, kind, nl.sbuf)
            nisa.memset(data, 0)
            scales = nl.ndarray(shape, nl.uint8, nl.sbuf)
            nisa.memset(scales[: min(written, shape[0])], 127)
            tiles.append((data, scales))
        dst = nl.ndarray(product, dtype, buffer or nl.psum)
        nisa.nc_matmul_mx(dst, tiles[0][0], tiles[1][0], tiles[0][1], tiles[1][1])
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, x)
        return out

    return run_kernel(kernel, np.zeros((1, 1), np.float32), target=target)


def test_a_legal_nc_matmul_mx_passes():
    """The operands that the next test breaks one by one are legal, up to all of PSUM as destination."""
    whole = multiply(right=(64, 4096), product=(8, 4096))
    narrow = multiply(right=(64, 8192), product=(8, 8192), dtype=nl.bfloat16)
    assert [run.peak_psum_banks for run in (multiply(), whole, narrow)] == [1, 8, 8]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"target": "trn2"}, "NeuronCore-v4"),
        ({"kind": nl.uint32}, "must be float8_e5m2_x4"),
        ({"left": (64, 7), "product": (7, 16)}, "must be even"),
        ({"left": (64, 130), "product": (128, 16)}, "at most 128"),
        ({"left": (32, 8)}, "contraction dimension"),
        ({"left": (48, 8), "right": (48, 16)}, "32, 64, 96 or 128"),
        ({"right": (64, 8192), "product": (8, 4096)}, "at most 4096 into float32"),
        ({"product": (8, 8)}, r"must be \[M, N\]"),
        ({"dtype": nl.float16}, "must be float32 or bfloat16"),
        ({"buffer": nl.sbuf}, "must be in PSUM"),
    ],
)
def test_nc_matmul_mx_names_the_operand_that_breaks_a_rule(broken, complaint):
    """Generation, dtypes, sizes and memory are checked."""
    with pytest.raises(ConstraintError, match=complaint):
        multiply(**broken)


def test_unwritten_scales_are_refused():
    """A matmul whose second quadrant has no scales reads what nothing wrote."""
    with pytest.raises(UnwrittenReadError, match="stationary_scale"):
        multiply(written=32)


@pytest.mark.parametrize(("value", "complaint"), [(0, None), (0.0, None), (1, "packed"), (2.5, "packed")])
def test_a_packed_tile_can_only_be_cleared(value, complaint):
    """memset of a packed dtype takes 0 only."""

    def kernel(x: Any) -> Any:
        tile = nl.ndarray((32, 8), nl.float8_e5m2_x4, nl.sbuf)
        nisa.memset(tile, value)
        out = nl.ndarray((32, 8), nl.uint32, nl.shared_hbm)
        nisa.dma_copy(out, tile.view(nl.uint32))
        return out

    if complaint is None:
        assert not run_kernel(kernel, np.zeros((1, 1), np.float32), target="trn3").outputs[0].any()
    else:
        with pytest.raises(ConstraintError, match=complaint):
            run_kernel(kernel, np.zeros((1, 1), np.float32), target="trn3")


def test_packed_elements_do_not_compute():
    """Arithmetic on a packed tile is refused; a copy keeps its bits."""

    def kernel(x: Any, *, computes: bool) -> Any:
        tile = nl.ndarray(x.shape, nl.float8_e5m2_x4, nl.sbuf)
        nisa.dma_copy(tile, x.view(nl.float8_e5m2_x4))
        other = nl.ndarray(x.shape, nl.float8_e5m2_x4, nl.sbuf)
        if computes:
            nisa.tensor_scalar(other, tile, nl.multiply, 2.0)
        else:
            nisa.tensor_copy(other, tile)
        out = nl.ndarray(x.shape, nl.uint32, nl.shared_hbm)
        nisa.dma_copy(out, other.view(nl.uint32))
        return out

    bits = np.arange(64, dtype=np.uint32).reshape(8, 8) * 0x01020304
    np.testing.assert_array_equal(run_kernel(kernel, bits, computes=False, target="trn3").outputs[0], bits)
    with pytest.raises(ConstraintError, match="four elements in one"):
        run_kernel(kernel, bits, computes=True, target="trn3")


def test_a_packed_tile_is_not_converted_by_dma():
    """DMA between a packed and another dtype needs a view."""

    def kernel(x: Any) -> Any:
        tile = nl.ndarray(x.shape, nl.float8_e5m2_x4, nl.sbuf)
        nisa.dma_copy(tile, x)
        return x

    with pytest.raises(ConstraintError, match="cannot be converted"):
        run_kernel(kernel, np.ones((8, 8), np.uint32), target="trn3")
