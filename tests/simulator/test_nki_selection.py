"""Masks, selections, searches, statistics, scans and shuffles against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import ConstraintError, OutOfBoundsError, UnwrittenReadError
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

bf16 = ml_dtypes.bfloat16
LOWEST = np.finfo(np.float32).min
COMPARE = {"equal": np.equal, "greater": np.greater, "greater_equal": np.greater_equal, "less": np.less}


@pytest.mark.parametrize("dtype", ["int32", "float32", "bfloat16", "uint16"])
def test_iota_counts_an_affine_pattern(on_tiles, dtype):
    """offset + p * multiplier + sum of step * index, cast to dst."""
    p, i, j = np.ogrid[0:8, 0:3, 0:5]
    expected = (7 + 10 * p + 6 * i + j).astype(getattr(nl, dtype).native)

    def body(d, _):
        nisa.iota(d, [[6, 3], [1, 5]], offset=7, channel_multiplier=10)

    result = on_tiles(body, np.zeros((1, 1), np.float32), shape=(8, 15), dtype=getattr(nl, dtype))
    np.testing.assert_array_equal(result.astype(np.float32), expected.reshape(8, 15).astype(np.float32))


@pytest.mark.parametrize("name", COMPARE)
def test_affine_select_keeps_where_the_pattern_compares(on_tiles, rng, name):
    """A causal mask is one instruction: keep where row - column compares with 0."""
    x = rng.standard_normal((8, 8)).astype(np.float32)
    row, column = np.ogrid[0:8, 0:8]

    def body(d, t):
        nisa.affine_select(d, [[-1, 8]], 1, t, -30000.0, cmp_op=getattr(nl, name), offset=0)

    np.testing.assert_array_equal(on_tiles(body, x), np.where(COMPARE[name](row - column, 0), x, -30000.0))


def test_gpsimd_cannot_write_psum(on_tiles, rng):
    """iota into PSUM is refused."""

    def body(d, _):
        nisa.iota(nl.ndarray((8, 4), nl.float32, nl.psum), [[1, 4]])

    with pytest.raises(ConstraintError, match="must be in SBUF"):
        on_tiles(body, np.zeros((1, 1), np.float32))


def test_pattern_must_count_the_elements(on_tiles):
    """A pattern of other size than dst is refused."""
    with pytest.raises(ConstraintError, match="counts 5 elements"):
        on_tiles(lambda d, _: nisa.iota(d, [[1, 5]]), np.zeros((1, 1), np.float32), shape=(8, 4))


@pytest.mark.parametrize("dtype", [nl.float32, nl.bfloat16])
def test_range_select_masks_positions_and_reduces(on_tiles, rng, dtype):
    """Positions between two bounds are kept; the row maximum is float32."""
    x = rng.standard_normal((6, 12)).astype(np.float32)
    low, high = rng.integers(0, 5, (6, 1)), rng.integers(6, 12, (6, 1))
    position = np.arange(3, 15)
    kept = np.where((position >= low) & (position < high), x, LOWEST)

    def body(d, t, b0, b1):
        selected = nl.ndarray((6, 12), dtype)
        nisa.range_select(selected, t, nl.greater_equal, nl.less, b0, b1, reduce_res=d, range_start=3)

    result = on_tiles(body, x, low.astype(np.float32), high.astype(np.float32), shape=(6, 1))
    np.testing.assert_array_equal(result, kept.max(1, keepdims=True))


def test_range_select_needs_gen3(on_tiles, rng):
    """Trn1 has no range_select."""
    x, bound = rng.standard_normal((6, 12)).astype(np.float32), np.ones((6, 1), np.float32)

    def body(d, t, b):
        nisa.range_select(d, t, nl.greater_equal, nl.less, b, b)

    on_tiles(body, x, bound)
    with pytest.raises(ConstraintError, match="NeuronCore-v3"):
        on_tiles(body, x, bound, target="trn1")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("scalar", [False, True])
def test_predicated_copy_leaves_the_rest(on_tiles, rng, reverse, scalar):
    """dst changes only where the predicate holds (or does not, reversed)."""
    x, old = rng.standard_normal((6, 9)).astype(np.float32), rng.standard_normal((6, 9)).astype(np.float32)
    mask = rng.integers(0, 2, (6, 9)).astype(np.uint8)

    def body(d, t, o, m):
        nisa.tensor_copy(d, o)
        nisa.tensor_copy_predicated(d, 2.5 if scalar else t, m, reverse_pred=reverse)

    expected = np.where((mask != 0) != reverse, 2.5 if scalar else x, old)
    np.testing.assert_array_equal(on_tiles(body, x, old, mask), expected.astype(np.float32))


def test_predicated_copy_into_an_unwritten_tile_leaves_holes(on_tiles, rng):
    """Elements that no predicate chose are still unwritten."""
    x, mask = rng.standard_normal((6, 9)).astype(np.float32), np.zeros((6, 9), np.uint8)
    mask[:, 1:] = 1
    with pytest.raises(UnwrittenReadError, match="some of its elements"):
        on_tiles(lambda d, t, m: nisa.tensor_copy_predicated(d, t, m), x, mask)


def test_predicate_dtype(on_tiles, rng):
    """A float predicate is refused."""
    x = rng.standard_normal((6, 9)).astype(np.float32)
    with pytest.raises(ConstraintError, match=r"predicate .* must be uint8 or uint16 or uint32"):
        on_tiles(lambda d, t: nisa.tensor_copy_predicated(d, t, t), x)


def test_select_reduce_chooses_and_takes_maxima(on_tiles, rng):
    """where(predicate, on_true, on_false) and the maximum of each row."""
    x, column = rng.standard_normal((6, 9)).astype(np.float32), rng.standard_normal((6, 1)).astype(np.float32)
    mask = rng.integers(0, 2, (6, 9)).astype(np.uint8)
    expected = np.where(mask != 0, x, column)

    def body(d, t, c, m):
        largest = nl.ndarray((6, 1), nl.float32)
        chosen = nl.ndarray((6, 9), nl.float32)
        nisa.select_reduce(chosen, m, t, c, largest, nisa.reduce_cmd.reset_reduce)
        nisa.tensor_scalar(d, chosen, nl.subtract, largest)

    np.testing.assert_array_equal(on_tiles(body, x, column, mask), expected - expected.max(1, keepdims=True))


@pytest.mark.parametrize(
    ("name", "reduce"), [("add", np.sum), ("multiply", np.prod), ("maximum", np.max), ("minimum", np.min)]
)
def test_tensor_scalar_reduce_in_two_steps(on_tiles, rng, name, reduce):
    """The accumulator starts at the operator's identity and continues with reduce_cmd.reduce."""
    x = (rng.integers(-4, 5, (6, 8)) / 2).astype(np.float32)

    def body(d, t):
        junk, op = nl.ndarray((6, 4), nl.float32), getattr(nl, name)
        nisa.tensor_scalar_reduce(junk, t[:, 0:4], nl.add, 1.0, op)
        nisa.tensor_scalar_reduce(junk, t[:, 4:8], nl.add, 1.0, op, d, reduce_cmd=nisa.reduce_cmd.reduce)

    np.testing.assert_array_equal(on_tiles(body, x, shape=(6, 1)), reduce(x + 1, axis=1, keepdims=True))


