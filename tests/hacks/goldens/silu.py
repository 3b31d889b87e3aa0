"""x * sigmoid(x), a row in each partition. R = rows, C = columns."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def silu(x):
    """Return x / (1 + exp(-x)) for x [R, C]: [R, C] @ HBM, dtype of x."""
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, rows, P):
        last = min(first + P, rows)
        x_sbuf = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        result = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.activation(dst=result, op=nl.silu, data=x_sbuf)
        nisa.dma_copy(dst=out[first:last, :], src=result)
    return out
