"""local_gather, topk, nonzero_with_count and sequence_bounds of GpSimdE against NumPy, and what they refuse."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_port.simulator import ConstraintError, OutOfBoundsError, UnwrittenReadError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

bf16 = ml_dtypes.bfloat16


def gathering(shape, **options):
    """A kernel that returns local_gather of its inputs in a tile of this shape."""

    def kernel(source, index):
        tile, chosen = nl.load(source), nl.load(index)
        gathered = nl.ndarray(shape, tile.dtype)
        nisa.local_gather(gathered, tile, chosen, **options)
        out = nl.ndarray(shape, tile.dtype, nl.shared_hbm)
        nl.store(out, gathered)
        return out

    return kernel


def gathered(source, index, elements, count):
    """The golden formula: a list of indices for each group of 16 partitions, along the partitions first."""
    partitions = source.shape[0]
    result = np.empty((partitions, count * elements), source.dtype)
    for partition in range(partitions):
        group = partition // 16
        indices = index[group * 16 : group * 16 + 16].flatten(order="F")[:count]
        row = source[partition].reshape(-1)
        result[partition] = np.concatenate([row[i : i + elements] for i in indices])
    return result


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_local_gather_reads_what_its_group_of_16_partitions_lists(data):
    """Every element count, number of valid indices and dtype; each group has its own list."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    partitions = 16 * data.draw(st.integers(1, 8))
    elements = data.draw(st.sampled_from([1, 2, 4, 8, 16, 32]))
    columns = data.draw(st.integers(1, 4))
    count = data.draw(st.integers(1, 16 * columns))
    dtype = data.draw(st.sampled_from([np.float32, bf16, np.int32, np.uint8]))
    source = rng.integers(0, 100, (partitions, 50)).astype(dtype)
    index = rng.integers(0, 50 - elements + 1, (partitions, columns)).astype(np.uint16)
    options = {"num_elem_per_idx": elements, "num_valid_indices": count}
    result = run_kernel(gathering((partitions, count * elements), **options), source, index).outputs[0]
    np.testing.assert_array_equal(result, gathered(source, index, elements, count))


def test_local_gather_flattens_and_counts_all_indices_by_default(rng):
    """src_buffer and dst may have several free dimensions; without num_valid_indices all indices count."""
    source = rng.standard_normal((16, 6, 4)).astype(np.float32)
    index = rng.integers(0, 24, (16, 2)).astype(np.uint16)
    result = run_kernel(gathering((16, 2, 16)), source, index).outputs[0]
    np.testing.assert_array_equal(result.reshape(16, 32), gathered(source, index, 1, 32))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"partitions": 24}, "must be a multiple of 16"),
        ({"dtype": np.int32}, "must be uint16"),
        ({"elements": 3}, "num_elem_per_idx is 3"),
        ({"count": 33}, "num_valid_indices is 33"),
        ({"columns": 257, "count": 4112}, "at most 4096"),
        ({"width": 64}, "are equal"),
    ],
)
def test_rules_of_local_gather(change, match):
    """Partitions, dtype, element and index counts, and the size of dst."""

    def run(partitions=32, dtype=np.uint16, elements=1, count=32, columns=2, width=None):
        source = np.zeros((partitions, 40), np.float32)
        index = np.zeros((partitions, columns), dtype)
        shape = (partitions, width or count * elements)
        options = {"num_elem_per_idx": elements, "num_valid_indices": count}
        run_kernel(gathering(shape, **options), source, index)

    run()
    with pytest.raises(ConstraintError, match=match):
        run(**change)


def test_local_gather_beyond_the_buffer_is_refused():
    """The last element of the last index must lie in the partition."""
    source = np.zeros((16, 10), np.float32)
    index = np.full((16, 1), 8, np.uint16)
    run_kernel(gathering((16, 32), num_elem_per_idx=2, num_valid_indices=16), source, index)
    with pytest.raises(OutOfBoundsError, match="index 9 with num_elem_per_idx=2"):
        run_kernel(
            gathering((16, 32), num_elem_per_idx=2, num_valid_indices=16), source, index + np.uint16(1)
        )


# ---- topk ------------------------------------------------------------------------------------------------------


