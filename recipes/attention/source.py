"""Attention over sequences in Triton: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. The algorithm is FlashAttention-2 (Dao, 2023); its Triton form was learnt
from Triton's fused attention tutorial (MIT) and from flash-attention (BSD-3-Clause), the soft cap and the sinks from
vLLM's unified Triton attention (Apache-2.0); no code was taken.
License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl

BLOCK_QUERIES = 64
BLOCK_KEYS = 64
SMALLEST_DOT = 16  # tl.dot wants at least this many columns


@triton.jit
def tanh(x):
    """tanh by the exponential of a number that is never positive."""
    shrunk = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1 - shrunk) / (1 + shrunk)


@triton.jit
def attention_kernel(
    q_pointer, k_pointer, v_pointer, bias_pointer, position_bias_pointer, sinks_pointer, out_pointer,
    scale, softcap, before, after, chunk_size, queries, keys, query_heads, key_heads, head_dim, value_dim,
    bias_batch, bias_head, bias_query, position_batch, position_head, position_query,
    HAS_BIAS: tl.constexpr, HAS_POSITION_BIAS: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """One program per (query block, batch row and query head); only keys that some query of the block sees are walked.

    before, after, chunk_size: numbers that no key reaches where there is no such rule. Strides of biases are 0 where
    an axis is spread.
    """
    first_query = tl.program_id(0) * BLOCK_QUERIES
    batch = tl.program_id(1) // query_heads
    query_head = tl.program_id(1) % query_heads
    key_head = query_head // (query_heads // key_heads)

    query = first_query + tl.arange(0, BLOCK_QUERIES)
    column = tl.arange(0, BLOCK_DIM)
    value_column = tl.arange(0, BLOCK_VALUE)
    q_rows = (batch * queries + query[:, None]) * query_heads + query_head
    q_inside = (query[:, None] < queries) & (column[None, :] < head_dim)
    q = tl.load(q_pointer + q_rows * head_dim + column[None, :], mask=q_inside, other=0.0)

    maximum = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    if HAS_SINKS:
        maximum = tl.full([BLOCK_QUERIES], 0.0, tl.float32) + tl.load(sinks_pointer + query_head).to(
            tl.float32
        )
        total += 1.0
    accumulator = tl.zeros([BLOCK_QUERIES, BLOCK_VALUE], tl.float32)
    last_query = min(first_query + BLOCK_QUERIES, queries) - 1
    start = (
        max(max(first_query - before, 0), first_query // chunk_size * chunk_size) // BLOCK_KEYS * BLOCK_KEYS
    )
    end = min(min(last_query + after, (last_query // chunk_size + 1) * chunk_size - 1) + 1, keys)
    for first_key in range(start, end, BLOCK_KEYS):
        key = first_key + tl.arange(0, BLOCK_KEYS)
        kv_rows = (batch * keys + key[:, None]) * key_heads + key_head
        k_inside = (key[:, None] < keys) & (column[None, :] < head_dim)
        k = tl.load(k_pointer + kv_rows * head_dim + column[None, :], mask=k_inside, other=0.0)
        v_inside = (key[:, None] < keys) & (value_column[None, :] < value_dim)
        v = tl.load(v_pointer + kv_rows * value_dim + value_column[None, :], mask=v_inside, other=0.0)

        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if HAS_SOFTCAP:
            scores = softcap * tanh(scores / softcap)
        inside = (query[:, None] < queries) & (key[None, :] < keys)
        if HAS_BIAS:
            offsets = batch * bias_batch + query_head * bias_head + query[:, None] * bias_query + key[None, :]
            scores += tl.load(bias_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
        if HAS_POSITION_BIAS:
            offsets = batch * position_batch + query_head * position_head
            offsets += query[:, None] * position_query + key[None, :]
            scores += tl.load(position_bias_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
        distance = query[:, None] - key[None, :]
        seen = (key[None, :] < keys) & (distance <= before) & (-distance <= after)
        seen = seen & (query[:, None] // chunk_size == key[None, :] // chunk_size)
        scores = tl.where(seen, scores, float("-inf"))

        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        # A query that has seen no key yet keeps -inf: its difference to itself would be no number.
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        shrink = tl.exp(maximum - shift)
        weights = tl.exp(scores - shift[:, None])
        total = total * shrink + tl.sum(weights, 1)
        product = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        accumulator = accumulator * shrink[:, None] + product
        maximum = new_maximum
    total = tl.where(total == 0.0, 1.0, total)  # of queries beyond the last, which see nothing
    out_inside = (query[:, None] < queries) & (value_column[None, :] < value_dim)
    out_offsets = q_rows * value_dim + value_column[None, :]
    tl.store(out_pointer + out_offsets, accumulator / total[:, None], mask=out_inside)


def spread_strides(bias: torch.Tensor | None) -> tuple[int, int, int]:
    """Strides of a bias [B or 1, Q or 1, S or 1, C] along its first three axes, 0 where it is spread."""
    if bias is None:
        return (0, 0, 0)
    return tuple(0 if size == 1 else stride for size, stride in zip(bias.shape[:3], bias.stride()[:3]))


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    scale: float = 1.0,
    is_causal: bool = True,
    window_before: int | None = None,
    window_after: int | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Returns [B, S, Q, E] for q [B, S, Q, D], k [B, C, G, D] and v [B, C, G, E], all contiguous."""
    batch, queries, query_heads, head_dim = q.shape
    keys, key_heads, value_dim = v.shape[1:]
    longest = max(queries, keys)
    after = 0 if is_causal else longest if window_after is None else window_after
    out = torch.empty(batch, queries, query_heads, value_dim, dtype=q.dtype, device=q.device)
    attention_kernel[(triton.cdiv(queries, BLOCK_QUERIES), batch * query_heads)](
        q, k, v, q if bias is None else bias, q if position_bias is None else position_bias,
        q if sinks is None else sinks, out, scale, softcap or 1.0,
        longest if window_before is None else window_before, after, longest if chunk_size is None else chunk_size,
        queries, keys, query_heads, key_heads, head_dim, value_dim,
        *spread_strides(bias), *spread_strides(position_bias),
        HAS_BIAS=bias is not None,
        HAS_POSITION_BIAS=position_bias is not None,
        HAS_SINKS=sinks is not None,
        HAS_SOFTCAP=softcap is not None,
        BLOCK_QUERIES=BLOCK_QUERIES,
        BLOCK_KEYS=BLOCK_KEYS,
        BLOCK_DIM=max(SMALLEST_DOT, triton.next_power_of_2(head_dim)),
        BLOCK_VALUE=max(SMALLEST_DOT, triton.next_power_of_2(value_dim)),
    )  # fmt: skip
    return out
