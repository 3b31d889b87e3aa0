"""Key/value cache with new tokens in it: a copy of the cache, in which each batch row's tokens stand at its position.

Legend: B = batch, G = key/value heads, C = slots, D = head dimension, S = new tokens.

Both are DMAs alone. The address of the new tokens is read at run time.
"""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def kv_cache_update(cache, new, positions, axis):
    """Copy the cache, and write row b of `new` along `axis` from positions[b] on.

    Args:
        cache: [B, G, C, D] @ HBM (values, axis 2) or [B, G, D, C] (keys, axis 3), float32 or bfloat16.
        new: [B, G, S, D] @ HBM (axis 2) or [B, G, D, S] (axis 3), dtype of cache.
        positions: [B] int32 @ HBM, positions[b] + S at most C.
        axis: 2 or 3.
    Returns: a tensor like cache @ HBM.
    Accuracy: exact.
    """
    batch, heads, rows, columns = cache.shape
    assert axis == 2 or axis == 3, f"kv_cache_update: axis {axis}, must be 2 or 3"
    assert new.shape[axis] <= cache.shape[axis], "kv_cache_update: more new tokens than slots"
    out = nl.ndarray(cache.shape, dtype=cache.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=cache)
    positions_sbuf = nl.ndarray((1, batch), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(dst=positions_sbuf, src=positions.expand_dim(0))
    for row in range(batch):
        slots = out.ap(
            pattern=[[rows * columns, heads], [columns, new.shape[2]], [1, new.shape[3]]],
            offset=row * heads * rows * columns,
            scalar_offset=positions_sbuf[:, row : row + 1],
            indirect_dim=axis,
        )
        nisa.dma_copy(dst=slots, src=new[row])
    return out
