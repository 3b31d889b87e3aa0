"""Properties of index patterns, masks and searches: exact, against loops that read like the documentation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from property_reference import ALL_INTEGERS, COMPARISONS, float32
from property_tiles import (
    Tile,
    check,
    covers,
    make_values,
    op,
    partition_counts,
    plain,
    properties,
    results,
    run_instruction,
    seeds,
    shapes,
    tiles,
)

from neuron_port.simulator.nki import isa as nisa


def affine(pattern: list[list[int]], offset: int, multiplier: int, partitions: int) -> np.ndarray:
    """[P, N] of offset + p * multiplier + the sum of step * index, by the documented nested loops."""
    rows = []
    for p in range(partitions):
        indices = itertools.product(*[range(count) for _, count in pattern])
        rows.append(
            [
                offset + p * multiplier + sum(step * i for (step, _), i in zip(pattern, index))
                for index in indices
            ]
        )
    return np.array(rows, dtype=np.float64)


@st.composite
def patterns(draw: Any) -> Any:
    """A shape [P, N] in some free dimensions, and an affine pattern that counts N."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    pattern = [[draw(st.integers(-9, 9)), count] for count in counts]
    merged = draw(st.integers(0, len(counts) - 1))
    free = (int(np.prod(counts[: merged + 1])), *counts[merged + 1 :])[:3]
    if int(np.prod(free)) != int(np.prod(counts)):
        free = (int(np.prod(counts)),)
    partitions = draw(partition_counts)
    return (partitions, *free), pattern, draw(st.integers(-300, 300)), draw(st.integers(-5, 5))


@covers("iota")
@given(st.data(), patterns())
@properties
def test_iota_follows_the_nested_loops(data: Any, case: Any) -> None:
    """Values are 32-bit integers, cast to dst's dtype, partitions counted from the tile's first."""
    shape, pattern, offset, multiplier = case
    dst = data.draw(results(shape, psum=False))
    expected = affine(pattern, offset, multiplier, shape[0])
    check(lambda d: nisa.iota(d, pattern, offset, multiplier), dst, [], expected)


@covers("affine_select")
@given(st.data(), patterns(), st.sampled_from(list(COMPARISONS)), st.floats(-9, 9, width=32))
@properties
def test_affine_select_keeps_where_the_comparison_holds(
    data: Any, case: Any, name: str, other: float
) -> None:
    """Elements whose affine value compares with 0 come from the tile, the rest from the number."""
    shape, pattern, offset, multiplier = case
    dst, source = data.draw(results(shape, psum=False)), data.draw(tiles(shape, psum=False))
    chosen = COMPARISONS[name](affine(pattern, offset, multiplier, shape[0]), 0.0) != 0
    expected = np.where(chosen.reshape(shape), source.logical, other)
    if source.dtype != dst.dtype:
        expected = float32(expected)

    def body(d: Any, x: Any) -> None:
        nisa.affine_select(d, pattern, multiplier, x, other, cmp_op=op(name), offset=offset)

    check(body, dst, [source], expected)


@covers("tensor_copy_predicated")
@given(st.data(), shapes(), st.sampled_from(["uint8", "uint16", "uint32"]), st.booleans(), st.booleans())
@properties
def test_tensor_copy_predicated_leaves_the_rest(
    data: Any, shape: tuple[int, ...], predicate_dtype: str, reverse: bool, number: bool
) -> None:
    """dst keeps its value where the predicate is false; bits of src are kept where it is true."""
    dst = data.draw(results(shape, prior=True))
    predicate = data.draw(tiles(shape, predicate_dtype, flavour="halves"))
    src: Tile | float
    if number:
        src = float(make_values((1,), dst.dtype, data.draw(seeds), "halves")[0])
        values = np.full(shape, src)
    else:
        src = data.draw(tiles(shape, dst.dtype, psum=False if predicate.layout.psum else None))
        values = src.logical
    expected = np.where((predicate.logical != 0) != reverse, values, dst.logical)
    check(
        lambda d, x, p: nisa.tensor_copy_predicated(d, x, p, reverse_pred=reverse),
        dst,
        [src, predicate],
        expected,
    )


@st.composite
def searches(draw: Any) -> Any:
    """Data with at least eight elements per partition and many repeated values."""
    shape = draw(shapes().filter(lambda s: 8 <= int(np.prod(s[1:])) <= 64))
    return draw(tiles(shape, st.sampled_from(["float32", "bfloat16", "float16", "int32", "uint8"])))


@covers("max8")
@given(st.data(), searches())
@properties
def test_max8_finds_the_eight_largest(data: Any, source: Tile) -> None:
    """In descending order, repeats included, compared in float32."""
    rows = float32(source.logical).reshape(len(source.logical), -1)
    expected = np.array([sorted(row, reverse=True)[:8] for row in rows.tolist()])
    check(nisa.max8, data.draw(results(expected.shape)), [source], expected)


def wanted_values(data: Any, source: Tile, seed: int) -> Tile:
    """Eight values for each partition, most of them present, some several times, in the source's dtype."""
    rng = np.random.default_rng(seed)
    rows = source.logical.reshape(len(source.logical), -1)
    picked = np.take_along_axis(rows, rng.integers(0, rows.shape[1], (len(rows), 8)), axis=1)
    absent = 77.0 if source.dtype != "uint8" else 255.0
    return data.draw(
        tiles(picked.shape, source.dtype, values=np.where(rng.random(picked.shape) < 0.2, absent, picked))
    )


