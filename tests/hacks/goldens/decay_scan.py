"""Decaying running sum along each row, a row in each partition. R = rows, C = columns."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def decay_scan(x, decay):
    """Return h with h[:, c] = decay * h[:, c - 1] + x[:, c] for x [R, C]: [R, C] @ HBM, dtype of x."""
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, rows, P):
        last = min(first + P, rows)
        x_sbuf = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        factors = nl.ndarray((last - first, columns), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=factors, value=decay)
        result = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_tensor_scan(
            dst=result, data0=factors, data1=x_sbuf, initial=0.0, op0=nl.multiply, op1=nl.add
        )
        nisa.dma_copy(dst=out[first:last, :], src=result)
    return out
