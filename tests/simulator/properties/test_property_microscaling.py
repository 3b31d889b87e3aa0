"""Properties of NeuronCore-v4's microscaling instructions: scales, packed elements and products by group."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from property_reference import FLOATS, NUMPY, rounded
from property_tiles import covers, make_values, properties, seeds

from neuron_port.simulator import run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

LARGEST_EXPONENT = {"float8_e4m3fn": 8, "float8_e5m2": 15}
ELEMENTS = {
    "float8_e4m3fn_x4": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2_x4": np.dtype(ml_dtypes.float8_e5m2),
    "float4_e2m1fn_x4": np.dtype(ml_dtypes.float4_e2m1fn),
}


def groups(values: np.ndarray) -> np.ndarray:
    """[P, F] as [P / 8, F / 4, 32]: the values that share a scale."""
    partitions, free = values.shape
    grouped = values.reshape(partitions // 8, 8, free // 4, 4)
    return grouped.transpose(0, 2, 1, 3).reshape(partitions // 8, free // 4, 32)


def scale_exponents(values: np.ndarray, element: str) -> np.ndarray:
    """[P / 8, F / 4] exponents of the shared scales; a group of zeros has -127."""
    largest = np.abs(groups(values)).max(axis=-1)
    with np.errstate(divide="ignore"):
        exponents = np.floor(np.log2(largest)) - (LARGEST_EXPONENT[element] - 1)
    return np.where(largest == 0, -127, np.clip(exponents, -127, 127))


def spread(of_group: np.ndarray) -> np.ndarray:
    """A value for each group [P / 8, F / 4] as a value for each element [P, F]."""
    return np.repeat(np.repeat(of_group, 8, axis=0), 4, axis=1)


def scattered(of_group: np.ndarray, partitions: int, offset: int) -> np.ndarray:
    """[P / 8, F / 4] as a scale tile holds it: four partitions at `offset` of each quadrant, zeros elsewhere."""
    tile = np.zeros((partitions, of_group.shape[1]))
    for row, values in enumerate(of_group):
        tile[row // 4 * 32 + offset + row % 4] = values
    return tile


@covers("quantize_mx")
@given(
    st.sampled_from([32, 64, 96, 128]),
    st.integers(1, 6),
    st.sampled_from(["bfloat16", "float16"]),
    st.sampled_from(list(LARGEST_EXPONENT)),
    st.sampled_from([0, 4, 8, 12]),
    seeds,
)
@properties
def test_quantize_mx_shares_a_scale_among_32_values(
    partitions: int, columns: int, dtype: str, element: str, offset: int, seed: int
) -> None:
    """Scales follow the documented formula, lie in four partitions of their quadrant, and divide the values."""
    values = rounded(make_values((partitions, 4 * columns), dtype, seed) * 2.0 ** (seed % 9 - 4), dtype)
    values[:8, :4] = 0.0

    def kernel(source: Any) -> Any:
        src = nl.ndarray(source.shape, source.dtype, nl.sbuf)
        nisa.dma_copy(src, source)
        dst = nl.ndarray((partitions, columns), getattr(nl, element + "_x4"), nl.sbuf)
        scale = nl.ndarray((partitions, columns), nl.uint8, nl.sbuf)
        nisa.memset(scale, 0)
        end = partitions - 28 + offset
        nisa.quantize_mx(dst, src, scale[offset:end])
        out = nl.ndarray(dst.shape, dst.dtype, nl.shared_hbm)
        scale_out = nl.ndarray(scale.shape, scale.dtype, nl.shared_hbm)
        nisa.dma_copy(out, dst)
        nisa.dma_copy(scale_out, scale)
        return out, scale_out

    packed, scales = run_kernel(kernel, values.astype(NUMPY[dtype]), target="trn3").outputs
    exponents = scale_exponents(values, element)
    np.testing.assert_array_equal(scales, scattered(exponents + 127, partitions, offset))
    got = packed.view(np.uint8).view(NUMPY[element]).astype(np.float64)
    np.testing.assert_array_equal(got, rounded(values / 2.0 ** spread(exponents), element))


@st.composite
def packed_matrices(draw: Any, partitions: int, columns: int) -> Any:
    """(packed dtype, numpy codes as kernels receive them, scale bytes [P / 8, columns], values [4 P, columns])."""
    name = draw(st.sampled_from(list(ELEMENTS)))
    rng = np.random.default_rng(draw(seeds))
    element = ELEMENTS[name]
    values = rng.standard_normal((partitions, columns, 4)).astype(element)
    codes = values.view(np.uint8)
    if name == "float4_e2m1fn_x4":
        wide = codes.astype(np.uint16)
        packed = wide[..., 0] | wide[..., 1] << 4 | wide[..., 2] << 8 | wide[..., 3] << 12
    else:
        packed = codes.view(np.uint32)[..., 0]
    scales = rng.integers(120, 134, (partitions // 8, columns))
    factors = 2.0 ** (np.repeat(scales, 8, axis=0) - 127.0)
    exact = values.astype(np.float64) * factors[..., None]
    return name, packed, scales, exact.transpose(0, 2, 1).reshape(4 * partitions, columns)


@covers("nc_matmul_mx")
@given(st.data(), st.sampled_from([32, 64, 96, 128]), st.integers(1, 8), st.integers(1, 12), st.booleans())
@properties
def test_nc_matmul_mx_multiplies_scaled_elements(
    data: Any, partitions: int, half: int, n: int, narrow: bool
) -> None:
    """The contraction runs over partitions and packed elements, each times its group's power of two."""
    left_name, left, left_scales, exact_left = data.draw(packed_matrices(partitions, 2 * half))
    right_name, right, right_scales, exact_right = data.draw(packed_matrices(partitions, n))
    offsets = data.draw(st.tuples(st.sampled_from([0, 4, 8, 12]), st.sampled_from([0, 4, 8, 12])))
    out_dtype = nl.bfloat16 if narrow else nl.float32

    def kernel(a: Any, b: Any, a_scale: Any, b_scale: Any) -> Any:
        tiles = []
        for source, name in ((a, left_name), (b, right_name)):
            tile = nl.ndarray(source.shape, getattr(nl, name), nl.sbuf)
            nisa.dma_copy(tile, source.view(getattr(nl, name)))
            tiles.append(tile)
        for source in (a_scale, b_scale):
            tile = nl.ndarray(source.shape, nl.uint8, nl.sbuf)
            nisa.dma_copy(tile, source)
            tiles.append(tile)
        psum = nl.ndarray((2 * half, n), out_dtype, nl.psum)
        scales = [
            tile[offset : partitions - 28 + offset] for tile, offset in zip(tiles[2:], offsets, strict=True)
        ]
        nisa.nc_matmul_mx(psum, tiles[0], tiles[1], *scales)
        staged = nl.ndarray(psum.shape, out_dtype, nl.sbuf)
        nisa.tensor_copy(staged, psum)
        out = nl.ndarray(psum.shape, out_dtype, nl.shared_hbm)
        nisa.dma_copy(out, staged)
        return out

    scale_tiles = [
        scattered(scales, partitions, offset).astype(np.uint8)
        for scales, offset in zip((left_scales, right_scales), offsets)
    ]
    got = run_kernel(kernel, left, right, *scale_tiles, target="trn3").outputs[0].astype(np.float64)
    expected = exact_left.T @ exact_right
    error = 4 * partitions * 2.0**-22 * (np.abs(exact_left).T @ np.abs(exact_right))
    if narrow:
        error += np.abs(expected) * 2.0 ** -FLOATS["bfloat16"].mantissa_bits
    assert (np.abs(got - expected) <= error).all()
