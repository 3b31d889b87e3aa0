"""Scale of features: tokens on partitions, several short ones to each.

Legend: T = tokens, H = hidden, P = partitions, R = tokens of one partition.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
TILE_BYTES = 8 * 1024  # of x per partition and DMA at least: short rows travel together


@nki.jit
def layer_scale(x, scale):
    """Multiply each feature by its own factor.

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T; H up to 16384.
        scale: [H] @ HBM, dtype of x.
    Returns: [T, H] @ HBM, dtype of x; the product is rounded once.
    """
    assert scale.dtype == x.dtype, "layer_scale: scale must have the dtype of x"
    tokens, hidden = x.shape
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    rows = min(tokens, P)
    scale_sbuf = nl.ndarray((rows, hidden), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=scale_sbuf, src=scale.expand_dim(0).broadcast(0, rows))
    most = max(1, TILE_BYTES // (hidden * (4 if x.dtype == nl.float32 else 2)))
    first = 0
    while first < tokens:
        left = tokens - first
        each = min(most, max(1, left // P))
        parts = min(P, left // each)
        last = first + parts * each
        shape = (parts, each, hidden)
        x_sbuf = nl.ndarray(shape, dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :].reshape(shape))
        factors = scale_sbuf[0:parts, :].expand_dim(1).broadcast(1, each)
        nisa.tensor_tensor(dst=x_sbuf, data1=x_sbuf, data2=factors, op=nl.multiply, engine=nisa.engine.vector)
        nisa.dma_copy(dst=out[first:last, :].reshape(shape), src=x_sbuf)
        first = last
    return out
