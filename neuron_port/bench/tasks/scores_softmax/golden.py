"""Causal attention weights: softmax of scaled q k^T, a query in each partition.

Legend: B = batch x heads, S = sequence, D = head dimension, P = partitions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BANK = 512  # float32 elements of one PSUM bank
MASKED = -1e30  # far below any score, far from overflow


@nki.jit
def scores_softmax(q, k, scale):
    """Softmax over keys up to the query's own position of scale * q k^T, for q and k [B, S, D] @ HBM.

    Returns: [B, S, S], dtype of q. Scores and sums are float32, rounded once. D up to 128, S up to 512.
    """
    batch, length, width = q.shape
    out = nl.ndarray((batch, length, length), dtype=q.dtype, buffer=nl.shared_hbm)
    for b in range(batch):
        keys_DS = nl.ndarray((width, length), dtype=k.dtype, buffer=nl.sbuf)
        for first in range(0, length, P):
            last = min(first + P, length)
            transpose_rows(keys_DS[:, first:last], k[b, first:last, :])
        for first in range(0, length, P):
            last = min(first + P, length)
            queries_DT = nl.ndarray((width, last - first), dtype=q.dtype, buffer=nl.sbuf)
            transpose_rows(queries_DT, q[b, first:last, :])
            scores = nl.ndarray((last - first, length), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=scores, stationary=queries_DT, moving=keys_DS, accumulate=False)
            attend(out[b, first:last, :], scores, first, scale)
    return out


def transpose_rows(dst_DT, rows_hbm):
    """Transpose up to P rows [T, D] @ HBM into dst [D, T] @ SBUF."""
    rows_sbuf = nl.ndarray(rows_hbm.shape, dtype=rows_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=rows_sbuf, src=rows_hbm)
    flipped = nl.ndarray(dst_DT.shape, dtype=rows_hbm.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=flipped, data=rows_sbuf, engine=nisa.engine.tensor)
    nisa.tensor_copy(dst=dst_DT, src=flipped)


def attend(out_hbm, scores, first, scale):
    """Mask, exponentiate and normalise scores [T, S] @ PSUM of the queries from `first` on."""
    rows, length = scores.shape
    weights = nl.ndarray((rows, length), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=weights, data=scores, op0=nl.multiply, operand0=scale)
    nisa.affine_select(
        dst=weights,
        pattern=[[-1, length]],
        offset=first,
        channel_multiplier=1,  # query - key
        on_true_tile=weights,
        on_false_value=MASKED,
        cmp_op=nl.greater_equal,
    )
    highest = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=highest, op=nl.maximum, data=weights, axis=1)
    nisa.tensor_scalar(dst=weights, data=weights, op0=nl.subtract, operand0=highest)
    sums = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(dst=weights, op=nl.exp, data=weights, reduce_op=nl.add, reduce_res=sums)
    inverse = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=sums)
    out_sbuf = nl.ndarray((rows, length), dtype=out_hbm.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=out_sbuf, data=weights, op0=nl.multiply, operand0=inverse)
    nisa.dma_copy(dst=out_hbm, src=out_sbuf)
