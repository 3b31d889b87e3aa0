"""Properties of nc_matmul: float64 products within the error of a float32 sum, accumulation by element."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from property_reference import NUMPY, float32
from property_tiles import (
    Tile,
    check,
    covers,
    few_properties,
    legal_starts,
    make_values,
    partition_counts,
    plain,
    properties,
    results,
    seeds,
    tiles,
)

from neuron_port.simulator import run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

NARROW = ["bfloat16", "float16", "float8_e4m3", "float8_e5m2"]
WIDE = ["float32", "tfloat32"]
small_free = st.one_of(st.tuples(st.integers(1, 20)), st.tuples(st.integers(1, 6), st.integers(1, 6)))


def product(stationary: np.ndarray, moving: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(stationary^T @ moving, what any order of float32 sums may differ by); free dimensions flattened."""
    left, right = (float32(x).reshape(len(x), -1) for x in (stationary, moving))
    return left.T @ right, 2 * len(left) * 2.0**-23 * (np.abs(left).T @ np.abs(right))


@st.composite
def matmuls(draw: Any) -> Any:
    """dst [M, N] in PSUM, and two pairs of stationary [K, M] and moving [K, N] of allowed dtypes."""
    k = draw(partition_counts)
    columns, rows = draw(small_free), draw(small_free)
    dtypes = st.sampled_from(draw(st.sampled_from([NARROW, WIDE])))
    operands = []
    for _ in range(2):
        operands.append(draw(tiles((k, *columns), dtypes, psum=False)))
        operands.append(draw(tiles((k, *rows), dtypes, psum=False)))
    m = int(np.prod(columns))
    return draw(results((m, *rows), "float32", psum=True)), operands


@covers("nc_matmul")
@given(matmuls(), st.sampled_from(["overwrite", "add", "infer"]), st.sampled_from(["gen2", "gen3"]))
@properties
def test_nc_matmul_multiplies_and_accumulates(case: Any, second: str, target: str) -> None:
    """accumulate=False overwrites; True, and None where a matmul has written, add; all views and dtypes."""
    dst, operands = case
    (first, error), (other, more) = (
        product(*[t.logical for t in operands[:2]]),
        product(*[t.logical for t in operands[2:]]),
    )
    expected, allowed = (other, more) if second == "overwrite" else (first + other, error + more)
    allowed = allowed + (0 if second == "overwrite" else 2.0**-23 * (np.abs(first) + np.abs(other)))

    def body(d: Any, a: Any, b: Any, c: Any, e: Any) -> None:
        nisa.nc_matmul(d, a, b, accumulate=False)
        nisa.nc_matmul(d, c, e, accumulate={"overwrite": False, "add": True, "infer": None}[second])

    check(body, dst, operands, expected, target=target, error=allowed)


@covers("nc_matmul")
@given(st.data(), st.integers(1, 128), st.integers(1, 16), seeds)
@properties
def test_nc_matmul_infers_accumulation_for_each_element(data: Any, k: int, m: int, seed: int) -> None:
    """Regions that overlap add up where a matmul has written before, and overwrite where nothing has."""
    width = data.draw(st.integers(2, 24))
    spans = [
        sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
        for _ in range(3)
    ]
    spans.append([0, width])
    left = make_values((k, m), "bfloat16", seed)
    right = make_values((k, width), "bfloat16", seed + 1)

    def kernel(stationary: Any, moving: Any) -> Any:
        a, b = nl.ndarray((k, m), nl.bfloat16, nl.sbuf), nl.ndarray((k, width), nl.bfloat16, nl.sbuf)
        nisa.dma_copy(a, stationary)
        nisa.dma_copy(b, moving)
        psum = nl.ndarray((m, width), nl.float32, nl.psum)
        for begin, end in spans:
            nisa.nc_matmul(psum[:, begin:end], a, b[:, begin:end])
        staged = nl.ndarray((m, width), nl.float32, nl.sbuf)
        nisa.tensor_copy(staged, psum)
        out = nl.ndarray((m, width), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, staged)
        return out

    got = run_kernel(kernel, *[x.astype(NUMPY["bfloat16"]) for x in (left, right)]).outputs[0]
    times = np.sum([[begin <= column < end for column in range(width)] for begin, end in spans], axis=0)
    exact, error = product(left, right)
    assert (np.abs(got - exact * times) <= error * times * 4).all()


@covers("nc_matmul")
@given(st.data(), st.integers(1, 128), st.integers(1, 128), st.sampled_from([*NARROW, "float32"]))
@few_properties
def test_nc_matmul_transposes_bits(data: Any, rows: int, columns: int, dtype: str) -> None:
    """With is_transpose and an identity as moving, dst is the stationary tile transposed, bit for bit."""
    source = data.draw(tiles((rows, columns), dtype, psum=False))
    identity = Tile(dtype, plain((rows, rows)), np.eye(rows))
    dst = data.draw(results((columns, rows), dtype if dtype != "float8_e4m3" else "float32", psum=True))
    if dtype.startswith("float8"):
        dst = Tile("float32", dst.layout)
    check(
        lambda d, x, i: nisa.nc_matmul(d, x, i, is_transpose=True, accumulate=False),
        dst,
        [source, identity],
        source.logical.T,
    )


@covers("nc_matmul")
@given(st.data(), st.sampled_from([32, 64]), st.integers(1, 24), seeds)
@few_properties
def test_nc_matmul_runs_in_a_part_of_the_array(data: Any, rows: int, n: int, seed: int) -> None:
    """Row tiling changes where the array computes, not what."""
    start = data.draw(st.sampled_from(legal_starts(rows)))
    left = data.draw(tiles((rows, 16), "bfloat16", psum=False, starts=[start]))
    right = data.draw(tiles((rows, n), "bfloat16", psum=False, starts=[start]))
    dst = data.draw(results((16, n), "float32", psum=True))
    exact, error = product(left.logical, right.logical)

    def body(d: Any, a: Any, b: Any) -> None:
        nisa.nc_matmul(d, a, b, accumulate=False, tile_position=(start, 0), tile_size=(rows, 128))

    check(body, dst, [left, right], exact, error=error)