def find(row: list[float], wanted: list[float], order: range) -> list[int]:
    """Position of each wanted value in `row`, each position at most once, in this order; -1 if none is left."""
    positions, taken = [-1] * 8, set()
    for column in order:
        free = [i for i, value in enumerate(row) if value == wanted[column] and i not in taken]
        if free:
            positions[column] = free[0]
            taken.add(free[0])
    return positions


@covers("nc_find_index8")
@given(st.data(), searches(), seeds, st.sampled_from(["uint16", "uint32"]))
@properties
def test_find_index8_gives_successive_positions(data: Any, source: Tile, seed: int, dtype: str) -> None:
    """Repeats take successive positions from the first column on; what is absent gives all ones."""
    vals = wanted_values(data, source, seed)
    rows = float32(source.logical).reshape(len(source.logical), -1).tolist()
    wanted = float32(vals.logical).tolist()
    positions = np.array([find(row, wants, range(8)) for row, wants in zip(rows, wanted)])
    expected = np.where(positions < 0, ALL_INTEGERS[dtype][1], positions)
    check(nisa.nc_find_index8, data.draw(results(expected.shape, dtype)), [source, vals], expected)


@covers("nc_match_replace8")
@given(st.data(), searches(), seeds, st.booleans())
@properties
def test_match_replace8_replaces_from_the_last_column(
    data: Any, source: Tile, seed: int, indexed: bool
) -> None:
    """Of a repeated value the last column takes the first position; every matched position becomes imm."""
    vals = wanted_values(data, source, seed)
    rows = float32(source.logical).reshape(len(source.logical), -1)
    positions = np.array(
        [
            find(row, wants, range(7, -1, -1))
            for row, wants in zip(rows.tolist(), float32(vals.logical).tolist())
        ]
    )
    replaced = rows.copy()
    for row, matched in zip(replaced, positions):
        row[matched[matched >= 0]] = -2.5
    dst = data.draw(results(source.layout.shape))
    if not indexed:
        check(lambda d, x, v: nisa.nc_match_replace8(d, x, v, -2.5), dst, [source, vals], replaced)
        return
    index = data.draw(results(positions.shape, "uint32"))
    expected = np.where(positions < 0, 2.0**32 - 1, positions)

    def body(d: Any, i: Any, x: Any, v: Any) -> None:
        nisa.nc_match_replace8(d, x, v, -2.5, dst_idx=i)

    check(body, [dst, index], [source, vals], [replaced, expected])


@covers("topk")
@given(st.integers(1, 8), st.integers(1, 6), seeds, st.data())
@properties
def test_topk_ranks_each_group_of_sixteen_partitions(groups: int, columns: int, seed: int, data: Any) -> None:
    """Element e of a group lies at partition e % 16, column e // 16; its K largest come in ascending order."""
    partitions = 16 * groups
    n = data.draw(st.integers(max(8, 16 * columns - 15), 16 * columns))
    k = data.draw(st.integers(1, n))
    rng = np.random.default_rng(seed)
    values = rng.permutation(partitions * columns).reshape(partitions, columns) % 251.0  # exact in bfloat16
    source = Tile("bfloat16", plain((partitions, columns)), values)
    top, places = run_instruction(
        lambda v, i, x: nisa.topk(v, i, x, n),
        [Tile("bfloat16", plain((partitions, k))), Tile("uint32", plain((partitions, k)))],
        [source],
    )
    for group in range(groups):
        snake = values[16 * group : 16 * group + 16].T.reshape(-1)[:n]
        for row in range(16 * group, 16 * group + 16):
            np.testing.assert_array_equal(top[row], np.sort(snake)[n - k :])
            chosen = places[row].astype(int)
            assert len(set(chosen.tolist())) == k
            np.testing.assert_array_equal(snake[chosen], top[row])


@covers("nonzero_with_count")
@given(st.data(), partition_counts, st.integers(1, 30), st.sampled_from(["float32", "int32"]), seeds)
@properties
def test_nonzero_with_count_lists_positions_on_every_sixteenth_partition(
    data: Any, partitions: int, count: int, dtype: str, seed: int
) -> None:
    """Positions plus the offset, padding, and the count last; other partitions stay as they were."""
    values = make_values((partitions, count), dtype, seed, "halves")
    values[values < 0] = 0.0
    source = data.draw(tiles((partitions, count), dtype, values=values, psum=False, starts=[0]))
    dst = data.draw(results((partitions, count + 1), "int32", psum=False, prior=True, starts=[0]))
    offset, padding = data.draw(st.integers(-20, 20)), data.draw(st.integers(-5, 5))
    expected = dst.logical.copy()
    for p in range(0, partitions, 16):
        found = [i + offset for i, value in enumerate(values[p].tolist()) if value != 0]
        expected[p] = found + [padding] * (count - len(found)) + [len(found)]
    check(lambda d, x: nisa.nonzero_with_count(d, x, offset, padding), dst, [source], expected)


@covers("sequence_bounds")
@given(st.data(), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=6))
@properties
def test_sequence_bounds_gives_start_and_end_of_each_segment(data: Any, runs: list[tuple[int, int]]) -> None:
    """Each element gets [start, end) of its segment; elements with id 0 get [n, -1)."""
    ids: list[int] = []
    for position, (padding, length) in enumerate(runs, 1):
        ids += [0] * padding + [position] * length
    n = len(ids)
    starts = [ids.index(value) if value else n for value in ids]
    ends = [n - ids[::-1].index(value) if value else -1 for value in ids]
    dtype = data.draw(st.sampled_from(["float32", "int32"]))
    source = Tile(dtype, plain((1, n)), np.array([ids], dtype=np.float64))
    dst = Tile(dtype, plain((1, 2, n)))
    check(nisa.sequence_bounds, dst, [source], np.array([[starts, ends]], dtype=np.float64))
