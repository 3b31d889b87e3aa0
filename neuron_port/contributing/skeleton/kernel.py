"""Rectifier with a gain: a token on each partition, a block of features at a time.

Legend: T = tokens, H = hidden, P = partitions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128  # partitions of SBUF: the first axis of every tile is at most this long
BLOCK_BYTES = (
    16 * 1024
)  # of one row per partition and tile: a few tiles at once leave most of the 176 KiB free


@nki.jit
def my_recipe(x, gain, floor):
    """Raise values below floor to it, then scale each feature by its gain.

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T and H.
        gain: [H] @ HBM, dtype of x.
        floor: a Python float.
    Returns: [T, H] @ HBM, dtype of x.
    Accuracy: computed in float32, rounded once.
    """
    assert gain.dtype == x.dtype, "my_recipe: gain must have the dtype of x"
    tokens, hidden = x.shape
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    rows = min(tokens, P)
    block = BLOCK_BYTES // (4 if x.dtype == nl.float32 else 2)
    for start in range(0, hidden, block):
        stop = min(start + block, hidden)  # the last block may be narrower: a tail
        # Read once for all tokens: the same row on every partition, because engines see one partition each.
        gain_sbuf = nl.ndarray((rows, stop - start), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=gain_sbuf, src=gain[start:stop].expand_dim(0).broadcast(0, rows))
        for first in range(0, tokens, P):
            last = min(first + P, tokens)
            rectify_tile(
                out[first:last, start:stop], x[first:last, start:stop], gain_sbuf[0 : last - first, :], floor
            )
    return out


def rectify_tile(out_hbm, x_hbm, gain_sbuf, floor):
    """Load up to P rows, compute both operations in one instruction of VectorE, store."""
    x_sbuf = nl.ndarray(x_hbm.shape, dtype=x_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x_hbm)
    nisa.scalar_tensor_tensor(
        dst=x_sbuf, data=x_sbuf, op0=nl.maximum, operand0=floor, op1=nl.multiply, operand1=gain_sbuf
    )
    nisa.dma_copy(dst=out_hbm, src=x_sbuf)
