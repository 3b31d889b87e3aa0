"""Causal grouped-query attention over a whole prompt, flash style: scores never leave the chip.

Queries lie on the partitions: a row block is up to 128 (head, query) pairs that share one key/value head.
Keys and values of as many heads as fit stay in SBUF, K transposed once. Scores of up to 1024 keys are
computed into PSUM and consumed there: maximum by VectorE, exponential and sum by ScalarE. Longer prompts
carry a running maximum and sum from one key block to the next (online softmax). Keys after the diagonal are
never touched, and only the diagonal chunk is masked. With few keys, several row blocks go through each
instruction: a wave.

Legend: B = batch, S = sequence, Q = query heads, G = key/value heads, R = Q / G, D = head dimension,
chunk = 128 keys, rows = heads of a row block x queries of a tile.
"""

import nki
import nki.isa as nisa
import nki.language as nl

# Added to scores that causality forbids: far below any score, far from overflow even after scaling.
MASKED = -1e30
# Keys whose scores are in PSUM at once: two banks of 512, so that the next block can fill the other two.
KEY_BLOCK = 1024
# Bytes per partition for the resident keys and values, and for the queries of one tile.
KEY_VALUE_BYTES = 96 * 1024
QUERY_BYTES = 16 * 1024


def item_bytes(tensor):
    """Returns the bytes of one element, 2 or 4."""
    return 2 if tensor.dtype == nl.bfloat16 or tensor.dtype == nl.float16 else 4


def heads_per_block(group, queries):
    """Returns how many heads of a group share the partitions: the largest divisor of it that fits."""
    heads = 1
    for divisor in range(1, group + 1):
        if group % divisor == 0 and divisor * queries <= nl.tile_size.pmax:
            heads = divisor
    return heads


