"""Attention of one token over a key/value cache in Triton: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. Serving the query heads of a group from one read of the cache was learnt
from vLLM's Triton decode attention (Apache-2.0), the online softmax from FlashAttention (BSD-3-Clause); no
code was taken. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl

BLOCK_SLOTS = 64
SMALLEST_DOT = 16  # tl.dot wants at least this many rows and columns


@triton.jit
def tanh(x):
    """tanh by the exponential of a number that is never positive."""
    shrunk = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1 - shrunk) / (1 + shrunk)


@triton.jit
def attention_decode_kernel(
    q_pointer, k_pointer, v_pointer, positions_pointer, bias_pointer, position_bias_pointer, sinks_pointer,
    out_pointer, scale, softcap, before, chunk_size, key_heads, group, head_dim, value_dim, slots,
    bias_batch, bias_head, position_batch, position_head,
    HAS_BIAS: tl.constexpr, HAS_POSITION_BIAS: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr, BLOCK_SLOTS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """One program per (batch row, key head), for all query heads of the group; only slots that are seen are walked.

    before, chunk_size: numbers that no slot reaches where there is no such rule. Strides of biases are 0 where an axis
    is spread.
    """
    batch, key_head = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions_pointer + batch)
    first = tl.maximum(tl.maximum(position - before, 0), position // chunk_size * chunk_size)

    member = tl.arange(0, BLOCK_GROUP)
    column = tl.arange(0, BLOCK_DIM)
    value_column = tl.arange(0, BLOCK_VALUE)
    query_head = key_head * group + member
    q_rows = batch * key_heads * group + query_head[:, None]
    q_inside = (member[:, None] < group) & (column[None, :] < head_dim)
    q = tl.load(q_pointer + q_rows * head_dim + column[None, :], mask=q_inside, other=0.0)

    head = batch * key_heads + key_head
    maximum = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    if HAS_SINKS:
        maximum = tl.load(sinks_pointer + query_head, mask=member < group, other=0.0).to(tl.float32)
        total += 1.0
    accumulator = tl.zeros([BLOCK_GROUP, BLOCK_VALUE], tl.float32)
    for first_slot in range(first // BLOCK_SLOTS * BLOCK_SLOTS, position + 1, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        seen = (slot >= first) & (slot <= position)
        k_offsets = (head * head_dim + column[:, None]) * slots + slot[None, :]
        k = tl.load(k_pointer + k_offsets, mask=(column[:, None] < head_dim) & seen[None, :], other=0.0)
        v_offsets = (head * slots + slot[:, None]) * value_dim + value_column[None, :]
        v_inside = seen[:, None] & (value_column[None, :] < value_dim)
        v = tl.load(v_pointer + v_offsets, mask=v_inside, other=0.0)

        scores = tl.dot(q, k, input_precision="ieee") * scale
        if HAS_SOFTCAP:
            scores = softcap * tanh(scores / softcap)
        inside = (member[:, None] < group) & seen[None, :]
        if HAS_BIAS:
            offsets = batch * bias_batch + query_head[:, None] * bias_head + slot[None, :]
            scores += tl.load(bias_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
        if HAS_POSITION_BIAS:
            offsets = batch * position_batch + query_head[:, None] * position_head + slot[None, :]
            scores += tl.load(position_bias_pointer + offsets, mask=inside, other=0.0).to(tl.float32)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        shrink = tl.exp(maximum - new_maximum)
        weights = tl.exp(scores - new_maximum[:, None])
        total = total * shrink + tl.sum(weights, 1)
        product = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        accumulator = accumulator * shrink[:, None] + product
        maximum = new_maximum
    out_inside = (member[:, None] < group) & (value_column[None, :] < value_dim)
    out_offsets = q_rows * value_dim + value_column[None, :]
    tl.store(out_pointer + out_offsets, accumulator / total[:, None], mask=out_inside)


def spread_strides(bias: torch.Tensor | None) -> tuple[int, int]:
    """Strides of a bias [B or 1, Q or 1, C] along its first two axes, 0 where it is spread."""
    if bias is None:
        return (0, 0)
    return tuple(0 if size == 1 else stride for size, stride in zip(bias.shape[:2], bias.stride()[:2]))


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    bias: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    scale: float = 1.0,
    window_before: int | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Returns [B, Q, E] for q [B, Q, D], k_cache [B, G, D, C], v_cache [B, G, C, E] and positions [B]."""
    batch, query_heads, head_dim = q.shape
    key_heads, slots, value_dim = v_cache.shape[1:]
    group = query_heads // key_heads
    out = torch.empty(batch, query_heads, value_dim, dtype=q.dtype, device=q.device)
    attention_decode_kernel[(batch, key_heads)](
        q, k_cache, v_cache, positions, q if bias is None else bias,
        q if position_bias is None else position_bias, q if sinks is None else sinks,
        out, scale, softcap or 1.0, slots if window_before is None else window_before,
        slots if chunk_size is None else chunk_size, key_heads, group, head_dim, value_dim, slots,
        *spread_strides(bias), *spread_strides(position_bias),
        HAS_BIAS=bias is not None,
        HAS_POSITION_BIAS=position_bias is not None,
        HAS_SINKS=sinks is not None,
        HAS_SOFTCAP=softcap is not None,
        BLOCK_GROUP=max(SMALLEST_DOT, triton.next_power_of_2(group)),
        BLOCK_SLOTS=BLOCK_SLOTS,
        BLOCK_DIM=max(SMALLEST_DOT, triton.next_power_of_2(head_dim)),
        BLOCK_VALUE=max(SMALLEST_DOT, triton.next_power_of_2(value_dim)),
    )  # fmt: skip
    return out