def test_tensor_scalar_reduce_loads_its_start(on_tiles, rng):
    """load_reduce starts from reduce_init; the result may be negated."""
    x, start = rng.standard_normal((6, 8)).astype(np.float32), rng.standard_normal((6, 1)).astype(np.float32)

    def body(d, t, s):
        nisa.tensor_scalar_reduce(
            t,
            t,
            nl.multiply,
            2.0,
            nl.add,
            d,
            reduce_cmd=nisa.reduce_cmd.load_reduce,
            reduce_init=s,
            reduce_res_negate=True,
        )

    expected = -((2 * x).sum(1, keepdims=True) + start)
    np.testing.assert_allclose(on_tiles(body, x, start, shape=(6, 1)), expected, rtol=1e-5, atol=1e-6)


def test_tensor_scalar_cumulative_is_a_running_sum(on_tiles, rng):
    """reg = (x op0 imm0) op1 reg along each row."""
    x = rng.standard_normal((6, 8)).astype(np.float32)
    result = on_tiles(lambda d, t: nisa.tensor_scalar_cumulative(d, t, nl.multiply, nl.add, 2.0), x)
    np.testing.assert_allclose(result, np.cumsum(2 * x, axis=1), rtol=1e-5, atol=1e-5)


def test_max8_and_find_index8_rank_a_row(on_tiles, rng):
    """The eight largest values, and their positions, as top-k needs them."""
    x = rng.permutation(6 * 40).reshape(6, 40).astype(np.float32)
    order = np.argsort(-x, axis=1)[:, :8]
    np.testing.assert_array_equal(
        on_tiles(lambda d, t: nisa.max8(d, t), x, shape=(6, 8)), np.take_along_axis(x, order, 1)
    )

    def positions(d, t):
        largest = nl.ndarray((6, 8), nl.float32)
        nisa.max8(largest, t)
        nisa.nc_find_index8(d, t, largest)

    np.testing.assert_array_equal(on_tiles(positions, x, shape=(6, 8), dtype=nl.uint32), order)


def test_find_index8_counts_repeats_and_marks_absence(on_tiles):
    """Repeated values take successive positions, ascending; an absent value gives all ones."""
    data = np.array([[1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8]], np.float32)
    vals = np.array([[3, 8, 8, 8, 8, 8, 8, 99]], np.float32)
    found = on_tiles(lambda d, t, v: nisa.nc_find_index8(d, t, v), data, vals, shape=(1, 8), dtype=nl.uint32)
    np.testing.assert_array_equal(found, [[2, 4, 5, 6, 7, 8, 9, 0xFFFFFFFF]])


