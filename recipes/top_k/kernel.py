"""The largest values of each row and their places.

Legend: R = rows, N = values of a row, K = how many are wanted, P = partitions, W = values of a partition.

Rows stand on partitions. A long row is dealt over all partitions instead: each finds its own K best, and these candidates
come together on one partition for the last round.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
EIGHT = 8  # what `max8` finds at a time, and the least that it can search
MOST = 16384  # the most that it can search
LONG = 2048  # from here on a row is dealt over the partitions
FEWER = 8  # partitions that the candidates of a row meet on before the last round
LOWEST = -3.4028235e38


@nki.jit
def top_k(x, k):
    """Find the k largest values of each row, largest first; of equal values the first counts as larger.

    Args:
        x: [R, N] @ HBM, float32 or bfloat16, finite. Any R; N at least k, at most 2097152.
        k: at most 128.
    Returns: values [R, k] @ HBM, dtype of x, and indices [R, k] int32 @ HBM.
    Accuracy: exact.
    """
    rows, width = x.shape
    assert k <= width, f"top_k: {k} of {width} values"
    assert k <= P, f"top_k: {k} values, at most {P}"
    values = nl.ndarray((rows, k), dtype=x.dtype, buffer=nl.shared_hbm)
    indices = nl.ndarray((rows, k), dtype=nl.int32, buffer=nl.shared_hbm)
    for first in range(0, rows, P):
        last = min(first + P, rows)
        if width >= LONG:
            found, places = search_dealt(x[first:last, :], k)
        else:
            found, places = best(load_padded(x[first:last, :]), k)
        store(values[first:last, :], found[:, 0:k])
        store(indices[first:last, :], places[:, 0:k])
    return values, indices


def load_padded(x):
    """Load rows as float32, at least as wide as `max8` needs; LOWEST beyond."""
    rows, width = x.shape
    tile = nl.ndarray((rows, max(width, EIGHT)), dtype=nl.float32, buffer=nl.sbuf)
    if width < EIGHT:
        nisa.memset(dst=tile, value=LOWEST)
    nisa.dma_copy(dst=tile[:, 0:width], src=x)
    return tile


def best(tile, k):
    """Return the k largest values of each row of [rows, N] float32 @ SBUF, and their places (uint32)."""
    rows = tile.shape[0]
    rounds = (k + EIGHT - 1) // EIGHT
    values = nl.ndarray((rows, rounds * EIGHT), dtype=nl.float32, buffer=nl.sbuf)
    places = nl.ndarray((rows, rounds * EIGHT), dtype=nl.uint32, buffer=nl.sbuf)
    for start in range(0, rounds * EIGHT, EIGHT):
        found = values[:, start : start + EIGHT]
        nisa.max8(dst=found, src=tile)
        nisa.nc_find_index8(dst=places[:, start : start + EIGHT], data=tile, vals=found)
        if start + EIGHT < rounds * EIGHT:
            rest = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.nc_match_replace8(dst=rest, data=tile, vals=found, imm=LOWEST)
            tile = rest
    return values, places


def search_dealt(x, k):
    """Return the k largest values of each long row and their places, searched on all partitions."""
    rows, width = x.shape
    each = (width + P - 1) // P
    kept = (min(k, each) + EIGHT - 1) // EIGHT * EIGHT
    assert each <= MOST, f"top_k: rows of {width}, at most {MOST * P}"
    begins = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=begins, pattern=[[1, 1]], offset=0, channel_multiplier=each)
    groups = FEWER if kept > EIGHT else P  # long lists of candidates are cut down on a few partitions first
    values = nl.ndarray((rows, groups * kept), dtype=nl.float32, buffer=nl.sbuf)
    numbers = nl.ndarray((rows, groups * kept), dtype=nl.float32, buffer=nl.sbuf)
    for row in range(rows):
        found, places = best(deal(x[row : row + 1, :], each), kept)
        of_row = nl.ndarray(found.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=of_row, src=places, engine=nisa.engine.vector)
        nisa.tensor_scalar(dst=of_row, data=of_row, op0=nl.add, operand0=begins)
        if groups < P:
            found, of_row = best_of(
                move(found, (groups, P // groups * kept)), move(of_row, (groups, P // groups * kept)), kept
            )
        nisa.dma_copy(dst=values[row : row + 1, :], src=found)
        nisa.dma_copy(dst=numbers[row : row + 1, :], src=of_row)
    return best_of(values, numbers, k)


def best_of(values, numbers, k):
    """Return the k largest of each row's candidates and their numbers, float32."""
    found, places = best(values, k)
    chosen = nl.ndarray(found.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.nc_n_gather(dst=chosen, data=numbers, indices=places)
    return found, chosen


def move(tile, shape):
    """Return the tile's elements in another shape, other partitions included."""
    moved = nl.ndarray(shape, dtype=tile.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=moved, src=tile)
    return moved


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


def store(out_hbm, tile_sbuf):
    """Convert to the dtype of the result, exactly, and store."""
    out_sbuf = nl.ndarray(out_hbm.shape, dtype=out_hbm.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=out_sbuf, src=tile_sbuf, engine=nisa.engine.vector)
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)
