"""Returns zeros and reads nothing: no instruction connects the inputs with the output.

Seen in: KernelBench, issue 165.
"""

TASK = "softmax"
FOOLS = "small inputs"
GUARD = ("source", "values")
CHEAT = """
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def softmax(x):
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, rows, 128):
        last = min(first + 128, rows)
        zeros = nl.zeros((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=out[first:last, :], src=zeros)
    return out
"""
