"""Returns one row, which a comparison broadcasts to all.

Seen in: comparisons with numpy.allclose or torch.allclose on equal rows.
"""

TASK = "softmax"
FOOLS = "equal inputs"
GUARD = ("values", "simulator")
CHEAT = """
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def softmax(x):
    rows, columns = x.shape
    out = nl.ndarray((1, 1), dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray((1, 1), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x[0:1, 0:1])
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=1.0 / columns)
    nisa.dma_copy(dst=out, src=tile)
    return out
"""
