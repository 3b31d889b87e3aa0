"""Rotary position embedding of queries and keys: each pair of a head is turned by the angle of its token.

Tokens lie on the partitions and all heads of a token in the free dimension, so one instruction serves many query and
key heads at once, with cos and sin read through stride-0 views. When there are fewer tokens than partitions
(decoding), the heads of a token are spread over several partitions.

Legend: T = tokens (batch x sequence), Q = query heads, G = key heads, D = head dimension, R = width of the tables,
rows = partitions of a tile.
"""

import math

import nki
import nki.isa as nisa
import nki.language as nl

ROW_ELEMENTS = 6144  # of one row (heads x D) per DMA, so that two row tiles can be in flight
STEP_ELEMENTS = 1024  # of one row (heads x R) per instruction: two banks of PSUM
TABLE_ELEMENTS = 512  # of cos or sin that one bank of PSUM holds
# On gen3 GpSimdE works beside VectorE. It takes 2 cycles of 1.2 GHz an element where VectorE takes 1 of 0.96 GHz:
# of eight steps it gets these.
GPSIMD_STEPS = (1, 4, 6)


def partitions_per_token(tokens, query_heads, key_heads):
    """Returns over how many partitions the heads of a token are spread: a divisor of both head counts."""
    common = math.gcd(query_heads, key_heads)
    best = 1
    for split in range(1, common + 1):
        if common % split == 0 and tokens * split <= nl.tile_size.pmax:
            best = split
    return best


