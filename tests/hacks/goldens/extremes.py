"""Largest and smallest element of each row, a row in each partition. R = rows, C = columns."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def extremes(x):
    """Return the maximum and the minimum of each row of x [R, C]: two [R, 1] @ HBM, dtype of x, bit for bit."""
    rows, columns = x.shape
    largest = nl.ndarray((rows, 1), dtype=x.dtype, buffer=nl.shared_hbm)
    smallest = nl.ndarray((rows, 1), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, rows, P):
        last = min(first + P, rows)
        x_sbuf = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        found = nl.ndarray((last - first, 2), dtype=x.dtype, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=found[:, 0:1], op=nl.maximum, data=x_sbuf, axis=1)
        nisa.tensor_reduce(dst=found[:, 1:2], op=nl.minimum, data=x_sbuf, axis=1)
        nisa.dma_copy(dst=largest[first:last, :], src=found[:, 0:1])
        nisa.dma_copy(dst=smallest[first:last, :], src=found[:, 1:2])
    return largest, smallest
