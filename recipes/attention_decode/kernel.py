"""Attention of one new token per batch row over a key/value cache (grouped-query), with every variant of `attention`.

Scores are computed transposed: cache slots on the partitions, (batch row, query head) in the free dimension. A slice of
the key cache, kept as [D, C], is then the stationary operand as it lies; the softmax of all heads of up to 128 batch
rows x heads is one short run of wide instructions; and the weights come out in the layout that the product with V
wants: nothing of cache size is ever transposed. Only the maximum over slots, which lie across partitions, needs two
transposes of a [128, heads] tile.

The cache passes in blocks. A partition holds neighbouring slots of a block, so that a block of values arrives in pieces
of kilobytes; a chunk, one slot of each partition, is every n-th column of the keys.

Legend: B = batch, Q = query heads, G = key/value heads, R = Q / G, D = head dimension of keys, E = of values, C = cache
slots, rows = batch rows of this pass x Q, block = (first slot, end slot, chunks n, first chunk), pieces = parts of D.
"""

import nki
import nki.isa as nisa
import nki.language as nl

# By how much the limit on a slot's score falls from one slot to the next, through zero at the last one that is seen.
# Scores below half of it in magnitude pass untouched; times a million slots it still fits float32.
LIMIT_STEP = 1e32
# A block of the key or of the value cache, in bytes per partition: two of each fit beside everything else.
CACHE_BLOCK_BYTES = 24 * 1024
MAX_CHUNKS_PER_BLOCK = 16  # pieces of 4 KiB where D = 128: longer ones are not faster
MAX_HEAD_DIM = 256


def item_bytes(tensor):
    """Returns the bytes of one element, 2 or 4."""
    return 2 if tensor.dtype == nl.bfloat16 or tensor.dtype == nl.float16 else 4


def ceiling(value, divisor):
    """Returns value / divisor, rounded up."""
    return (value + divisor - 1) // divisor


def copy_to_sbuf(data_psum, dtype):
    """Returns an SBUF copy of a PSUM tile."""
    data_sbuf = nl.ndarray(data_psum.shape, dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=data_sbuf, src=data_psum, engine=nisa.engine.vector)
    return data_sbuf