def test_match_replace8_follows_the_documented_example(on_tiles):
    """vals are processed from the last to the first: repeats take positions in descending column order."""
    data = np.array([[1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8]], np.float32)
    vals = np.array([[3, 8, 8, 8, 8, 8, 8, 8]], np.float32)

    def positions(d, t, v):
        nisa.nc_match_replace8(nl.ndarray((1, 11), nl.float32), t, v, -1.0, dst_idx=d)

    found = on_tiles(positions, data, vals, shape=(1, 8), dtype=nl.uint32)
    np.testing.assert_array_equal(found, [[2, 10, 9, 8, 7, 6, 5, 4]])
    replaced = on_tiles(lambda d, t, v: nisa.nc_match_replace8(d, t, v, -1.0), data, vals)
    np.testing.assert_array_equal(replaced, [[1, 2, -1, 4, -1, -1, -1, -1, -1, -1, -1]])


def test_search_needs_eight_elements(on_tiles, rng):
    """Seven elements per partition are refused."""
    with pytest.raises(ConstraintError, match="8 to 16384"):
        on_tiles(lambda d, t: nisa.max8(d, t), np.ones((4, 7), np.float32), shape=(4, 8))


@pytest.mark.parametrize("columns", [6, 7, 512])
def test_batch_statistics_aggregate_to_mean_and_variance(on_tiles, rng, columns):
    """bn_stats of pieces and one bn_aggr give the mean and variance of the whole row."""
    x = rng.standard_normal((6, 2 * columns)).astype(np.float32)

    def body(d, t):
        statistics = nl.ndarray((6, 12), nl.float32)
        nisa.bn_stats(statistics[:, 0:6], t[:, 0:columns])
        nisa.bn_stats(statistics[:, 6:12], t[:, columns : 2 * columns])
        nisa.bn_aggr(d, statistics)

    expected = np.stack([x.mean(1), x.var(1)], axis=1)
    np.testing.assert_allclose(on_tiles(body, x, shape=(6, 2)), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConstraintError, match="at most 512"):
        on_tiles(lambda d, t: nisa.bn_stats(d, t), np.ones((4, 513), np.float32), shape=(4, 6))


@pytest.mark.parametrize("column", [False, True])
def test_scan_is_the_recurrence(on_tiles, rng, column):
    """h_i = a_i * h_(i-1) + b_i from a number or a column."""
    a, b = (rng.uniform(-1, 1, (6, 20)).astype(np.float32) for _ in range(2))
    start = rng.standard_normal((6, 1)).astype(np.float32) if column else np.full((6, 1), 0.5, np.float32)
    state, expected = start[:, 0].astype(np.float64), []
    for i in range(20):
        state = a[:, i] * state + b[:, i]
        expected.append(state)

    def body(d, x, y, s):
        nisa.tensor_tensor_scan(d, x, y, s if column else 0.5, nl.multiply, nl.add)

    np.testing.assert_allclose(on_tiles(body, a, b, start), np.stack(expected, 1), rtol=1e-5, atol=1e-5)


def test_stream_shuffle_moves_within_quadrants(on_tiles, rng):
    """The same 32-entry mask applies to each quadrant; 255 leaves a partition as it is."""
    x, old = rng.standard_normal((64, 5)).astype(np.float32), rng.standard_normal((64, 5)).astype(np.float32)
    mask = [*rng.permutation(32)[:31].tolist(), 255]

    def body(d, t, o):
        nisa.tensor_copy(d, o)
        nisa.nc_stream_shuffle(d, t, mask)

    expected = old.copy()
    for quadrant in (0, 32):
        expected[quadrant : quadrant + 31] = x[quadrant + np.array(mask[:31])]
    np.testing.assert_array_equal(on_tiles(body, x, old), expected)
    with pytest.raises(ConstraintError, match="32 entries"):
        on_tiles(lambda d, t: nisa.nc_stream_shuffle(d, t, [0] * 31), x)


def test_gather_within_partitions(on_tiles, rng):
    """nc_n_gather indexes the flattened free elements of each partition and checks them."""
    x = rng.standard_normal((6, 3, 5)).astype(bf16)
    index = rng.integers(0, 15, (6, 8)).astype(np.uint32)

    def body(d, t, i):
        nisa.nc_n_gather(d, t, i)

    result = on_tiles(body, x, index, shape=(6, 8), dtype=nl.bfloat16)
    np.testing.assert_array_equal(result, np.take_along_axis(x.reshape(6, 15), index.astype(np.int64), 1))
    index[2, 3] = 15
    with pytest.raises(OutOfBoundsError, match="index 15"):
        on_tiles(body, x, index, shape=(6, 8), dtype=nl.bfloat16)


def test_partition_reduce(on_tiles, rng):
    """Sums and averages over partitions land in one."""
    x = rng.standard_normal((6, 8)).astype(np.float32)
    total = on_tiles(lambda d, t: nisa.tensor_partition_reduce(d, nl.add, t), x, shape=(1, 8))
    np.testing.assert_allclose(total[0], x.sum(0), rtol=1e-5, atol=1e-6)
    mean = on_tiles(lambda d, t: nisa.tensor_partition_reduce(d, nl.average, t), x, shape=(1, 8))
    np.testing.assert_allclose(mean[0], x.mean(0), rtol=1e-5, atol=1e-6)
