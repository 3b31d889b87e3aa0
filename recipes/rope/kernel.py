"""Rotary position embedding of queries and keys: out = x * cos + rotate_half(x) * sin.

Tokens lie on the partitions and all heads of a token in the free dimension, so one instruction serves every
query and key head at once, with cos and sin read through stride-0 views. When there are fewer tokens than
partitions (decoding), the heads of a token are spread over several partitions.

Legend: T = tokens (batch x sequence), Q = query heads, G = key heads, D = head dimension.
"""

import math

import nki
import nki.isa as nisa
import nki.language as nl

# Elements of one row (heads x D) that are worked on at once: three float32 tiles of 24 KiB per partition, so
# that two row tiles can be in flight.
ROW_ELEMENTS = 6144


def partitions_per_token(tokens, query_heads, key_heads):
    """Returns over how many partitions the heads of a token are spread: a divisor of both head counts."""
    common = math.gcd(query_heads, key_heads)
    best = 1
    for split in range(1, common + 1):
        if common % split == 0 and tokens * split <= nl.tile_size.pmax:
            best = split
    return best


def rotate(x_sbuf, cos_sbuf, sin_sbuf):
    """Rotates [rows, heads, D] in place. The first half of `sin_sbuf` [rows, D] is already negated."""
    rows, heads, head_dim = x_sbuf.shape
    half = head_dim // 2
    cos_view = cos_sbuf.expand_dim(1).broadcast(1, heads)
    sin_view = sin_sbuf.expand_dim(1).broadcast(1, heads)

    direct = nl.ndarray((rows, heads, head_dim), dtype=nl.float32, buffer=nl.sbuf)
    rotated = nl.ndarray((rows, heads, head_dim), dtype=nl.float32, buffer=nl.sbuf)
    # The two halves of the rotated product go to different engines; on gen3 they run side by side.
    nisa.tensor_tensor(
        dst=rotated[:, :, 0:half],
        data1=x_sbuf[:, :, half:head_dim],
        data2=sin_view[:, :, 0:half],
        op=nl.multiply,
        engine=nisa.engine.gpsimd,
    )
    nisa.tensor_tensor(
        dst=rotated[:, :, half:head_dim],
        data1=x_sbuf[:, :, 0:half],
        data2=sin_view[:, :, half:head_dim],
        op=nl.multiply,
        engine=nisa.engine.vector,
    )
    nisa.tensor_tensor(dst=direct, data1=x_sbuf, data2=cos_view, op=nl.multiply, engine=nisa.engine.vector)
    # The only rounding to the model's dtype is this last write.
    nisa.tensor_tensor(dst=x_sbuf, data1=direct, data2=rotated, op=nl.add, engine=nisa.engine.vector)


@nki.jit
def rope(q, k, cos, sin):
    """Rotates queries and keys by their positions (half rotation over the whole head).

    Args:
        q: [B, S, Q, D] @ HBM, f32 or bf16; D even.
        k: [B, S, G, D] @ HBM, dtype of q.
        cos, sin: [B, S, D] @ HBM, f32 or bf16; their two halves may differ.
    Returns: q and k rotated, shapes and dtypes of the inputs. Products and sum are f32, rounded once.
    """
    batch, sequence, query_heads, head_dim = q.shape
    key_heads = k.shape[2]
    tokens = batch * sequence
    assert head_dim % 2 == 0, f"rope: head dimension {head_dim} is odd, half rotation needs an even one"
    assert cos.shape[2] == head_dim, (
        f"rope: cos covers {cos.shape[2]} of {head_dim} dimensions: must cover all"
    )

    q_out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    k_out = nl.ndarray(k.shape, dtype=k.dtype, buffer=nl.shared_hbm)

    # A row is one partition: `split` rows per token, each with as many query heads and as many key heads.
    split = partitions_per_token(tokens, query_heads, key_heads)
    q_heads, k_heads = query_heads // split, key_heads // split
    q_rows = q.reshape((tokens * split, q_heads, head_dim))
    k_rows = k.reshape((tokens * split, k_heads, head_dim))
    q_out_rows = q_out.reshape((tokens * split, q_heads, head_dim))
    k_out_rows = k_out.reshape((tokens * split, k_heads, head_dim))
    cos_tokens = cos.reshape((tokens, 1, head_dim)).broadcast(1, split)
    sin_tokens = sin.reshape((tokens, 1, head_dim)).broadcast(1, split)

    tokens_per_tile = nl.tile_size.pmax // split
    heads_per_block = max(1, ROW_ELEMENTS // head_dim)
    heads = q_heads + k_heads  # query heads first, then key heads, side by side in one tile

    for first_token in range(0, tokens, tokens_per_tile):
        end_token = min(first_token + tokens_per_tile, tokens)
        first, end = first_token * split, end_token * split
        rows = end - first

        cos_sbuf = nl.ndarray((rows, head_dim), dtype=cos.dtype, buffer=nl.sbuf)
        sin_sbuf = nl.ndarray((rows, head_dim), dtype=sin.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=cos_sbuf, src=cos_tokens[first_token:end_token])
        nisa.dma_copy(dst=sin_sbuf, src=sin_tokens[first_token:end_token])
        negative_half = sin_sbuf[:, 0 : head_dim // 2]
        nisa.tensor_scalar(dst=negative_half, data=negative_half, op0=nl.multiply, operand0=-1.0)

        for first_head in range(0, heads, heads_per_block):
            end_head = min(first_head + heads_per_block, heads)
            queries = max(0, min(end_head, q_heads) - first_head)
            q_part = slice(first_head, first_head + queries)
            k_part = slice(max(0, first_head - q_heads), end_head - q_heads)
            x_sbuf = nl.ndarray((rows, end_head - first_head, head_dim), dtype=q.dtype, buffer=nl.sbuf)

            if queries > 0:
                nisa.dma_copy(dst=x_sbuf[:, 0:queries], src=q_rows[first:end, q_part])
            if end_head > q_heads:
                nisa.dma_copy(dst=x_sbuf[:, queries:], src=k_rows[first:end, k_part])
            rotate(x_sbuf, cos_sbuf, sin_sbuf)
            if queries > 0:
                nisa.dma_copy(dst=q_out_rows[first:end, q_part], src=x_sbuf[:, 0:queries])
            if end_head > q_heads:
                nisa.dma_copy(dst=k_out_rows[first:end, k_part], src=x_sbuf[:, queries:])
    return q_out, k_out
