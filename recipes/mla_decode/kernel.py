"""Multi-head latent attention (DeepSeek) of one new token per batch row, absorbed: keys and values stay compressed.

The cache holds one latent of R numbers and one rotated key of P for each slot, shared by all heads. Instead of expanding
them to every head's keys and values, each head's query is taken into the latent space (q_nope times its part of key_up),
attends there, and only the result is expanded (times its part of value_up). A slot is read once for all heads.

A block of the cache is loaded as it lies, slots on the partitions, and kept: TensorE transposes it for the scores, and
as it lies it is the stationary operand that the weights meet. Scores are [slots, heads], as in `attention_decode`.

Legend: B = batch, Q = heads, N, P = dimensions of a query without and with rotation, R = of the latent, E = of a head's
values, C = cache slots, block = (first slot, end slot, chunks n, first chunk), pieces = parts of R of at most 128.
"""

import nki
import nki.isa as nisa
import nki.language as nl

# By how much the limit on a slot's score falls from one slot to the next, through zero at the position.
LIMIT_STEP = 1e32
MAX_CHUNKS_PER_BLOCK = 4  # pieces of 4 KiB where R = 512 in bfloat16
# Bytes per partition: the latents of one batch row, which stay until their weights are known; a block of up-projections.
LATENT_BYTES = 80 * 1024
UP_BYTES = 16 * 1024


def item_bytes(tensor):
    """Returns the bytes of one element, 2 or 4."""
    return 2 if tensor.dtype == nl.bfloat16 or tensor.dtype == nl.float16 else 4


def ceiling(value, divisor):
    """Returns value / divisor, rounded up."""
    return (value + divisor - 1) // divisor


