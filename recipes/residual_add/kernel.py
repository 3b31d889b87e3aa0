"""Sum of two activations: the rows are forgotten, and the flat elements are dealt evenly to the partitions.

Legend: T = tokens, H = hidden, P = partitions, F = elements per partition.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BLOCK_BYTES = 32 * 1024  # per partition and operand: two loads and their successors take 128 KiB of 176


@nki.jit
def residual_add(x, y):
    """Add two activations element by element, in float32, rounded once.

    Args:
        x: [T, H] @ HBM, float32 or bfloat16. Any T and H.
        y: [T, H] @ HBM, dtype of x.
    Returns: [T, H] @ HBM, dtype of x.
    """
    assert x.shape == y.shape, "residual_add: x and y must have one shape"
    tokens, hidden = x.shape
    size = tokens * hidden
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    x_flat = x.reshape((size,))
    y_flat = y.reshape((size,))
    out_flat = out.reshape((size,))

    partitions = even_partitions(size)
    if partitions > 0:
        add_evenly(out_flat, x_flat, y_flat, partitions)
        return out
    even = size - size % P
    if even > 0:
        add_evenly(out_flat[0:even], x_flat[0:even], y_flat[0:even], P)
    add_evenly(out_flat[even:size], x_flat[even:size], y_flat[even:size], 1)  # fewer than P elements
    return out


def even_partitions(size):
    """Return on how many partitions the elements spread evenly: the most from 96 to P, or 0."""
    for partitions in range(P, 95, -1):
        if size % partitions == 0:
            return partitions
    return 0


def add_evenly(out_flat, x_flat, y_flat, partitions):
    """Add flat tensors: partition p owns the run [p * F, (p + 1) * F), so DMA rows are long for any H."""
    run = x_flat.shape[0] // partitions
    x_PF = x_flat.reshape((partitions, run))
    y_PF = y_flat.reshape((partitions, run))
    out_PF = out_flat.reshape((partitions, run))
    block = BLOCK_BYTES // (4 if x_flat.dtype == nl.float32 else 2)
    for start in range(0, run, block):
        stop = min(start + block, run)
        add_block(out_PF[:, start:stop], x_PF[:, start:stop], y_PF[:, start:stop])


def add_block(out_hbm, x_hbm, y_hbm):
    """Load two tiles of one shape, add the second to the first in place, store."""
    x_sbuf = nl.ndarray(x_hbm.shape, dtype=x_hbm.dtype, buffer=nl.sbuf)
    y_sbuf = nl.ndarray(y_hbm.shape, dtype=y_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x_hbm)
    nisa.dma_copy(dst=y_sbuf, src=y_hbm)
    nisa.tensor_tensor(dst=x_sbuf, data1=x_sbuf, data2=y_sbuf, op=nl.add)
    nisa.dma_copy(dst=out_hbm, src=x_sbuf)
