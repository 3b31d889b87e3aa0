"""Softmax over the last axis: rows on partitions, several short ones to each.

Legend: T = rows, C = columns, P = partitions, R = rows of one partition.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
TILE_BYTES = 2 * 1024  # of x per partition and DMA at least: short rows travel together


@nki.jit
def softmax(x):
    """Divide the exponentials of each row by their sum, after taking the row's maximum off.

    Args:
        x: [T, C] @ HBM, float32 or bfloat16. Any T; C up to 16384. Minus infinity is allowed, not in whole rows.
    Returns: [T, C] @ HBM, dtype of x.
    Accuracy: float32 inside, rounded once.
    """
    tokens, columns = x.shape
    out = nl.ndarray((tokens, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    most = max(1, TILE_BYTES // (columns * (4 if x.dtype == nl.float32 else 2)))
    first = 0
    while first < tokens:
        left = tokens - first
        each = min(most, max(1, left // P))
        parts = min(P, left // each)
        last = first + parts * each
        normalize_tile(
            out[first:last, :].reshape((parts, each, columns)),
            x[first:last, :].reshape((parts, each, columns)),
        )
        first = last
    return out


def normalize_tile(out_hbm, x_hbm):
    """Softmax of [parts, R, C]. VectorE finds the maximum and scales, ScalarE exponentiates and sums at once."""
    parts, each, _ = x_hbm.shape
    x_sbuf = nl.ndarray(x_hbm.shape, dtype=x_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x_hbm)
    negative_max = nl.ndarray((parts, each), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=negative_max, op=nl.maximum, data=x_sbuf, axis=2, negate=True)
    powers = x_sbuf
    if x_hbm.dtype != nl.float32:
        powers = nl.ndarray(x_hbm.shape, dtype=nl.float32, buffer=nl.sbuf)
    sums = nl.ndarray((parts, each), dtype=nl.float32, buffer=nl.sbuf)
    for row in range(each):
        nisa.activation_reduce(
            dst=powers[:, row, :],
            op=nl.exp,
            data=x_sbuf[:, row, :],
            bias=negative_max[:, row : row + 1],
            reduce_op=nl.add,
            reduce_res=sums[:, row : row + 1],
        )
    nisa.reciprocal(dst=sums, data=sums)
    for row in range(each):
        nisa.tensor_scalar(
            dst=x_sbuf[:, row, :],
            data=powers[:, row, :],
            op0=nl.multiply,
            operand0=sums[:, row : row + 1],
            engine=nisa.engine.vector,
        )
    nisa.dma_copy(dst=out_hbm, src=x_sbuf)