def cut(size):
    """Returns (number, first, end) of the parts of at most 128 that a dimension is cut into."""
    pmax = nl.tile_size.pmax
    parts = []
    for first in range(0, size, pmax):
        parts.append((first // pmax, first, min(first + pmax, size)))
    return parts


def cut_cache(slots):
    """Returns the blocks of the cache: (first slot, end slot, chunks, first chunk)."""
    size = MAX_CHUNKS_PER_BLOCK * nl.tile_size.pmax
    blocks = []
    for first in range(0, slots, size):
        end = min(first + size, slots)
        chunks = ceiling(end - first, nl.tile_size.pmax)
        blocks.append((first, end, chunks, first // nl.tile_size.pmax))
    return blocks


# ---- queries -------------------------------------------------------------------------------------------------


def load_queries(q_hbm):
    """Returns q^T [D, B x Q] @ SBUF for q [B x Q, D] @ HBM."""
    rows, head_dim = q_hbm.shape
    result = nl.ndarray((head_dim, rows), dtype=q_hbm.dtype, buffer=nl.sbuf)
    for _, first, end in cut(rows):
        q_sbuf = nl.ndarray((end - first, head_dim), dtype=q_hbm.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=q_sbuf, src=q_hbm[first:end])
        q_psum = nl.ndarray((head_dim, end - first), dtype=q_hbm.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=q_psum, data=q_sbuf, engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=result[:, first:end], src=q_psum)
    return result


def absorb(q_nope, key_up, batch):
    """Returns the queries in the latent space, [128, pieces, B, Q] @ SBUF, for q_nope [N, B, Q] @ SBUF.

    key_up: [N, Q, R] @ HBM.
    """
    rotated_dim, heads, latent_dim = key_up.shape
    pieces = cut(latent_dim)
    per_block = max(1, UP_BYTES // (latent_dim * item_bytes(key_up)))
    per_bank = max(1, nl.tile_size.psum_bank_fmax // (len(pieces) * batch))
    shape = (min(latent_dim, nl.tile_size.pmax), len(pieces), batch, heads)
    latent_q = nl.ndarray(shape, dtype=q_nope.dtype, buffer=nl.sbuf)
    for first_of_block in range(0, heads, per_block):
        end_of_block = min(first_of_block + per_block, heads)
        up = nl.ndarray(
            (rotated_dim, end_of_block - first_of_block, latent_dim), dtype=key_up.dtype, buffer=nl.sbuf
        )
        nisa.dma_copy(dst=up, src=key_up[:, first_of_block:end_of_block])
        for first in range(first_of_block, end_of_block, per_bank):
            end = min(first + per_bank, end_of_block)
            bank = nl.ndarray((shape[0], len(pieces), end - first, batch), dtype=nl.float32, buffer=nl.psum)
            for piece, start, stop in pieces:
                for head in range(first, end):
                    nisa.nc_matmul(
                        dst=bank[0 : stop - start, piece, head - first, :],
                        stationary=up[:, head - first_of_block, start:stop],
                        moving=q_nope[:, :, head],
                        accumulate=False,
                    )
                nisa.tensor_copy(
                    dst=latent_q[0 : stop - start, piece, :, first:end],
                    src=bank[0 : stop - start, piece].permute((0, 2, 1)),
                )
    return latent_q


# ---- scores --------------------------------------------------------------------------------------------------


def slot_limits(positions_hbm, blocks):
    """Returns limits for scores, [128, chunks, B] @ SBUF: huge up to the position, hugely negative after."""
    batch = positions_hbm.shape[0]
    pmax = nl.tile_size.pmax
    chunks = blocks[-1][3] + blocks[-1][2]
    position = nl.ndarray((pmax, batch), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=position, src=positions_hbm.reshape((1, batch)).broadcast(0, pmax))
    # Half a slot beyond the position is where the limit changes its sign.
    nisa.tensor_scalar(
        dst=position, data=position, op0=nl.add, operand0=0.5, op1=nl.multiply, operand1=LIMIT_STEP
    )
    slot = nl.ndarray((pmax, chunks), dtype=nl.float32, buffer=nl.sbuf)
    for first_slot, _, count, first_chunk in blocks:
        nisa.iota(
            dst=slot[:, first_chunk : first_chunk + count],
            pattern=[[1, count]],
            offset=first_slot,
            channel_multiplier=count,
        )
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


def load_block(cache_hbm, block):
    """Returns [128, chunks, width] @ SBUF of cache [C, width] @ HBM: a partition holds neighbouring slots.

    Slots that do not exist are zero.
    """
    first_slot, end_slot, chunks, _ = block
    pmax, width = nl.tile_size.pmax, cache_hbm.shape[1]
    result = nl.ndarray((pmax, chunks, width), dtype=cache_hbm.dtype, buffer=nl.sbuf)
    whole = (end_slot - first_slot) // chunks  # partitions whose slots all exist
    rest = end_slot - first_slot - whole * chunks
    if whole < pmax:
        nisa.memset(result, value=0.0, engine=nisa.engine.gpsimd)
    if whole > 0:
        rows = cache_hbm[first_slot : first_slot + whole * chunks].reshape_dim(0, (whole, chunks))
        nisa.dma_copy(dst=result[0:whole], src=rows)
    if rest > 0:
        rows = cache_hbm[end_slot - rest : end_slot].expand_dim(0)
        nisa.dma_copy(dst=result[whole : whole + 1, 0:rest], src=rows)
    return result


def transpose_chunk(chunk_sbuf):
    """Returns [128, pieces, 128] @ SBUF for a chunk [128 slots, width] @ SBUF: its columns on the partitions."""
    pmax, width = chunk_sbuf.shape
    pieces = cut(width)
    result = nl.ndarray((min(width, pmax), len(pieces), pmax), dtype=chunk_sbuf.dtype, buffer=nl.sbuf)
    whole = width // pmax
    per_bank = nl.tile_size.psum_bank_fmax_bytes // (pmax * item_bytes(chunk_sbuf))
    for first in range(0, whole, per_bank):
        end = min(first + per_bank, whole)
        bank = nl.ndarray((pmax, end - first, pmax), dtype=chunk_sbuf.dtype, buffer=nl.psum)
        for piece in range(first, end):
            nisa.nc_transpose(
                dst=bank[:, piece - first, :],
                data=chunk_sbuf[:, piece * pmax : (piece + 1) * pmax],
                engine=nisa.engine.tensor,
            )
        nisa.tensor_copy(dst=result[:, first:end, :], src=bank)
    if whole * pmax < width:
        bank = nl.ndarray((width - whole * pmax, pmax), dtype=chunk_sbuf.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=bank, data=chunk_sbuf[:, whole * pmax : width], engine=nisa.engine.tensor)
        nisa.tensor_copy(dst=result[0 : width - whole * pmax, whole, :], src=bank)
    return result


def score_block(dst, latents, rope_keys, latent_q, q_rope, limit, scale):
    """Writes masked, scaled scores dst [128, chunks, Q] @ SBUF of a block.

    Args:
        latents, rope_keys: [128, chunks, R or P] @ SBUF.
        latent_q, q_rope: [128, pieces, Q] and [P, Q] @ SBUF.
        limit: [128, chunks, 1] @ SBUF.
    """
    _, chunks, heads = dst.shape
    latent_dim, rope_dim = latents.shape[2], rope_keys.shape[2]
    per_bank = nl.tile_size.psum_bank_fmax // heads
    for first in range(0, chunks, per_bank):
        end = min(first + per_bank, chunks)
        scores = nl.ndarray((nl.tile_size.pmax, end - first, heads), dtype=nl.float32, buffer=nl.psum)
        for chunk in range(first, end):
            transposed = transpose_chunk(latents[:, chunk, :])
            rotated = transpose_chunk(rope_keys[:, chunk, :])
            for piece, start, stop in cut(latent_dim):
                nisa.nc_matmul(
                    dst=scores[:, chunk - first, :],
                    stationary=transposed[0 : stop - start, piece, :],
                    moving=latent_q[0 : stop - start, piece, :],
                    accumulate=piece > 0,
                )
            nisa.nc_matmul(
                dst=scores[:, chunk - first, :],
                stationary=rotated[0:rope_dim, 0, :],
                moving=q_rope,
                accumulate=True,
            )
        nisa.scalar_tensor_tensor(
            dst=dst[:, first:end, :],
            data=scores,
            op0=nl.multiply,
            operand0=scale,
            op1=nl.minimum,
            operand1=limit[:, first:end, :].broadcast(2, heads),
        )


# ---- weights and values --------------------------------------------------------------------------------------


def reduce_chunks(data, op):
    """Returns [128, Q] f32 @ SBUF: [128, chunks, Q] reduced over its chunks."""
    partitions, chunks, heads = data.shape
    result = nl.ndarray((partitions, heads), dtype=nl.float32, buffer=nl.sbuf)
    if chunks == 1:
        nisa.tensor_copy(dst=result, src=data[:, 0, :], engine=nisa.engine.vector)
    else:
        nisa.tensor_reduce(dst=result, op=op, data=data.permute((0, 2, 1)), axis=2)
    return result


def exponentiate(scores, identity, dtype):
    """Returns exp(scores - maximum over slots) [128, chunks, Q] and 1 / its sum on each partition [128, Q], @ SBUF."""
    pmax, chunks, heads = scores.shape
    maxima_psum = nl.ndarray((heads, pmax), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=maxima_psum, data=reduce_chunks(scores, nl.maximum), engine=nisa.engine.tensor)
    maximum = nl.ndarray((heads, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=maximum, op=nl.maximum, data=maxima_psum, axis=1)
    spread_psum = nl.ndarray((pmax, heads), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=spread_psum,
        stationary=maximum.broadcast(1, pmax),
        moving=identity[0:heads, 0:heads],
        accumulate=False,
    )
    nisa.tensor_tensor(
        dst=scores, data1=scores, data2=spread_psum.expand_dim(1).broadcast(1, chunks), op=nl.subtract
    )
    weights = nl.ndarray((pmax, chunks, heads), dtype=dtype, buffer=nl.sbuf)
    nisa.activation(dst=weights, op=nl.exp, data=scores)
    ones = nl.ndarray((pmax, pmax), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(ones, value=1.0)
    total = nl.ndarray((pmax, heads), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=total, stationary=ones, moving=reduce_chunks(weights, nl.add), accumulate=False)
    inverse = nl.ndarray((pmax, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=total)
    return weights, inverse


def weigh_latents(dst, weights, inverse, latents):
    """Writes each head's mean latent, transposed, to dst [128, pieces, Q] @ SBUF.

    latents: [128, chunks, R] @ SBUF for each block.
    """
    heads = dst.shape[2]
    for piece, start, stop in cut(latents[0].shape[2]):
        mean = nl.ndarray((stop - start, heads), dtype=nl.float32, buffer=nl.psum)
        chunk = 0
        for block in latents:
            for own in range(block.shape[1]):
                nisa.nc_matmul(
                    dst=mean,
                    stationary=block[:, own, start:stop],
                    moving=weights[:, chunk, :],
                    accumulate=chunk > 0,
                )
                chunk += 1
        nisa.tensor_tensor(
            dst=dst[0 : stop - start, piece, :],
            data1=mean,
            data2=inverse[0 : stop - start, :],
            op=nl.multiply,
        )


def expand(out_hbm, means, value_up):
    """Writes means [128, pieces, B, Q] @ SBUF times value_up [R, Q, E] @ HBM to out_hbm [B, Q, E]."""
    latent_dim, heads, value_dim = value_up.shape
    batch, pieces = means.shape[2], cut(latent_dim)
    per_block = max(1, UP_BYTES // (len(pieces) * value_dim * item_bytes(value_up)))
    per_bank = max(1, nl.tile_size.psum_bank_fmax // value_dim)
    for first_of_block in range(0, heads, per_block):
        end_of_block = min(first_of_block + per_block, heads)
        shape = (means.shape[0], len(pieces), end_of_block - first_of_block, value_dim)
        up = nl.ndarray(shape, dtype=value_up.dtype, buffer=nl.sbuf)
        for piece, start, stop in pieces:
            nisa.dma_copy(
                dst=up[0 : stop - start, piece], src=value_up[start:stop, first_of_block:end_of_block]
            )
        out_sbuf = nl.ndarray((batch, shape[2], value_dim), dtype=out_hbm.dtype, buffer=nl.sbuf)
        for first in range(first_of_block, end_of_block, per_bank):
            end = min(first + per_bank, end_of_block)
            bank = nl.ndarray((batch, end - first, value_dim), dtype=nl.float32, buffer=nl.psum)
            for head in range(first, end):
                for piece, start, stop in pieces:
                    nisa.nc_matmul(
                        dst=bank[:, head - first, :],
                        stationary=means[0 : stop - start, piece, :, head],
                        moving=up[0 : stop - start, piece, head - first_of_block, :],
                        accumulate=piece > 0,
                    )
            nisa.tensor_copy(dst=out_sbuf[:, first - first_of_block : end - first_of_block], src=bank)
        nisa.dma_copy(dst=out_hbm[:, first_of_block:end_of_block], src=out_sbuf)


@nki.jit
def mla_decode(q_nope, q_rope, latent_cache, rope_cache, key_up, value_up, positions, scale):
    """Attends from one token per batch row to cache slots 0..positions[b], in the latent space.

    Args:
        q_nope: [B, Q, N] @ HBM, f32 or bf16; B, Q and N up to 128.
        q_rope: [B, Q, P] @ HBM, dtype of q_nope; P up to 128.
        latent_cache: [B, C, R] @ HBM, dtype of q_nope. C x R up to 80 KiB per partition: 10240 slots of 512 in bf16.
        rope_cache: [B, C, P] @ HBM, dtype of q_nope.
        key_up: [N, Q, R] @ HBM, dtype of q_nope: a head's key without rotation is its part times the latent.
        value_up: [R, Q, E] @ HBM, dtype of q_nope; E up to 512.
        positions: [B] @ HBM, int32, each in 0..C-1. Slots beyond may hold any finite values.
        scale: multiplies the scores (before softmax); positive.
    Returns: [B, Q, E] @ HBM, dtype of q_nope.
    Accuracy: scores, softmax and sums are f32; absorbed queries, weights and mean latents are rounded to q's dtype.
    """
    batch, heads, nope_dim = q_nope.shape
    slots, latent_dim = latent_cache.shape[1], latent_cache.shape[2]
    rope_dim, value_dim = q_rope.shape[2], value_up.shape[2]
    pmax = nl.tile_size.pmax
    widest = max(batch, heads, nope_dim, rope_dim)
    assert widest <= pmax, (
        f"mla_decode: B {batch}, Q {heads}, N {nope_dim}, P {rope_dim}: each at most {pmax}"
    )
    assert value_dim <= nl.tile_size.psum_bank_fmax, f"mla_decode: values of {value_dim} numbers, at most 512"
    latent_bytes = ceiling(slots, pmax) * latent_dim * item_bytes(latent_cache)
    assert latent_bytes <= LATENT_BYTES, (
        f"mla_decode: latents of {slots} slots take {latent_bytes} bytes per partition, at most {LATENT_BYTES}"
    )

    out = nl.ndarray((batch, heads, value_dim), dtype=q_nope.dtype, buffer=nl.shared_hbm)
    identity = nl.shared_identity_matrix(n=pmax, dtype=nl.float32)
    blocks = cut_cache(slots)
    limit = slot_limits(positions, blocks)
    nope_rows = load_queries(q_nope.reshape((batch * heads, nope_dim)))
    rope_rows = load_queries(q_rope.reshape((batch * heads, rope_dim)))
    latent_q = absorb(nope_rows.reshape_dim(1, (batch, heads)), key_up, batch)
    means = nl.ndarray(latent_q.shape, dtype=q_nope.dtype, buffer=nl.sbuf)
    for b in range(batch):
        scores = nl.ndarray((pmax, limit.shape[1], heads), dtype=nl.float32, buffer=nl.sbuf)
        latents = []
        for block in blocks:
            _, _, chunks, first_chunk = block
            own = slice(first_chunk, first_chunk + chunks)
            latents.append(load_block(latent_cache[b], block))
            score_block(
                scores[:, own, :],
                latents[-1],
                load_block(rope_cache[b], block),
                latent_q[:, :, b, :],
                rope_rows[:, b * heads : (b + 1) * heads],
                limit[:, own, b : b + 1],
                scale,
            )
        weights, inverse = exponentiate(scores, identity, q_nope.dtype)
        weigh_latents(means[:, :, b, :], weights, inverse, latents)
    expand(out, means, value_up)
    return out
