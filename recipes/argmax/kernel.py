"""The place of the largest value of each row: greedy sampling from logits.

Legend: R = rows, N = values of a row, P = partitions.

Rows stand on partitions. A long row, such as the logits of a vocabulary, is dealt over all partitions: each finds its
own best, and the candidates come together on one partition.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
EIGHT = 8  # what `max8` finds at a time, and the least that it can search
MOST = 16384  # the most that it can search
LONG = 2048  # from here on a row is dealt over the partitions
LOWEST = -3.4028235e38


@nki.jit
def argmax(x):
    """Find the place of the largest value of each row; of equal values the first.

    Args:
        x: [R, N] @ HBM, float32 or bfloat16, finite. Any R; N at most 2097152.
    Returns: [R] int32 @ HBM.
    Accuracy: exact.
    """
    rows, width = x.shape
    out = nl.ndarray((rows,), dtype=nl.int32, buffer=nl.shared_hbm)
    for first in range(0, rows, P):
        last = min(first + P, rows)
        if width >= LONG:
            place = search_dealt(x[first:last, :])
        else:
            _, places = best(load_padded(x[first:last, :]))
            place = places[:, 0:1]
        out_sbuf = nl.ndarray((last - first, 1), dtype=nl.int32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=out_sbuf, src=place, engine=nisa.engine.vector)
        nisa.dma_copy(dst=out[first:last].expand_dim(1), src=out_sbuf)
    return out


def load_padded(x):
    """Load rows as float32, at least as wide as `max8` needs; LOWEST beyond."""
    rows, width = x.shape
    tile = nl.ndarray((rows, max(width, EIGHT)), dtype=nl.float32, buffer=nl.sbuf)
    if width < EIGHT:
        nisa.memset(dst=tile, value=LOWEST)
    nisa.dma_copy(dst=tile[:, 0:width], src=x)
    return tile


def best(tile):
    """Return the eight largest values of each row of [rows, N] float32 @ SBUF, and their places (uint32)."""
    values = nl.ndarray((tile.shape[0], EIGHT), dtype=nl.float32, buffer=nl.sbuf)
    places = nl.ndarray((tile.shape[0], EIGHT), dtype=nl.uint32, buffer=nl.sbuf)
    nisa.max8(dst=values, src=tile)
    nisa.nc_find_index8(dst=places, data=tile, vals=values)
    return values, places


def search_dealt(x):
    """Return the place of the largest value of each long row, searched on all partitions: [rows, 1] float32 @ SBUF."""
    rows, width = x.shape
    each = (width + P - 1) // P
    assert each <= MOST, f"argmax: rows of {width}, at most {MOST * P}"
    values = nl.ndarray((rows, P), dtype=nl.float32, buffer=nl.sbuf)
    numbers = nl.ndarray((rows, P), dtype=nl.float32, buffer=nl.sbuf)
    begins = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=begins, pattern=[[1, 1]], offset=0, channel_multiplier=each)
    for row in range(rows):
        found, places = best(deal(x[row : row + 1, :], each))
        of_row = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=of_row, data=places[:, 0:1], op0=nl.add, operand0=begins)
        nisa.dma_copy(dst=values[row : row + 1, :], src=found[:, 0:1])
        nisa.dma_copy(dst=numbers[row : row + 1, :], src=of_row)
    _, places = best(values)
    chosen = nl.ndarray((rows, EIGHT), dtype=nl.float32, buffer=nl.sbuf)
    nisa.nc_n_gather(dst=chosen, data=numbers, indices=places)
    return chosen[:, 0:1]


def deal(row_hbm, each):
    """Load a row [1, N] as [P, each] float32: partition p holds neighbours from p * each on, LOWEST beyond N."""
    width = row_hbm.shape[1]
    full = width // each
    tile = nl.ndarray((P, each), dtype=nl.float32, buffer=nl.sbuf)
    if full < P:
        nisa.memset(dst=tile, value=LOWEST)
    nisa.dma_copy(dst=tile[0:full, :], src=row_hbm[:, 0 : full * each].reshape((full, each)))
    if full * each < width:
        nisa.dma_copy(dst=tile[full : full + 1, 0 : width - full * each], src=row_hbm[:, full * each : width])
    return tile
