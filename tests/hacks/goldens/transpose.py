"""Transpose of a matrix: the DMA walks its columns. R = rows, C = columns."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def transpose(x):
    """Return the transpose of x [R, C]: [C, R] @ HBM, dtype of x, bit for bit."""
    rows, columns = x.shape
    out = nl.ndarray((columns, rows), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, columns, P):
        last = min(first + P, columns)
        x_CR = nl.ndarray((last - first, rows), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_CR, src=x[:, first:last].permute((1, 0)))
        nisa.dma_copy(dst=out[first:last, :], src=x_CR)
    return out
