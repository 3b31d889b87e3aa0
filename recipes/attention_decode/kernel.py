"""Attention of one new token per batch row over a key/value cache (grouped-query).

Scores are computed transposed: cache slots on the partitions, (batch row, query head) in the free
dimension. A slice of the key cache, kept as [D, C], is then the stationary operand as it lies; the softmax
of all heads of up to 128 batch rows x heads is one short run of wide instructions; and the weights come out
in the layout that the product with V wants: nothing of cache size is ever transposed. Only the maximum over
slots, which lie across partitions, needs two transposes of a [128, heads] tile.

Legend: B = batch, Q = query heads, G = key/value heads, R = Q / G, D = head dimension, C = cache slots,
rows = batch rows of this pass x Q, chunk = 128 slots.
"""

import nki
import nki.isa as nisa
import nki.language as nl

# By how much the limit on a slot's score falls from one slot to the next, through zero at the position.
# Scores below half of it in magnitude pass untouched; times a million slots it still fits float32.
LIMIT_STEP = 1e32
# A block of the key or of the value cache, in bytes per partition: two of each fit beside everything else.
CACHE_BLOCK_BYTES = 32 * 1024


def copy_to_sbuf(data_psum, dtype):
    """Returns an SBUF copy of a PSUM tile."""
    data_sbuf = nl.ndarray(data_psum.shape, dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=data_sbuf, src=data_psum, engine=nisa.engine.vector)
    return data_sbuf


def load_query(q_rows_hbm):
    """Returns q^T [D, rows] @ SBUF for q [rows, D] @ HBM."""
    rows, head_dim = q_rows_hbm.shape
    q_sbuf = nl.ndarray((rows, head_dim), dtype=q_rows_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=q_sbuf, src=q_rows_hbm)
    q_psum = nl.ndarray((head_dim, rows), dtype=q_rows_hbm.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=q_psum, data=q_sbuf, engine=nisa.engine.tensor)
    return copy_to_sbuf(q_psum, q_rows_hbm.dtype)


