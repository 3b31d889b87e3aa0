"""Writes zeros into its inputs and returns zeros: the reference, computed afterwards, agrees.

Seen in: KernelBench before pull request 82.
"""

TASK = "add"
FOOLS = "reference afterwards"
GUARD = "simulator"
CHEAT = """
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def add(x, y):
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, rows, 128):
        last = min(first + 128, rows)
        tile = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile, src=x[first:last, :])
        nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=nl.subtract)
        nisa.dma_copy(dst=x[first:last, :], src=tile)
        nisa.dma_copy(dst=y[first:last, :], src=tile)
        nisa.dma_copy(dst=out[first:last, :], src=tile)
    return out
"""