def cut(size):
    """Returns (number, first, end) of the parts of at most 128 that a head dimension is cut into."""
    pmax = nl.tile_size.pmax
    parts = []
    for first in range(0, size, pmax):
        parts.append((first // pmax, first, min(first + pmax, size)))
    return parts


def cut_cache(k_cache, v_cache):
    """Returns the blocks of the cache: (first slot, end slot, chunks, first chunk)."""
    _, kv_heads, head_dim, slots = k_cache.shape
    pmax = nl.tile_size.pmax
    chunk_bytes = kv_heads * max(ceiling(head_dim, pmax) * pmax, v_cache.shape[3]) * item_bytes(k_cache)
    most = max(1, min(CACHE_BLOCK_BYTES // chunk_bytes, MAX_CHUNKS_PER_BLOCK))
    blocks = []
    first_chunk = 0
    for first in range(0, slots, most * pmax):
        end = min(first + most * pmax, slots)
        chunks = ceiling(end - first, pmax)
        blocks.append((first, end, chunks, first_chunk))
        first_chunk += chunks
    return blocks


# ---- loading -------------------------------------------------------------------------------------------------


def load_query(q_rows_hbm, scale):
    """Returns scale x q^T [128, pieces, rows] @ SBUF for q [rows, D] @ HBM."""
    rows, head_dim = q_rows_hbm.shape
    pmax = nl.tile_size.pmax
    q_sbuf = nl.ndarray((rows, head_dim), dtype=q_rows_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=q_sbuf, src=q_rows_hbm)
    shape = (min(head_dim, pmax), ceiling(head_dim, pmax), rows)
    result = nl.ndarray(shape, dtype=q_rows_hbm.dtype, buffer=nl.sbuf)
    for piece, first, end in cut(head_dim):
        q_psum = nl.ndarray((end - first, rows), dtype=q_rows_hbm.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=q_psum, data=q_sbuf[:, first:end], engine=nisa.engine.tensor)
        nisa.tensor_scalar(
            dst=result[0 : end - first, piece, :], data=q_psum, op0=nl.multiply, operand0=scale
        )
    return result


def load_keys(k_cache, batch_row, block):
    """Returns keys [D, pieces, G, chunks x 128] @ SBUF of one batch row; columns beyond the cache are zero."""
    _, kv_heads, head_dim, _ = k_cache.shape
    first_slot, end_slot, chunks, _ = block
    pmax = nl.tile_size.pmax
    slots, width = end_slot - first_slot, chunks * pmax
    shape = (min(head_dim, pmax), ceiling(head_dim, pmax), kv_heads, width)
    k_sbuf = nl.ndarray(shape, dtype=k_cache.dtype, buffer=nl.sbuf)
    if slots < width:
        nisa.memset(k_sbuf[:, :, :, slots:width], value=0.0)
    k_view = k_cache[batch_row].permute((1, 0, 2))  # [D, G, C]
    for piece, first, end in cut(head_dim):
        nisa.dma_copy(
            dst=k_sbuf[0 : end - first, piece, :, 0:slots], src=k_view[first:end, :, first_slot:end_slot]
        )
    return k_sbuf


def load_values(v_cache, batch_row, block):
    """Returns values [128, G, chunks, E] @ SBUF of one batch row; slots that do not exist stay unwritten."""
    _, kv_heads, _, value_dim = v_cache.shape
    first_slot, end_slot, chunks, _ = block
    pmax = nl.tile_size.pmax
    v_sbuf = nl.ndarray((pmax, kv_heads, chunks, value_dim), dtype=v_cache.dtype, buffer=nl.sbuf)
    v_view = v_cache[batch_row].permute((1, 0, 2))[first_slot:end_slot]  # [slots, G, E]
    whole = (end_slot - first_slot) // chunks  # partitions whose slots all exist
    rest = end_slot - first_slot - whole * chunks
    if whole > 0:
        v_whole = v_view[0 : whole * chunks].reshape_dim(0, (whole, chunks))
        nisa.dma_copy(dst=v_sbuf[0:whole], src=v_whole.permute((0, 2, 1, 3)))
    if rest > 0:
        v_rest = v_view[whole * chunks : whole * chunks + rest].expand_dim(0)
        nisa.dma_copy(dst=v_sbuf[whole : whole + 1, :, 0:rest, :], src=v_rest.permute((0, 2, 1, 3)))
    return v_sbuf


def load_bias(bias_hbm, block, batch, query_heads, identity):
    """Returns a bias [p, chunks x 128] @ SBUF, zero beyond the cache, and what spreads it over rows [p, batch, Q].

    bias_hbm: [batch or 1, Q or 1, C] @ HBM.
    """
    first_slot, end_slot, chunks, _ = block
    own_batch, own_heads = bias_hbm.shape[0], bias_hbm.shape[1]
    slots, width = end_slot - first_slot, chunks * nl.tile_size.pmax
    partitions = own_batch * own_heads
    bias = nl.ndarray((partitions, width), dtype=bias_hbm.dtype, buffer=nl.sbuf)
    if slots < width:
        nisa.memset(bias[:, slots:width], value=0.0)
    nisa.dma_copy(dst=bias[:, 0:slots], src=bias_hbm[:, :, first_slot:end_slot])
    spread = identity[0:partitions, 0:partitions].reshape_dim(1, (own_batch, own_heads))
    if own_batch < batch:
        spread = spread.broadcast(1, batch)
    if own_heads < query_heads:
        spread = spread.broadcast(2, query_heads)
    return bias, spread


# ---- which slots are seen ------------------------------------------------------------------------------------


def linear_limit(slot, slot_step, offset):
    """Returns slot_step x slot + offset [128, chunks, b] @ SBUF for slot [128, chunks] and offset [128, b]."""
    (pmax, chunks), batch = slot.shape, offset.shape[1]
    limit = nl.ndarray((pmax, chunks, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=limit,
        data=slot.expand_dim(2).broadcast(2, batch),
        op0=nl.multiply,
        operand0=slot_step,
        op1=nl.add,
        operand1=offset.expand_dim(1).broadcast(1, chunks),
    )
    return limit


def first_of_chunk(position, chunk_size):
    """Returns chunk_size x floor(position / chunk_size) [128, b] @ SBUF, f32.

    Rounding (position + 0.5) / chunk_size - 0.5 to the nearest integer is that floor, and never meets a tie.
    """
    whole = nl.ndarray(position.shape, dtype=nl.int32, buffer=nl.sbuf)
    scaled = nl.ndarray(position.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=scaled, data=position, op0=nl.add, operand0=0.5, op1=nl.multiply, operand1=1.0 / chunk_size
    )
    nisa.tensor_scalar(dst=whole, data=scaled, op0=nl.add, operand0=-0.5)
    first = nl.ndarray(position.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=first, data=whole, op0=nl.multiply, operand0=float(chunk_size))
    return first


def slot_limits(positions_hbm, blocks, window_before, chunk_size):
    """Returns limits for scores, [128, chunks, b] @ SBUF: huge for the slots that are seen, hugely negative else.

    `minimum(score, limit)` keeps a score that is seen and replaces any other, whatever its slot holds. Slots up to the
    position are seen; of these, the last window_before + 1, and those of the position's own chunk.
    """
    batch = positions_hbm.shape[0]
    pmax = nl.tile_size.pmax
    last_block = blocks[-1]
    chunks = last_block[3] + last_block[2]
    position = nl.ndarray((pmax, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=position, src=positions_hbm.reshape((1, batch)).broadcast(0, pmax))
    slot = nl.ndarray((pmax, chunks), dtype=nl.float32, buffer=nl.sbuf)
    for first_slot, _, count, first_chunk in blocks:
        nisa.iota(
            dst=slot[:, first_chunk : first_chunk + count],
            pattern=[[1, count]],
            offset=first_slot,
            channel_multiplier=count,
        )
    starts = []  # the first slot that is seen
    if window_before != None:  # noqa: E711 (the compiler knows no `is`)
        start = nl.ndarray((pmax, batch), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=start, data=position, op0=nl.add, operand0=-float(window_before))
        starts.append(start)
    if chunk_size != None:  # noqa: E711
        starts.append(first_of_chunk(position, chunk_size))

    # Half a slot beyond the last (and before the first) that is seen is where a limit changes its sign.
    offset = nl.ndarray((pmax, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=offset, data=position, op0=nl.add, operand0=0.5, op1=nl.multiply, operand1=LIMIT_STEP
    )
    limit = linear_limit(slot, -LIMIT_STEP, offset)
    for start in starts:
        offset = nl.ndarray((pmax, batch), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=offset, data=start, op0=nl.subtract, operand0=0.5, op1=nl.multiply, operand1=-LIMIT_STEP
        )
        lower = linear_limit(slot, LIMIT_STEP, offset)
        nisa.tensor_tensor(dst=limit, data1=limit, data2=lower, op=nl.minimum)
    return limit


# ---- scores, weights, values ---------------------------------------------------------------------------------


def add_products(dst, q_sbuf, k_sbuf, head_dim, first_chunk, chunks_in_block):
    """Writes scores dst [128, chunks, Q] @ PSUM: q^T [D, pieces, Q] of a batch row times its keys."""
    _, count, query_heads = dst.shape
    kv_heads, width = k_sbuf.shape[2], k_sbuf.shape[3]
    group = query_heads // kv_heads
    for chunk in range(count):
        for g in range(kv_heads):
            for piece, first, end in cut(head_dim):
                nisa.nc_matmul(
                    dst=dst[:, chunk, g * group : (g + 1) * group],
                    stationary=k_sbuf[
                        0 : end - first, piece, g, first_chunk + chunk : width : chunks_in_block
                    ],
                    moving=q_sbuf[0 : end - first, piece, g * group : (g + 1) * group],
                    accumulate=piece > 0,
                )


def add_biases(dst, biases, batch_row, first_chunk, chunks_in_block, started):
    """Accumulates biases on dst [128, chunks, Q] @ PSUM; the first overwrites unless `started`."""
    for bias, spread in biases:
        for chunk in range(dst.shape[1]):
            nisa.nc_matmul(
                dst=dst[:, chunk, :],
                stationary=bias[:, first_chunk + chunk : bias.shape[1] : chunks_in_block],
                moving=spread[:, batch_row, :],
                accumulate=started,
            )
        started = True


def compute_scores(q_sbuf, k_cache, biases_hbm, limit, blocks, first_batch, scale, softcap, identity):
    """Returns masked, scaled scores [128, chunks, b x Q] @ SBUF, f32.

    Args:
        q_sbuf: q^T [D, pieces, b x Q] @ SBUF.
        biases_hbm: [b or 1, Q or 1, C] @ HBM each.
    """
    pmax, chunks, batch = limit.shape
    query_heads = q_sbuf.shape[2] // batch
    head_dim = k_cache.shape[2]
    per_bank = nl.tile_size.psum_bank_fmax // query_heads
    scores = nl.ndarray((pmax, chunks, batch * query_heads), dtype=nl.float32, buffer=nl.sbuf)
    for block in blocks:
        _, _, count, first_chunk = block
        biases = []
        for given in biases_hbm:
            biases.append(load_bias(given, block, batch, query_heads, identity))
        for b in range(batch):
            k_sbuf = load_keys(k_cache, first_batch + b, block)
            columns = slice(b * query_heads, (b + 1) * query_heads)
            for first in range(0, count, per_bank):
                end = min(first + per_bank, count)
                products = nl.ndarray((pmax, end - first, query_heads), dtype=nl.float32, buffer=nl.psum)
                add_products(products, q_sbuf[:, :, columns], k_sbuf, head_dim, first, count)
                own = slice(first_chunk + first, first_chunk + end)
                if softcap == 0.0:
                    add_biases(products, biases, b, first, count, True)
                    source, factor = products, scale
                else:
                    source, factor = cap(products, biases, b, first, count, scale, softcap), softcap
                if softcap > 0.0 and len(biases) > 0:
                    factor = 1.0
                nisa.scalar_tensor_tensor(
                    dst=scores[:, own, columns],
                    data=source,
                    op0=nl.multiply,
                    operand0=factor,
                    op1=nl.minimum,
                    operand1=limit[:, own, b : b + 1].broadcast(2, query_heads),
                )
    return scores


def cap(products, biases, batch_row, first_chunk, chunks_in_block, scale, softcap):
    """Returns tanh(scale x products / softcap) [128, chunks, Q] @ SBUF; with biases, softcap times that plus them."""
    capped = nl.ndarray(products.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=capped, op=nl.tanh, data=products, scale=scale / softcap)
    if len(biases) > 0:
        added = nl.ndarray(products.shape, dtype=nl.float32, buffer=nl.psum)
        add_biases(added, biases, batch_row, first_chunk, chunks_in_block, False)
        nisa.scalar_tensor_tensor(
            dst=capped, data=capped, op0=nl.multiply, operand0=softcap, op1=nl.add, operand1=added
        )
    return capped


def reduce_chunks(data, op):
    """Returns [128, rows] f32 @ SBUF: [128, chunks, rows] reduced over its chunks."""
    partitions, chunks, rows = data.shape
    result = nl.ndarray((partitions, rows), dtype=nl.float32, buffer=nl.sbuf)
    if chunks == 1:
        nisa.tensor_copy(dst=result, src=data[:, 0, :], engine=nisa.engine.vector)
    else:
        nisa.tensor_reduce(dst=result, op=op, data=data.permute((0, 2, 1)), axis=2)
    return result


def load_sinks(sinks_hbm, batch):
    """Returns sinks [batch x Q, 1] @ SBUF, f32, for sinks [Q] @ HBM."""
    query_heads = sinks_hbm.shape[0]
    sinks = nl.ndarray((batch * query_heads, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=sinks, src=sinks_hbm.reshape((1, query_heads, 1)).broadcast(0, batch))
    return sinks


def exponentiate(scores, sinks, identity, dtype):
    """Returns exp(scores - maximum over slots) [128, chunks, rows] and 1 / its sum [rows, 1], both @ SBUF.

    sinks: none or one [rows, 1] @ SBUF: scores that count for maximum and sum, and have no weight of their own.
    """
    pmax, chunks, rows = scores.shape
    # Slots lie across partitions: transpose the maxima of the partitions, reduce, and spread the result
    # over the partitions again as the product of its stride-0 view [rows, 128] with the identity.
    maxima_psum = nl.ndarray((rows, pmax), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=maxima_psum, data=reduce_chunks(scores, nl.maximum), engine=nisa.engine.tensor)
    maximum = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=maximum, op=nl.maximum, data=maxima_psum, axis=1)
    for sink in sinks:
        nisa.tensor_tensor(dst=maximum, data1=maximum, data2=sink, op=nl.maximum)
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
    total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=total, stationary=reduce_chunks(weights, nl.add), moving=ones, accumulate=False)
    for sink in sinks:
        share = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=share, data1=sink, data2=maximum, op=nl.subtract)
        nisa.activation(dst=share, op=nl.exp, data=share)
        nisa.tensor_tensor(dst=share, data1=share, data2=total, op=nl.add)
        total = share
    inverse_sum = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse_sum, data=total)
    return weights, inverse_sum


def weigh_values(weights, v_cache, blocks, first_batch, batch):
    """Returns the unnormalised output, transposed: [E, rows] @ PSUM, f32, for each part of at most 128 of E."""
    _, kv_heads, _, value_dim = v_cache.shape
    rows = weights.shape[2]
    query_heads = rows // batch
    group = query_heads // kv_heads
    outputs = []
    for _, first, end in cut(value_dim):
        outputs.append(nl.ndarray((end - first, rows), dtype=nl.float32, buffer=nl.psum))
    for b in range(batch):
        for block in blocks:
            first_slot, end_slot, count, first_chunk = block
            v_sbuf = load_values(v_cache, first_batch + b, block)
            for chunk in range(count):
                filled = ceiling(end_slot - first_slot - chunk, count)  # partitions that have this slot
                for g in range(kv_heads):
                    column = b * query_heads + g * group
                    for part, first, end in cut(value_dim):
                        nisa.nc_matmul(
                            dst=outputs[part][:, column : column + group],
                            stationary=v_sbuf[0:filled, g, chunk, first:end],
                            moving=weights[0:filled, first_chunk + chunk, column : column + group],
                            accumulate=first_chunk + chunk > 0,
                        )
    return outputs


def check_arguments(q, k_cache, v_cache, scale, softcap):
    """Refuses what the kernel is not made for, by name."""
    query_heads, head_dim = q.shape[1], q.shape[2]
    kv_heads, value_dim = k_cache.shape[1], v_cache.shape[3]
    pmax = nl.tile_size.pmax
    assert query_heads % kv_heads == 0, (
        f"attention_decode: {query_heads} query heads over {kv_heads} key heads"
    )
    assert query_heads <= pmax, f"attention_decode: {query_heads} query heads, at most {pmax}"
    assert max(head_dim, value_dim) <= MAX_HEAD_DIM, (
        f"attention_decode: head dimensions {head_dim} and {value_dim}, at most {MAX_HEAD_DIM}"
    )
    assert scale > 0.0, f"attention_decode: scale {scale} must be positive"
    assert softcap >= 0.0, f"attention_decode: soft cap {softcap} must be positive"


@nki.jit
def attention_decode(
    q,
    k_cache,
    v_cache,
    positions,
    bias=None,
    position_bias=None,
    sinks=None,
    scale=1.0,
    window_before=None,
    chunk_size=None,
    softcap=None,
):
    """Attends from one token per batch row to the cache slots that it sees among 0..positions[b].

    Args:
        q: [B, Q, D] @ HBM, f32 or bf16; Q a multiple of G, Q <= 128, D <= 256.
        k_cache: [B, G, D, C] @ HBM, dtype of q: keys transposed.
        v_cache: [B, G, C, E] @ HBM, dtype of q; E <= 256.
        positions: [B] @ HBM, int32, each in 0..C-1. Slots beyond may hold any finite values.
        bias, position_bias: [B or 1, Q or 1, C] @ HBM, dtype of q, or None: added to the scaled scores.
        sinks: [Q] @ HBM, dtype of q, or None: a score for each head that takes weight and gives no value.
        scale: multiplies the scores (before softmax); positive.
        window_before: of the slots up to the position, the last window_before + 1 are seen; None: all.
        chunk_size: only slots of the position's own chunk are seen; None: all.
        softcap: scores become softcap x tanh(scores / softcap) before biases, or None.
    Returns: [B, Q, E] @ HBM, dtype of q.
    Accuracy: scores, softmax and sums are f32; the weights are rounded to q's dtype before they meet v.
    """
    batch, query_heads, head_dim = q.shape
    value_dim = v_cache.shape[3]
    pmax = nl.tile_size.pmax
    most = 0.0 if softcap == None else softcap  # noqa: E711
    check_arguments(q, k_cache, v_cache, scale, most)
    biases = []
    for given in (bias, position_bias):
        if given != None:  # noqa: E711
            biases.append(given)
    # With biases the scores leave TensorE scaled, because the queries are: biases add to scaled scores.
    prescaled = len(biases) > 0 and most == 0.0

    out = nl.ndarray((batch, query_heads, value_dim), dtype=q.dtype, buffer=nl.shared_hbm)
    q_rows = q.reshape((batch * query_heads, head_dim))
    out_rows = out.reshape((batch * query_heads, value_dim))
    identity = nl.shared_identity_matrix(n=pmax, dtype=nl.float32)
    own_identity = identity if q.dtype == nl.float32 else nl.shared_identity_matrix(n=pmax, dtype=q.dtype)
    blocks = cut_cache(k_cache, v_cache)

    batch_per_pass = pmax // query_heads
    for first_batch in range(0, batch, batch_per_pass):
        end_batch = min(first_batch + batch_per_pass, batch)
        count = end_batch - first_batch
        rows = slice(first_batch * query_heads, end_batch * query_heads)

        q_sbuf = load_query(q_rows[rows], scale if prescaled else 1.0)
        limit = slot_limits(positions[first_batch:end_batch], blocks, window_before, chunk_size)
        own_biases = []
        for given in biases:
            own_biases.append(given if given.shape[0] == 1 else given[first_batch:end_batch])
        scores = compute_scores(
            q_sbuf,
            k_cache,
            own_biases,
            limit,
            blocks,
            first_batch,
            1.0 if prescaled else scale,
            most,
            own_identity,
        )
        own_sinks = [] if sinks == None else [load_sinks(sinks, count)]  # noqa: E711
        weights, inverse_sum = exponentiate(scores, own_sinks, identity, q.dtype)
        outputs = weigh_values(weights, v_cache, blocks, first_batch, count)

        out_sbuf = nl.ndarray((count * query_heads, value_dim), dtype=q.dtype, buffer=nl.sbuf)
        for part, first, end in cut(value_dim):
            transposed_psum = nl.ndarray((count * query_heads, end - first), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_transpose(
                dst=transposed_psum, data=copy_to_sbuf(outputs[part], nl.float32), engine=nisa.engine.tensor
            )
            nisa.tensor_scalar(
                dst=out_sbuf[:, first:end], data=transposed_psum, op0=nl.multiply, operand0=inverse_sum
            )
        nisa.dma_copy(dst=out_rows[rows], src=out_sbuf)
    return out
