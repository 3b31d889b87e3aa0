"""Tiles at explicit addresses: reuse one after the other, overwriting too early, and capacity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_port.simulator import CapacityError, ConstraintError, run_kernel
from neuron_port.simulator.errors import HazardError
from neuron_port.simulator.hazards import find_overlaps
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

X = np.arange(128 * 8, dtype=np.float32).reshape(128, 8)


def placing(body):
    """Run body(x, out, tile), where tile(byte, columns=, dtype=, buffer=, partition=, rows=) places a tile."""

    def tile(byte, columns=8, dtype=nl.float32, buffer=nl.sbuf, partition=0, rows=128, name=""):
        return nl.ndarray((rows, columns), dtype, buffer, name, address=(partition, byte))

    def kernel(x):
        out = nl.ndarray(x.shape, nl.float32, nl.shared_hbm)
        body(x, out, tile)
        return out

    return run_kernel(kernel, X)


def test_addresses_are_reused_one_after_the_other():
    """A tile that is used up makes room for the next at the same place."""

    def body(x, out, tile):
        for _ in range(3):
            first = tile(64)
            nisa.dma_copy(first, x)
            second = tile(96)
            nisa.tensor_scalar(second, first, nl.multiply, 2.0)
            third = tile(64)
            nisa.tensor_copy(third, second)
            nisa.dma_copy(out, third)

    run = placing(body)
    np.testing.assert_array_equal(run.outputs[0], 2 * X)
    assert find_overlaps(run.trace) == []


def overwriting(early, shift=0):
    """Place `second` over `first`, and write it before or after the last use of `first`."""

    def body(x, out, tile):
        first, second = tile(64, name="first"), tile(64 + shift, name="second")
        nisa.dma_copy(first, x)
        if early:
            nisa.memset(second, 0.0)
        nisa.dma_copy(out, first)
        if not early:
            nisa.memset(second, 0.0)
            nisa.tensor_copy(tile(640), second)

    return body


@pytest.mark.parametrize("shift", [0, 4, 28, -28])
def test_reading_what_another_tile_has_overwritten_is_refused(shift):
    """One shared byte is enough; the error names both tiles, both lines and the place."""
    placing(overwriting(False, shift))
    with pytest.raises(HazardError) as caught:
        placing(overwriting(True, shift))
    message = str(caught.value)
    assert "dma_copy reads `first`" in message
    assert "memset at " in message
    assert "now holds `second`" in message
    assert f"byte {64 + max(shift, 0)} of SBUF" in message


@pytest.mark.parametrize("shift", [32, -32])
def test_neighbours_do_not_overlap(shift):
    """Tiles that touch without sharing a byte are independent."""
    np.testing.assert_array_equal(placing(overwriting(True, shift)).outputs[0], X)


def test_writing_again_repairs():
    """After the overwriting tile, the first may be filled again and read."""

    def body(x, out, tile):
        first, second = tile(0), tile(0)
        for _ in range(2):
            nisa.dma_copy(first, x)
            nisa.tensor_copy(tile(512), first)
            nisa.memset(second, 0.0)
            nisa.tensor_copy(tile(512), second)
            nisa.dma_copy(first, x)
            nisa.dma_copy(out, first)

    np.testing.assert_array_equal(placing(body).outputs[0], X)


def test_only_the_bytes_that_are_read_count():
    """Overwriting one half of a tile leaves the other half readable; strides are followed exactly."""

    def body(read_half, step):
        def inner(x, out, tile):
            first = tile(0, 16)
            nisa.dma_copy(first[:, 0:8], x)
            nisa.dma_copy(first[:, 8:16], x)
            second = tile(0, 16)
            nisa.memset(second[:, 0:16:2] if step else second[:, 0:8], 0.0)
            chosen = first[:, 1:16:2] if step else first[:, 8:16]
            nisa.dma_copy(out, chosen if read_half else first[:, 0:8])
            nisa.tensor_copy(tile(512), second[:, 0:16:2] if step else second[:, 0:8])

        return inner

    for step in (False, True):
        placing(body(True, step))
        with pytest.raises(HazardError):
            placing(body(False, step))


def test_partitions_are_told_apart():
    """Tiles at the same byte of other partitions share nothing."""

    def body(partition):
        def inner(x, out, tile):
            first = tile(0, rows=64)
            nisa.dma_copy(first, x[0:64])
            second = tile(0, rows=32, partition=partition)
            nisa.memset(second, 0.0)
            nisa.dma_copy(out[0:64], first)
            nisa.dma_copy(out[64:128], first)
            nisa.tensor_copy(tile(512, rows=32), second)

        return inner

    placing(body(64))
    with pytest.raises(HazardError, match="partition 32"):
        placing(body(32))


def test_dtypes_count_their_own_bytes():
    """A bfloat16 tile of eight columns ends after 16 bytes."""

    def body(byte):
        def inner(x, out, tile):
            first = tile(0, dtype=nl.bfloat16)
            nisa.dma_copy(first, x)
            second = tile(byte, dtype=nl.bfloat16)
            nisa.memset(second, 0.0)
            nisa.dma_copy(out, first)
            nisa.tensor_copy(tile(512), second)

        return inner

    placing(body(16))
    with pytest.raises(HazardError, match="byte 14"):
        placing(body(14))


def test_accumulating_onto_an_overwritten_bank_is_refused():
    """A matmul that adds to PSUM reads it: another tile in the bank in between spoils the sum."""

    def body(between):
        def inner(x, out, tile):
            left = nl.load(x)
            total = tile(0, 8, buffer=nl.psum, rows=8, name="total")
            other = tile(0 if between else 2048, 8, buffer=nl.psum, rows=8)
            nisa.nc_matmul(total, left, left)
            nisa.nc_matmul(other, left, left)
            nisa.nc_matmul(total, left, left)
            result = nl.ndarray((8, 8), nl.float32)
            nisa.tensor_copy(result, other)
            nisa.tensor_copy(result, total)
            nl.store(out[0:8], result)
            nl.store(out[8:128], left[8:128])

        return inner

    placing(body(False))
    with pytest.raises(HazardError, match="nc_matmul reads `total`"):
        placing(body(True))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_walk_agrees_with_a_map_of_every_byte(data):
    """Random writes and reads of overlapping tiles: refused exactly when some byte read is another tile's."""
    tiles = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 24).map(lambda n: 4 * n),
                st.integers(1, 12),
                st.sampled_from([(0, 64), (32, 32), (64, 64), (0, 128)]),
            ),
            min_size=2,
            max_size=5,
        )
    )
    steps = data.draw(
        st.lists(st.tuples(st.booleans(), st.integers(0, len(tiles) - 1)), min_size=1, max_size=20)
    )
    owner: dict[tuple[int, int], int] = {}
    clobbered = False

    def body(x, out, tile):
        nonlocal clobbered
        made = [tile(byte, n, partition=p, rows=rows) for byte, n, (p, rows) in tiles]
        written = set()
        for reads, number in steps:
            byte, columns, (partition, rows) = tiles[number]
            cells = [
                (p, b)
                for p in range(partition, partition + rows, 16)
                for b in range(byte, byte + 4 * columns)
            ]
            if reads and number in written:
                nisa.tensor_copy(nl.ndarray((rows, columns), nl.float32), made[number])
                clobbered = clobbered or any(owner[cell] != number for cell in cells)
            else:
                nisa.memset(made[number], 1.0)
                written.add(number)
                owner.update(dict.fromkeys(cells, number))
        nisa.dma_copy(out, x)

    try:
        placing(body)
        refused = False
    except HazardError:
        refused = True
    assert refused == clobbered


