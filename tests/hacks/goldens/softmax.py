"""Softmax of rows, a row in each partition. R = rows, C = columns."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def softmax(x):
    """Return exp(x - max) / sum of each row of x [R, C]: [R, C] @ HBM, dtype of x. Summed in float32, rounded once."""
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, rows, P):
        last = min(first + P, rows)
        x_sbuf = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        lowest = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=lowest, op=nl.maximum, data=x_sbuf, axis=1, negate=True)
        exponentials = nl.ndarray((last - first, columns), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(
            dst=exponentials, op=nl.exp, data=x_sbuf, bias=lowest, reduce_op=nl.add, reduce_res=total
        )
        inverse = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.reciprocal(dst=inverse, data=total)
        result = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=result, data=exponentials, op0=nl.multiply, operand0=inverse)
        nisa.dma_copy(dst=out[first:last, :], src=result)
    return out
