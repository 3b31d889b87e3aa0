"""The sum of each row, in float32 whatever the dtype. Legend: T = tokens, H = row length, P = partitions."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def row_sum(x):
    """Sum rows of x [T, H] @ HBM. Returns [T], dtype of x, rounded once."""
    tokens, width = x.shape
    out = nl.ndarray((tokens,), dtype=x.dtype, buffer=nl.shared_hbm)
    out_T1 = out.reshape((tokens, 1))
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        x_sbuf = nl.ndarray((last - first, width), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        total = nl.ndarray((last - first, 1), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=total, op=nl.add, data=x_sbuf, axis=1)
        nisa.dma_copy(dst=out_T1[first:last, :], src=total)
    return out