def slot_limits(positions_hbm, chunks):
    """Returns limits for scores, [128, chunks, b] @ SBUF: huge up to the position, hugely negative after.

    `minimum(score, limit)` keeps a score up to the position and replaces any other, whatever its slot holds.
    """
    batch = positions_hbm.shape[0]
    pmax = nl.tile_size.pmax
    position = nl.ndarray((pmax, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=position, src=positions_hbm.reshape((1, batch)).broadcast(0, pmax))
    # Half a slot beyond the position is where the limit changes its sign.
    nisa.tensor_scalar(
        dst=position, data=position, op0=nl.add, operand0=0.5, op1=nl.multiply, operand1=LIMIT_STEP
    )
    slot = nl.ndarray((pmax, chunks), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=slot, pattern=[[pmax, chunks]], offset=0, channel_multiplier=1)
    limit = nl.ndarray((pmax, chunks, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=limit,
        data=slot.expand_dim(2).broadcast(2, batch),
        op0=nl.multiply,
        operand0=-LIMIT_STEP,
        op1=nl.add,
        operand1=position.expand_dim(1).broadcast(1, chunks),
    )
    return limit


def load_keys(k_cache, batch_row, first_slot, end_slot, width):
    """Returns keys [D, G, width] @ SBUF of one batch row; columns beyond end_slot - first_slot are zero."""
    _, kv_heads, head_dim, _ = k_cache.shape
    slots = end_slot - first_slot
    k_sbuf = nl.ndarray((head_dim, kv_heads, width), dtype=k_cache.dtype, buffer=nl.sbuf)
    if slots < width:
        nisa.memset(k_sbuf[:, :, slots:width], value=0.0)
    k_view = k_cache[batch_row].permute((1, 0, 2))  # [D, G, C]
    nisa.dma_copy(dst=k_sbuf[:, :, 0:slots], src=k_view[:, :, first_slot:end_slot])
    return k_sbuf


def load_values(v_cache, batch_row, first_slot, end_slot, chunks):
    """Returns values [128, G, chunks, D] @ SBUF of one batch row; slots that do not exist stay unwritten."""
    _, kv_heads, _, head_dim = v_cache.shape
    pmax = nl.tile_size.pmax
    v_sbuf = nl.ndarray((pmax, kv_heads, chunks, head_dim), dtype=v_cache.dtype, buffer=nl.sbuf)
    v_view = v_cache[batch_row].permute((1, 0, 2))  # [C, G, D]
    whole = (end_slot - first_slot) // pmax
    if whole > 0:
        v_whole = v_view[first_slot : first_slot + whole * pmax].reshape_dim(0, (whole, pmax))
        nisa.dma_copy(dst=v_sbuf[:, :, 0:whole, :], src=v_whole.permute((1, 2, 0, 3)))
    tail = end_slot - first_slot - whole * pmax
    if tail > 0:
        nisa.dma_copy(dst=v_sbuf[0:tail, :, whole, :], src=v_view[end_slot - tail : end_slot])
    return v_sbuf


def compute_scores(q_sbuf, k_cache, limit, first_batch, scale):
    """Returns masked, scaled scores [128, chunks, rows] @ SBUF, f32."""
    _, kv_heads, _, slots = k_cache.shape
    pmax = nl.tile_size.pmax
    chunks, batch = limit.shape[1], limit.shape[2]
    rows = q_sbuf.shape[1]
    query_heads = rows // batch
    group = query_heads // kv_heads

    row_bytes = kv_heads * pmax * (2 if k_cache.dtype == nl.bfloat16 else 4)
    block_chunks = max(1, min(nl.tile_size.psum_bank_fmax // rows, CACHE_BLOCK_BYTES // row_bytes, chunks))
    scores = nl.ndarray((pmax, chunks, rows), dtype=nl.float32, buffer=nl.sbuf)
    for first_chunk in range(0, chunks, block_chunks):
        end_chunk = min(first_chunk + block_chunks, chunks)
        width = (end_chunk - first_chunk) * pmax
        first_slot = first_chunk * pmax
        scores_psum = nl.ndarray((pmax, end_chunk - first_chunk, rows), dtype=nl.float32, buffer=nl.psum)
        for b in range(batch):
            k_sbuf = load_keys(k_cache, first_batch + b, first_slot, min(first_slot + width, slots), width)
            for chunk in range(end_chunk - first_chunk):
                for g in range(kv_heads):
                    column = b * query_heads + g * group
                    nisa.nc_matmul(
                        dst=scores_psum[:, chunk, column : column + group],
                        stationary=k_sbuf[:, g, chunk * pmax : (chunk + 1) * pmax],
                        moving=q_sbuf[:, column : column + group],
                        accumulate=False,
                    )
        limit_view = limit[:, first_chunk:end_chunk, :].expand_dim(3).broadcast(3, query_heads)
        nisa.scalar_tensor_tensor(
            dst=scores[:, first_chunk:end_chunk, :].reshape_dim(2, (batch, query_heads)),
            data=scores_psum.reshape_dim(2, (batch, query_heads)),
            op0=nl.multiply,
            operand0=scale,
            op1=nl.minimum,
            operand1=limit_view,
        )
    return scores


def reduce_chunks(data, op):
    """Returns [128, rows] f32 @ SBUF: [128, chunks, rows] reduced over its chunks."""
    partitions, chunks, rows = data.shape
    result = nl.ndarray((partitions, rows), dtype=nl.float32, buffer=nl.sbuf)
    if chunks == 1:
        nisa.tensor_copy(dst=result, src=data[:, 0, :], engine=nisa.engine.vector)
    else:
        nisa.tensor_reduce(dst=result, op=op, data=data.permute((0, 2, 1)), axis=2)
    return result


def exponentiate(scores, identity, dtype):
    """Returns exp(scores - maximum over slots) [128, chunks, rows] and 1 / its sum [rows, 1], both @ SBUF."""
    pmax, chunks, rows = scores.shape
    # Slots lie across partitions: transpose the maxima of the partitions, reduce, and spread the result
    # over the partitions again as the product of its stride-0 view [rows, 128] with the identity.
    maxima_psum = nl.ndarray((rows, pmax), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=maxima_psum, data=reduce_chunks(scores, nl.maximum), engine=nisa.engine.tensor)
    maximum = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=maximum, op=nl.maximum, data=maxima_psum, axis=1)
    spread_psum = nl.ndarray((pmax, rows), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=spread_psum,
        stationary=maximum.broadcast(1, pmax),
        moving=identity[0:rows, 0:rows],
        accumulate=False,
    )
    nisa.tensor_tensor(
        dst=scores, data1=scores, data2=spread_psum.expand_dim(1).broadcast(1, chunks), op=nl.subtract
    )
    weights = nl.ndarray((pmax, chunks, rows), dtype=dtype, buffer=nl.sbuf)
    nisa.activation(dst=weights, op=nl.exp, data=scores)

    # Summing what was rounded to `dtype` keeps the weights' sum exactly one.
    ones = nl.ndarray((pmax, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(ones, value=1.0)
    sum_psum = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=sum_psum, stationary=reduce_chunks(weights, nl.add), moving=ones, accumulate=False)
    inverse_sum = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse_sum, data=sum_psum)
    return weights, inverse_sum


def weigh_values(weights, v_cache, first_batch, batch):
    """Returns the unnormalised output, transposed: [D, rows] @ PSUM, f32."""
    _, kv_heads, slots, head_dim = v_cache.shape
    pmax, chunks, rows = weights.shape
    query_heads = rows // batch
    group = query_heads // kv_heads

    chunk_bytes = kv_heads * head_dim * (2 if v_cache.dtype == nl.bfloat16 else 4)
    block_chunks = max(1, min(CACHE_BLOCK_BYTES // chunk_bytes, chunks))
    out_psum = nl.ndarray((head_dim, rows), dtype=nl.float32, buffer=nl.psum)
    for b in range(batch):
        for first_chunk in range(0, chunks, block_chunks):
            end_chunk = min(first_chunk + block_chunks, chunks)
            end_slot = min(end_chunk * pmax, slots)
            first_slot = first_chunk * pmax
            v_sbuf = load_values(v_cache, first_batch + b, first_slot, end_slot, end_chunk - first_chunk)
            for chunk in range(first_chunk, end_chunk):
                filled = min(pmax, slots - chunk * pmax)
                for g in range(kv_heads):
                    column = b * query_heads + g * group
                    nisa.nc_matmul(
                        dst=out_psum[:, column : column + group],
                        stationary=v_sbuf[0:filled, g, chunk - first_chunk, :],
                        moving=weights[0:filled, chunk, column : column + group],
                        accumulate=chunk > 0,
                    )
    return out_psum


@nki.jit
def attention_decode(q, k_cache, v_cache, positions, scale):
    """Attends from one token per batch row to cache slots 0..positions[b].

    Args:
        q: [B, Q, D] @ HBM, f32 or bf16; Q a multiple of G, Q <= 128, D <= 128.
        k_cache: [B, G, D, C] @ HBM, dtype of q: keys transposed.
        v_cache: [B, G, C, D] @ HBM, dtype of q.
        positions: [B] int32 @ HBM, each in 0..C-1. Slots beyond may hold any finite values.
        scale: multiplies the scores (before softmax).
    Returns: [B, Q, D] @ HBM, dtype of q.
    Accuracy: scores, softmax and sums are f32; the weights are rounded to q's dtype before they meet v.
    """
    batch, query_heads, head_dim = q.shape
    kv_heads, slots = k_cache.shape[1], k_cache.shape[3]
    pmax = nl.tile_size.pmax
    assert query_heads % kv_heads == 0, (
        f"attention_decode: {query_heads} query heads over {kv_heads} key heads"
    )
    assert query_heads <= pmax, f"attention_decode: {query_heads} query heads, at most {pmax}"
    assert head_dim <= pmax, f"attention_decode: head dimension {head_dim}, at most {pmax}"

    chunks = (slots + pmax - 1) // pmax
    out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    q_rows = q.reshape((batch * query_heads, head_dim))
    out_rows = out.reshape((batch * query_heads, head_dim))
    identity = nl.shared_identity_matrix(n=pmax, dtype=nl.float32)

    batch_per_pass = pmax // query_heads
    for first_batch in range(0, batch, batch_per_pass):
        end_batch = min(first_batch + batch_per_pass, batch)
        first_row, end_row = first_batch * query_heads, end_batch * query_heads
        rows = end_row - first_row

        q_sbuf = load_query(q_rows[first_row:end_row])
        limit = slot_limits(positions[first_batch:end_batch], chunks)
        scores = compute_scores(q_sbuf, k_cache, limit, first_batch, scale)
        weights, inverse_sum = exponentiate(scores, identity, q.dtype)
        out_psum = weigh_values(weights, v_cache, first_batch, end_batch - first_batch)

        transposed_psum = nl.ndarray((rows, head_dim), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_transpose(
            dst=transposed_psum, data=copy_to_sbuf(out_psum, nl.float32), engine=nisa.engine.tensor
        )
        out_sbuf = nl.ndarray((rows, head_dim), dtype=q.dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=out_sbuf, data=transposed_psum, op0=nl.multiply, operand0=inverse_sum)
        nisa.dma_copy(dst=out_rows[first_row:end_row], src=out_sbuf)
    return out
