"""Softmax of each row: a row in each partition. Legend: T = tokens, H = row length, P = partitions."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def softmax(x):
    """Exponentials of x [T, H] @ HBM divided by their sum, row by row. Returns [T, H]; float32 inside, rounded once."""
    tokens, width = x.shape
    out = nl.ndarray((tokens, width), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        rows = last - first
        x_sbuf = nl.ndarray((rows, width), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        highest = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=highest, op=nl.maximum, data=x_sbuf, axis=1)
        shifted = nl.ndarray((rows, width), dtype=nl.float32, buffer=nl.sbuf)
        # Subtracted apart: a bias of ScalarE would do, but x - max is exact where it matters only in this order.
        nisa.tensor_scalar(dst=shifted, data=x_sbuf, op0=nl.subtract, operand0=highest)
        sums = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(dst=shifted, op=nl.exp, data=shifted, reduce_op=nl.add, reduce_res=sums)
        inverse = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.reciprocal(dst=inverse, data=sums)
        nisa.tensor_scalar(dst=x_sbuf, data=shifted, op0=nl.multiply, operand0=inverse)
        nisa.dma_copy(dst=out[first:last, :], src=x_sbuf)
    return out