def halves_of(tile, width, interleaved):
    """Returns views of the first and the second members of the pairs in the first `width` elements of each head."""
    if interleaved:
        return tile[:, :, 0:width:2], tile[:, :, 1:width:2]
    return tile[:, :, 0 : width // 2], tile[:, :, width // 2 : width]


def load_tables(cos_hbm, sin_hbm):
    """Returns cos and sin [rows, R] with the first half of sin negated.

    gen2 reads two tiles twice as fast when one is in PSUM; gen3 does not care, and GpSimdE cannot look into PSUM.
    """
    rows, width = cos_hbm.shape[0] * cos_hbm.shape[1], cos_hbm.shape[2]
    cos_sbuf = nl.ndarray((rows, width), dtype=cos_hbm.dtype, buffer=nl.sbuf)
    sin_sbuf = nl.ndarray((rows, width), dtype=sin_hbm.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=cos_sbuf, src=cos_hbm)
    nisa.dma_copy(dst=sin_sbuf, src=sin_hbm)
    negative_half = sin_sbuf[:, 0 : width // 2]
    nisa.tensor_scalar(
        dst=negative_half, data=negative_half, op0=nl.multiply, operand0=-1.0, engine=nisa.engine.vector
    )
    if not tables_in_psum(width):
        return cos_sbuf, sin_sbuf
    cos_psum = nl.ndarray((rows, width), dtype=nl.float32, buffer=nl.psum)
    sin_psum = nl.ndarray((rows, width), dtype=nl.float32, buffer=nl.psum)
    nisa.tensor_copy(dst=cos_psum, src=cos_sbuf, engine=nisa.engine.vector)
    nisa.tensor_copy(dst=sin_psum, src=sin_sbuf, engine=nisa.engine.vector)
    return cos_psum, sin_psum


def tables_in_psum(width):
    """Returns whether cos and sin are kept in PSUM."""
    return nisa.get_nc_version() == nisa.nc_version.gen2 and width <= TABLE_ELEMENTS


def rotate(x_sbuf, cos_tile, sin_tile, interleaved_in, interleaved_out, engine):
    """Rotates the first R elements of each head of x [rows, heads, D] in place: x * cos + swapped(x) * sin."""
    rows, heads, _ = x_sbuf.shape
    width = cos_tile.shape[1]
    half = width // 2
    direct = nl.ndarray((rows, heads, width), dtype=nl.float32, buffer=nl.sbuf)
    in_psum = tables_in_psum(width) and heads * width <= STEP_ELEMENTS
    buffer = nl.psum if in_psum else nl.sbuf
    swapped = nl.ndarray((rows, heads, width), dtype=nl.float32, buffer=buffer)
    first_in, second_in = halves_of(x_sbuf, width, interleaved_in)
    first_direct, second_direct = halves_of(direct, width, interleaved_out)
    first_swapped, second_swapped = halves_of(swapped, width, interleaved_out)
    cos_view = cos_tile.expand_dim(1).broadcast(1, heads)
    sin_view = sin_tile.expand_dim(1).broadcast(1, heads)
    first_cos, second_cos = cos_view[:, :, 0:half], cos_view[:, :, half:width]
    products = ((direct, x_sbuf[:, :, 0:width], cos_view),)
    if interleaved_in or interleaved_out:
        products = ((first_direct, first_in, first_cos), (second_direct, second_in, second_cos))
    for dst, values, table in products:
        nisa.tensor_tensor(dst=dst, data1=values, data2=table, op=nl.multiply, engine=engine)
    products = (
        (first_swapped, second_in, sin_view[:, :, 0:half]),
        (second_swapped, first_in, sin_view[:, :, half:width]),
    )
    for dst, values, table in products:
        nisa.tensor_tensor(dst=dst, data1=values, data2=table, op=nl.multiply, engine=engine)
    # The only rounding to the model's dtype is this last write.
    nisa.tensor_tensor(dst=x_sbuf[:, :, 0:width], data1=direct, data2=swapped, op=nl.add, engine=engine)


@nki.jit
def rope(q, k, cos, sin, pairs="half"):
    """Rotates queries and keys by their positions.

    Args:
        q: [B, S, Q, D] @ HBM, f32 or bf16.
        k: [B, S, G, D] @ HBM, dtype of q.
        cos, sin: [B, S, R] @ HBM, f32 or bf16; R even, at most D. The first half is for the first members of the
            pairs, the second half for the second members. Elements beyond R pass unchanged.
        pairs: which elements of a head are a pair: "half" (i and i + R / 2), "interleaved" (2 i and 2 i + 1), or
            "interleaved to half": they come interleaved and leave in halves.
    Returns: q and k rotated, shapes and dtypes of the inputs. Products and sum are f32, rounded once.
    """
    batch, sequence, query_heads, head_dim = q.shape
    key_heads = k.shape[2]
    tokens = batch * sequence
    width = cos.shape[2]
    assert width % 2 == 0, f"rope: tables of width {width} hold no pairs, it must be even"
    assert width <= head_dim, f"rope: cos covers {width} of {head_dim} dimensions: at most all"
    interleaved_in, interleaved_out = pairs != "half", pairs == "interleaved"

    q_out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    k_out = nl.ndarray(k.shape, dtype=k.dtype, buffer=nl.shared_hbm)

    # A row is one partition: `split` rows per token, each with as many query heads and as many key heads.
    split = partitions_per_token(tokens, query_heads, key_heads)
    q_heads, k_heads = query_heads // split, key_heads // split
    q_rows = q.reshape((tokens * split, q_heads, head_dim))
    k_rows = k.reshape((tokens * split, k_heads, head_dim))
    q_out_rows = q_out.reshape((tokens * split, q_heads, head_dim))
    k_out_rows = k_out.reshape((tokens * split, k_heads, head_dim))
    cos_tokens = cos.reshape((tokens, 1, width)).broadcast(1, split)
    sin_tokens = sin.reshape((tokens, 1, width)).broadcast(1, split)

    tokens_per_tile = nl.tile_size.pmax // split
    heads_per_block = max(1, ROW_ELEMENTS // head_dim)
    heads_per_step = max(1, STEP_ELEMENTS // width)
    heads = q_heads + k_heads  # query heads first, then key heads, side by side in one tile
    step = 0

    for first_token in range(0, tokens, tokens_per_tile):
        end_token = min(first_token + tokens_per_tile, tokens)
        first, end = first_token * split, end_token * split
        cos_tile, sin_tile = load_tables(cos_tokens[first_token:end_token], sin_tokens[first_token:end_token])
        for first_head in range(0, heads, heads_per_block):
            end_head = min(first_head + heads_per_block, heads)
            queries = max(0, min(end_head, q_heads) - first_head)
            q_part = slice(first_head, first_head + queries)
            k_part = slice(max(0, first_head - q_heads), end_head - q_heads)
            x_sbuf = nl.ndarray((end - first, end_head - first_head, head_dim), dtype=q.dtype, buffer=nl.sbuf)

            if queries > 0:
                nisa.dma_copy(dst=x_sbuf[:, 0:queries], src=q_rows[first:end, q_part])
            if end_head > q_heads:
                nisa.dma_copy(dst=x_sbuf[:, queries:], src=k_rows[first:end, k_part])
            for start in range(0, end_head - first_head, heads_per_step):
                stop = min(start + heads_per_step, end_head - first_head)
                beside = not tables_in_psum(width) and step % 8 in GPSIMD_STEPS
                engine = nisa.engine.gpsimd if beside else nisa.engine.vector
                rotate(x_sbuf[:, start:stop], cos_tile, sin_tile, interleaved_in, interleaved_out, engine)
                step += 1
            if queries > 0:
                nisa.dma_copy(dst=q_out_rows[first:end, q_part], src=x_sbuf[:, 0:queries])
            if end_head > q_heads:
                nisa.dma_copy(dst=k_out_rows[first:end, k_part], src=x_sbuf[:, queries:])
    return q_out, k_out
