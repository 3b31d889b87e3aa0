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
def attention_decode_kernel(
    q_pointer, k_pointer, v_pointer, positions_pointer, out_pointer, scale, key_heads, group, head_dim, slots,
    BLOCK_GROUP: tl.constexpr, BLOCK_SLOTS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """One program per (batch row, key head), for all query heads of the group; slots up to the position."""
    batch, key_head = tl.program_id(0), tl.program_id(1)
    end = tl.load(positions_pointer + batch) + 1

    member = tl.arange(0, BLOCK_GROUP)
    column = tl.arange(0, BLOCK_DIM)
    query_head = key_head * group + member
    q_offsets = (batch * key_heads * group + query_head[:, None]) * head_dim + column[None, :]
    q_inside = (member[:, None] < group) & (column[None, :] < head_dim)
    q = tl.load(q_pointer + q_offsets, mask=q_inside, other=0.0)

    cache = (batch * key_heads + key_head) * slots * head_dim
    maximum = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    accumulator = tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32)
    for first_slot in range(0, end, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        k_inside = (column[:, None] < head_dim) & (slot[None, :] < end)
        k = tl.load(k_pointer + cache + column[:, None] * slots + slot[None, :], mask=k_inside, other=0.0)
        v_inside = (slot[:, None] < end) & (column[None, :] < head_dim)
        v = tl.load(v_pointer + cache + slot[:, None] * head_dim + column[None, :], mask=v_inside, other=0.0)

        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where(slot[None, :] < end, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        shrink = tl.exp(maximum - new_maximum)
        weights = tl.exp(scores - new_maximum[:, None])
        total = total * shrink + tl.sum(weights, 1)
        product = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        accumulator = accumulator * shrink[:, None] + product
        maximum = new_maximum
    tl.store(out_pointer + q_offsets, accumulator / total[:, None], mask=q_inside)


def attention_decode(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, positions: torch.Tensor, scale: float
) -> torch.Tensor:
    """Returns [B, Q, D] for q [B, Q, D], k_cache [B, G, D, C], v_cache [B, G, C, D] and positions [B]."""
    batch, query_heads, head_dim = q.shape
    key_heads, slots = k_cache.shape[1], k_cache.shape[3]
    group = query_heads // key_heads
    out = torch.empty_like(q)
    attention_decode_kernel[(batch, key_heads)](
        q, k_cache, v_cache, positions, out, scale, key_heads, group, head_dim, slots,
        BLOCK_GROUP=max(SMALLEST_DOT, triton.next_power_of_2(group)),
        BLOCK_SLOTS=BLOCK_SLOTS,
        BLOCK_DIM=max(SMALLEST_DOT, triton.next_power_of_2(head_dim)),
    )  # fmt: skip
    return out
