"""Sum of two tensors, a row in each partition. R = rows, C = columns."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def add(x, y):
    """Return x + y, both [R, C]: [R, C] @ HBM, dtype of x."""
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, rows, P):
        last = min(first + P, rows)
        x_sbuf = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        y_sbuf = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        nisa.dma_copy(dst=y_sbuf, src=y[first:last, :])
        nisa.tensor_tensor(dst=x_sbuf, data1=x_sbuf, data2=y_sbuf, op=nl.add)
        nisa.dma_copy(dst=out[first:last, :], src=x_sbuf)
    return out