def transposes_per_bank(columns):
    """Returns how many transposed tiles of `columns` columns share one PSUM bank."""
    return max(1, nl.tile_size.psum_bank_fmax // columns)


def load_keys_and_values(k_hbm, v_hbm):
    """Returns K^T [D, g, S] and V [128, chunks, g, D] @ SBUF for k, v [S, g, D] @ HBM."""
    tokens, heads, head_dim = k_hbm.shape
    pmax = nl.tile_size.pmax
    chunks = (tokens + pmax - 1) // pmax
    keys = nl.ndarray((head_dim, heads, tokens), dtype=k_hbm.dtype, buffer=nl.sbuf)
    values = nl.ndarray((pmax, chunks, heads, head_dim), dtype=v_hbm.dtype, buffer=nl.sbuf)
    for chunk in range(chunks):
        first, end = chunk * pmax, min((chunk + 1) * pmax, tokens)
        nisa.dma_copy(dst=values[0 : end - first, chunk], src=v_hbm[first:end])
        rows = nl.ndarray((end - first, heads, head_dim), dtype=k_hbm.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=rows, src=k_hbm[first:end])
        transpose_blocks(keys[:, :, first:end], rows)
    return keys, values


def transpose_blocks(dst, data):
    """Transposes each data[:, i, :] [p, f] @ SBUF into dst[:, i, :] [f, p] @ SBUF, several per PSUM bank."""
    partitions, blocks, columns = data.shape
    per_bank = transposes_per_bank(partitions)
    for first in range(0, blocks, per_bank):
        end = min(first + per_bank, blocks)
        bank = nl.ndarray((columns, end - first, partitions), dtype=data.dtype, buffer=nl.psum)
        for i in range(first, end):
            nisa.nc_transpose(dst=bank[:, i - first, :], data=data[:, i, :], engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=dst[:, first:end, :], src=bank, engine=nisa.engine.vector)


def causal_mask(queries, heads):
    """Returns [heads x queries, queries] @ SBUF, f32: 0 where key <= query, else MASKED."""
    zeros = nl.ndarray((queries, queries), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(zeros, value=0.0)
    triangle = nl.ndarray((queries, queries), dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(
        dst=triangle,
        pattern=[[-1, queries]],
        offset=0,
        channel_multiplier=1,  # query - key
        on_true_tile=zeros,
        on_false_value=MASKED,
        cmp_op=nl.greater_equal,
    )
    if heads == 1:
        return triangle
    # One copy below the other for each head of a row block: partitions repeat through a stride-0 stationary.
    identity = nl.shared_identity_matrix(n=nl.tile_size.pmax, dtype=nl.float32)
    repeated = identity[0:queries, 0:queries].expand_dim(1).broadcast(1, heads)
    mask_psum = nl.ndarray((heads * queries, queries), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=mask_psum, stationary=repeated, moving=triangle, accumulate=False)
    mask = nl.ndarray((heads * queries, queries), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=mask, src=mask_psum, engine=nisa.engine.vector)
    return mask


def causal_masks(tokens, group):
    """Returns the mask of each query tile's diagonal chunk; whole tiles share one."""
    pmax = nl.tile_size.pmax
    masks = []
    for first_query in range(0, tokens, pmax):
        queries = min(pmax, tokens - first_query)
        if first_query == 0 or queries < pmax:
            masks.append(causal_mask(queries, heads_per_block(group, queries)))
        else:
            masks.append(masks[0])
    return masks


def compute_scores(q_blocks, key_heads, keys, first_key, end_key):
    """Returns unscaled scores [rows, wave, keys] @ PSUM.

    Args:
        q_blocks: q^T [D, wave, rows] @ SBUF.
        key_heads: for each block of the wave, its head in `keys` [D, g, S] @ SBUF.
    """
    _, wave, rows = q_blocks.shape
    bank = nl.tile_size.psum_bank_fmax
    width = end_key - first_key
    scores = nl.ndarray((rows, wave, width), dtype=nl.float32, buffer=nl.psum)
    for i in range(wave):
        for start in range(0, width, bank):
            end = min(start + bank, width)
            nisa.nc_matmul(
                dst=scores[:, i, start:end],
                stationary=q_blocks[:, i, :],
                moving=keys[:, key_heads[i], first_key + start : first_key + end],
                accumulate=False,
            )
    return scores


def add_mask(scores, mask):
    """Adds mask [rows, queries] to the last columns of each block of scores [rows, wave, keys] @ PSUM."""
    _, wave, width = scores.shape
    diagonal = scores[:, :, width - mask.shape[1] : width]
    spread = mask.expand_dim(1).broadcast(1, wave)
    nisa.tensor_tensor(dst=diagonal, data1=diagonal, data2=spread, op=nl.add, engine=nisa.engine.vector)


def exponentiate(scores, maximum, scale, dtype):
    """Returns exp(scale * (scores - maximum)) [rows, wave, keys] and its sums [rows, wave], both @ SBUF."""
    rows, wave, width = scores.shape
    bias = nl.ndarray((rows, wave), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=bias, data=maximum, op0=nl.multiply, operand0=-scale)
    weights = nl.ndarray((rows, wave, width), dtype=dtype, buffer=nl.sbuf)
    sums = nl.ndarray((rows, wave), dtype=nl.float32, buffer=nl.sbuf)
    for i in range(wave):
        nisa.activation(
            dst=weights[:, i, :],
            op=nl.exp,
            data=scores[:, i, :],
            bias=bias[:, i : i + 1],
            scale=scale,
            reduce_op=nl.add,
            reduce_res=sums[:, i : i + 1],
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )
    return weights, sums


def weigh_values(weights, key_heads, values, first_key):
    """Returns weights [rows, wave, keys] @ values, [rows, wave, D] @ PSUM, f32; keys begin at first_key."""
    rows, wave, width = weights.shape
    pmax = nl.tile_size.pmax
    first_chunk, whole = first_key // pmax, width // pmax
    tail = width - whole * pmax
    out = nl.ndarray((rows, wave, values.shape[3]), dtype=nl.float32, buffer=nl.psum)
    if whole > 0:
        whole_weights = weights[:, :, 0 : whole * pmax].reshape_dim(2, (whole, pmax))
        whole_values = values[:, first_chunk : first_chunk + whole]
        add_products(out, whole_weights, key_heads, whole_values, False)
    if tail > 0:
        tail_weights = weights[:, :, whole * pmax : width].expand_dim(2)
        tail_values = values[0:tail, first_chunk + whole : first_chunk + whole + 1]
        add_products(out, tail_weights, key_heads, tail_values, whole > 0)
    return out


def add_products(out, weights, key_heads, values, accumulate):
    """Multiplies weights [rows, wave, chunks, keys] by values [keys, chunks, g, D] into out [rows, wave, D].

    The weights are transposed a PSUM bank full at a time. The first product overwrites unless `accumulate`.
    """
    rows, wave, chunks, depth = weights.shape
    per_bank = transposes_per_bank(rows)
    for first in range(0, wave * chunks, per_bank):
        end = min(first + per_bank, wave * chunks)
        bank = nl.ndarray((depth, end - first, rows), dtype=weights.dtype, buffer=nl.psum)
        transposed = nl.ndarray((depth, end - first, rows), dtype=weights.dtype, buffer=nl.sbuf)
        for item in range(first, end):
            nisa.nc_transpose(
                dst=bank[:, item - first, :],
                data=weights[:, item // chunks, item % chunks, :],
                engine=nisa.engine.tensor,
            )
        # VectorE also takes the maxima and ScalarE the exponentials: they share the copying out of PSUM.
        if first // per_bank % 2 == 0:
            nisa.tensor_copy(dst=transposed, src=bank, engine=nisa.engine.vector)
        else:
            nisa.activation(dst=transposed, op=nl.copy, data=bank)
        for item in range(first, end):
            block, chunk = item // chunks, item % chunks
            nisa.nc_matmul(
                dst=out[:, block, :],
                stationary=transposed[:, item - first, :],
                moving=values[:, chunk, key_heads[block], :],
                accumulate=accumulate or chunk > 0,
            )


def attend(q_blocks, key_heads, keys, values, first_query, mask, scale, out_sbuf):
    """Writes the attention of one wave [rows, wave, D] to out_sbuf.

    Args:
        q_blocks: q^T [D, wave, rows] @ SBUF, the wave's row blocks.
        first_query: token of the tile's first query, a multiple of 128.
        mask: [rows, queries] for the diagonal chunk.
    """
    _, wave, rows = q_blocks.shape
    head_dim = values.shape[3]
    end_query = first_query + mask.shape[1]

    maximum, total, accumulator = None, None, None  # running state, set by the first key block
    for first_key in range(0, end_query, KEY_BLOCK):
        end_key = min(first_key + KEY_BLOCK, end_query)
        scores = compute_scores(q_blocks, key_heads, keys, first_key, end_key)
        if end_key == end_query:
            add_mask(scores, mask)
        block_maximum = nl.ndarray((rows, wave), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=block_maximum, op=nl.maximum, data=scores, axis=2)
        if first_key > 0:
            nisa.tensor_tensor(dst=block_maximum, data1=block_maximum, data2=maximum, op=nl.maximum)
        weights, sums = exponentiate(scores, block_maximum, scale, out_sbuf.dtype)
        product = weigh_values(weights, key_heads, values, first_key)
        if first_key > 0:
            rescale(total, accumulator, maximum, block_maximum, sums, product, scale)
        else:
            total, accumulator = sums, product
            if end_key < end_query:  # PSUM is needed for the next block
                accumulator = nl.ndarray(product.shape, dtype=nl.float32, buffer=nl.sbuf)
                nisa.tensor_copy(dst=accumulator, src=product, engine=nisa.engine.vector)
        maximum = block_maximum

    inverse = nl.ndarray((rows, wave), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=total)
    nisa.tensor_tensor(
        dst=out_sbuf,
        data1=accumulator,
        data2=inverse.expand_dim(2).broadcast(2, head_dim),
        op=nl.multiply,
        engine=nisa.engine.vector,
    )


def rescale(total, accumulator, maximum, new_maximum, sums, product, scale):
    """Adds one key block to the running sum [rows, 1] and accumulator [rows, 1, D] @ SBUF.

    What was summed before shrinks by exp(scale * (maximum - new_maximum)).
    """
    shrink = nl.ndarray(maximum.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=shrink, data1=maximum, data2=new_maximum, op=nl.subtract)
    nisa.activation(dst=shrink, op=nl.exp, data=shrink, scale=scale)
    nisa.scalar_tensor_tensor(
        dst=total, data=total, op0=nl.multiply, operand0=shrink, op1=nl.add, operand1=sums
    )
    nisa.scalar_tensor_tensor(
        dst=accumulator, data=accumulator, op0=nl.multiply, operand0=shrink, op1=nl.add, operand1=product
    )


def heads_resident(tokens, kv_heads, group, head_dim, element_bytes):
    """Returns for how many key/value heads keys, values and a tile's queries are held in SBUF at once."""
    pmax = nl.tile_size.pmax
    chunks = (tokens + pmax - 1) // pmax
    key_value_bytes = (tokens + chunks * head_dim) * element_bytes
    assert key_value_bytes <= KEY_VALUE_BYTES, (
        f"attention_prefill: keys and values of {tokens} tokens take {key_value_bytes} bytes per partition, "
        f"at most {KEY_VALUE_BYTES}: split the prompt"
    )
    query_bytes = group * head_dim * element_bytes
    return max(1, min(kv_heads, KEY_VALUE_BYTES // key_value_bytes, QUERY_BYTES // query_bytes))


@nki.jit
def attention_prefill(q, k, v, scale):
    """Attends from each token to itself and all before it.

    Args:
        q: [B, S, Q, D] @ HBM, f32 or bf16; Q a multiple of G, D <= 128.
        k, v: [B, S, G, D] @ HBM, dtype of q. S up to 12288 in f32 and 24576 in bf16 for D = 128.
        scale: multiplies the scores (before softmax); positive.
    Returns: [B, S, Q, D] @ HBM, dtype of q.
    Accuracy: scores, softmax and sums are f32; the weights are rounded to q's dtype before they meet v.
    """
    batch, tokens, query_heads, head_dim = q.shape
    kv_heads = k.shape[2]
    pmax = nl.tile_size.pmax
    assert query_heads % kv_heads == 0, (
        f"attention_prefill: {query_heads} query heads over {kv_heads} key heads"
    )
    assert head_dim <= pmax, f"attention_prefill: head dimension {head_dim}, at most {pmax}"
    group = query_heads // kv_heads

    out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    masks = causal_masks(tokens, group)
    resident = heads_resident(tokens, kv_heads, group, head_dim, item_bytes(q))
    for b in range(batch):
        for first_head in range(0, kv_heads, resident):
            end_head = min(first_head + resident, kv_heads)
            keys, values = load_keys_and_values(k[b, :, first_head:end_head], v[b, :, first_head:end_head])
            heads = slice(first_head * group, end_head * group)
            attend_heads(out[b, :, heads], q[b, :, heads], keys, values, masks, scale)
    return out


def attend_heads(out_hbm, q_hbm, keys, values, masks, scale):
    """Writes the attention of q [S, g x R, D] @ HBM over the resident keys and values to out_hbm."""
    tokens, query_heads, head_dim = q_hbm.shape
    group = query_heads // keys.shape[1]
    pmax = nl.tile_size.pmax
    for first_query in range(0, tokens, pmax):
        end_query = min(first_query + pmax, tokens)
        queries = end_query - first_query
        heads = heads_per_block(group, queries)
        blocks, rows = query_heads // heads, heads * queries

        # [S, blocks x heads, D] as [heads, S, blocks, D]: partitions are (head, query), free is (block, D).
        q_view = q_hbm[first_query:end_query].reshape_dim(1, (blocks, heads)).permute((2, 0, 1, 3))
        out_view = out_hbm[first_query:end_query].reshape_dim(1, (blocks, heads)).permute((2, 0, 1, 3))
        q_rows = nl.ndarray((rows, blocks, head_dim), dtype=q_hbm.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=q_rows, src=q_view)
        q_blocks = nl.ndarray((head_dim, blocks, rows), dtype=q_hbm.dtype, buffer=nl.sbuf)
        transpose_blocks(q_blocks, q_rows)

        out_rows = nl.ndarray((rows, blocks, head_dim), dtype=out_hbm.dtype, buffer=nl.sbuf)
        # Scores and products of a wave each fit one PSUM bank; a single block may take more.
        bank = nl.tile_size.psum_bank_fmax
        wave = max(1, min(bank // end_query, bank // head_dim, blocks))
        for first in range(0, blocks, wave):
            end = min(first + wave, blocks)
            key_heads = []
            for block in range(first, end):
                key_heads.append(block * heads // group)
            attend(
                q_blocks[:, first:end, :],
                key_heads,
                keys,
                values,
                first_query,
                masks[first_query // pmax],
                scale,
                out_rows[:, first:end, :],
            )
        nisa.dma_copy(dst=out_view, src=out_rows)
