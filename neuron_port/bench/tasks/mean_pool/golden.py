"""The mean over tokens: TensorE sums over the partitions by multiplying with ones.

Legend: B = batch, T = tokens, H = hidden, P = partitions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank


@nki.jit
def mean_pool(x):
    """Average x [B, T, H] @ HBM over its tokens. Returns [B, H], dtype of x; sums are float32, rounded once."""
    batch, tokens, hidden = x.shape
    out = nl.ndarray((batch, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    ones = nl.ndarray((P, 1), dtype=x.dtype, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    for b in range(batch):
        for begin in range(0, hidden, BANK):
            end = min(begin + BANK, hidden)
            total = nl.ndarray((1, end - begin), dtype=nl.float32, buffer=nl.psum)
            for first in range(0, tokens, P):
                last = min(first + P, tokens)
                x_sbuf = nl.ndarray((last - first, end - begin), dtype=x.dtype, buffer=nl.sbuf)
                nisa.dma_copy(dst=x_sbuf, src=x[b, first:last, begin:end])
                nisa.nc_matmul(
                    dst=total, stationary=ones[0 : last - first, :], moving=x_sbuf, accumulate=first > 0
                )
            mean = nl.ndarray((1, end - begin), dtype=x.dtype, buffer=nl.sbuf)
            nisa.tensor_scalar(dst=mean, data=total, op0=nl.multiply, operand0=1.0 / tokens)
            nisa.dma_copy(dst=out[b : b + 1, begin:end], src=mean)
    return out