def selecting(n, k, columns=None):
    def kernel(source):
        tile = nl.load(source if columns is None else source[:, 0:columns])
        values = nl.ndarray((source.shape[0], k), nl.bfloat16)
        positions = nl.ndarray((source.shape[0], k), nl.uint32)
        nisa.topk(values, positions, tile, n)
        outs = [nl.ndarray(t.shape, t.dtype, nl.shared_hbm) for t in (values, positions)]
        nl.store(outs[0], values)
        nl.store(outs[1], positions)
        return tuple(outs)

    return kernel


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_topk_of_each_group_ascends(data):
    """The K largest of the n elements that 16 partitions hold, smallest first, with their positions."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    groups = data.draw(st.integers(1, 8))
    n = data.draw(st.integers(8, 80))
    k = data.draw(st.integers(1, n))
    columns = -(-n // 16)
    elements = rng.standard_normal((groups, columns * 16)).astype(bf16)
    source = elements.reshape(groups, columns, 16).transpose(0, 2, 1).reshape(groups * 16, columns)
    values, positions = run_kernel(selecting(n, k), np.ascontiguousarray(source)).outputs
    for partition in range(groups * 16):
        held = elements[partition // 16, :n].astype(np.float32)
        np.testing.assert_array_equal(values[partition].astype(np.float32), np.sort(held)[-k:])
        np.testing.assert_array_equal(held[positions[partition]], np.sort(held)[-k:])
        assert len(set(positions[partition].tolist())) == k


@pytest.mark.parametrize(
    ("n", "k", "columns", "match"),
    [(7, 4, 2, "n is 7"), (40, 4, 2, "src needs"), (20, 21, 2, "21 of 20")],
)
def test_rules_of_topk(n, k, columns, match):
    """8 <= n < 65536, enough columns, and K <= n."""
    source = np.zeros((16, 4), bf16)
    run_kernel(selecting(20, 4, 2), source)
    with pytest.raises(ConstraintError, match=match):
        run_kernel(selecting(n, k, columns), source)


def test_topk_takes_bfloat16_and_says_what_is_open():
    """Other dtypes are refused; the run warns that the documents contradict each other."""
    run = run_kernel(selecting(20, 4), np.zeros((16, 2), bf16))
    assert any("documents say both" in warning for warning in run.warnings)
    assert run.trace.instructions[-3].attributes == {"n": 20}
    with pytest.raises(ConstraintError, match="must be bfloat16"):
        run_kernel(selecting(20, 4), np.zeros((16, 2), np.float32))


# ---- nonzero_with_count ----------------------------------------------------------------------------------------


def counting(**options):
    def kernel(source):
        tile = nl.load(source)
        found = nl.full((source.shape[0], source.shape[1] + 1), 77, nl.int32)
        nisa.nonzero_with_count(found, tile, **options)
        out = nl.ndarray(found.shape, nl.int32, nl.shared_hbm)
        nl.store(out, found)
        return out

    return kernel


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_nonzero_writes_every_sixteenth_partition(data):
    """Positions, padding, count; the other partitions keep what they held."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    partitions, length = data.draw(st.integers(1, 128)), data.draw(st.integers(1, 30))
    offset, padding = data.draw(st.integers(-50, 50)), data.draw(st.integers(-9, 9))
    dtype = data.draw(st.sampled_from([np.float32, np.int32]))
    source = (rng.integers(0, 2, (partitions, length)) * 3).astype(dtype)
    result = run_kernel(counting(index_offset=offset, padding_val=padding), source).outputs[0]
    for partition in range(partitions):
        found = [i + offset for i in range(length) if source[partition, i] != 0]
        expected = [*found, *[padding] * (length - len(found)), len(found)]
        assert result[partition].tolist() == (expected if partition % 16 == 0 else [77] * (length + 1))


def test_rules_of_nonzero_with_count():
    """One element more than src, int32 or float32, from NeuronCore-v3 on."""
    source = np.ones((4, 5), np.float32)
    run_kernel(counting(), source)
    with pytest.raises(ConstraintError, match="NeuronCore-v3"):
        run_kernel(counting(), source, target="trn1")
    with pytest.raises(ConstraintError, match="must be float32 or int32"):
        run_kernel(counting(), source.astype(bf16))
    with pytest.raises(ConstraintError, match=r"index_offset is 0.5"):
        run_kernel(counting(index_offset=0.5), source)


def test_nonzero_leaves_a_core_without_input_unwritten():
    """A core whose partition nothing wrote gives no result: reading it is the error."""

    def kernel(source, partition):
        tile = nl.ndarray((32, 5), nl.float32)
        nisa.dma_copy(tile[0:1], source)
        found = nl.ndarray((32, 6), nl.int32)
        nisa.nonzero_with_count(found, tile)
        out = nl.ndarray((1, 6), nl.int32, nl.shared_hbm)
        nl.store(out, found[partition : partition + 1])
        return out

    source = np.array([[0, 1, 0, 0, 1]], np.float32)
    assert run_kernel(kernel, source, partition=0).outputs[0].tolist() == [[1, 4, -1, -1, -1, 2]]
    with pytest.raises(UnwrittenReadError):
        run_kernel(kernel, source, partition=16)


# ---- sequence_bounds -------------------------------------------------------------------------------------------


def bounding(source):
    tile = nl.load(source)
    bounds = nl.ndarray((1, 2, source.shape[1]), source.dtype)
    nisa.sequence_bounds(bounds, tile)
    out = nl.ndarray(bounds.shape, bounds.dtype, nl.shared_hbm)
    nl.store(out, bounds)
    return out


@settings(max_examples=40, deadline=None)
@given(
    ids=st.lists(st.integers(0, 4), min_size=1, max_size=40), dtype=st.sampled_from([np.float32, np.int32])
)
def test_every_element_gets_the_bounds_of_its_segment(ids, dtype):
    """Walk left and right while the id is the same; padding has start n and end -1."""
    n = len(ids)
    starts, ends = [], []
    for i, segment in enumerate(ids):
        left, right = i, i
        while left > 0 and ids[left - 1] == segment:
            left -= 1
        while right < n - 1 and ids[right + 1] == segment:
            right += 1
        starts.append(left if segment else n)
        ends.append(right + 1 if segment else -1)
    result = run_kernel(bounding, np.array([ids], dtype)).outputs[0]
    assert result.tolist() == [[starts, ends]]


def test_rules_of_sequence_bounds():
    """Ids are not negative; one sequence at a time, in float32 or int32."""
    run_kernel(bounding, np.array([[0, 1, 1]], np.int32))
    with pytest.raises(ConstraintError, match="holds -1"):
        run_kernel(bounding, np.array([[0, -1, 1]], np.int32))
    with pytest.raises(ConstraintError, match="must be float32 or int32"):
        run_kernel(bounding, np.array([[0, 1, 1]], np.int16))
    with pytest.raises(ConstraintError, match="on one partition"):
        run_kernel(bounding, np.array([[0, 1], [1, 1]], np.int32))