def test_tiles_at_one_address_take_its_bytes_once():
    """Two live tiles that share an address do not exceed SBUF together; a third of its own does."""
    wide = 20000

    def body(own):
        def inner(x, out, tile):
            first, second = tile(0, wide), tile(0, wide)
            third = nl.ndarray((128, 2 * wide), nl.float32) if own else tile(0, wide)
            for each in (first, second, third):
                nisa.memset(each[:, 0:8], 0.0)
            nisa.memset(first[:, 0:8], 1.0)
            nisa.dma_copy(out, first[:, 0:8])
            nisa.memset(second[:, 0:8], 1.0)
            nisa.dma_copy(out, second[:, 0:8])
            nisa.memset(third[:, 0:8], 1.0)
            nisa.dma_copy(out, third[:, 0:8])

        return inner

    assert placing(body(False)).peak_sbuf_bytes == 4 * wide
    with pytest.raises(CapacityError, match="live at once"):
        placing(body(True))


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ((0, 1024), "PSUM bank"),
        ((1, 0), "ends at partition 129"),
        ((0, 16384), "of 16384 in PSUM"),
        ((0, -2048), "at address"),
        (0, "pair of integers"),
        ((0, 2048.0), "pair of integers"),
    ],
)
def test_rules_of_addresses(address, match):
    """(partition, byte) inside the memory; PSUM tiles start on a bank."""
    placing(lambda x, out, tile: nisa.dma_copy(out, x) and tile(2048, buffer=nl.psum))

    def bad(x, out, tile):
        nl.ndarray((128, 8), nl.float32, nl.psum, address=address)

    with pytest.raises(ConstraintError, match=match):
        placing(bad)


def test_hbm_has_no_addresses():
    """Only tiles on chip are placed."""
    with pytest.raises(ConstraintError, match="only tiles in SBUF and PSUM"):
        placing(lambda x, out, tile: nl.ndarray((4, 4), nl.float32, nl.shared_hbm, address=(0, 0)))
