"""Causal grouped-query attention in Triton: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. The algorithm is FlashAttention-2 (Dao, 2023); its Triton form was learnt
from Triton's fused attention tutorial (MIT) and from flash-attention (BSD-3-Clause); no code was taken.
License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl

BLOCK_QUERIES = 64
BLOCK_KEYS = 64
SMALLEST_DOT = 16  # tl.dot wants at least this many columns


@triton.jit
def attention_prefill_kernel(
    q_pointer, k_pointer, v_pointer, out_pointer, scale, tokens, query_heads, key_heads, head_dim,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """One program per (query block, batch row and query head); keys are walked up to the diagonal."""
    first_query = tl.program_id(0) * BLOCK_QUERIES
    batch = tl.program_id(1) // query_heads
    query_head = tl.program_id(1) % query_heads
    key_head = query_head // (query_heads // key_heads)

    query = first_query + tl.arange(0, BLOCK_QUERIES)
    column = tl.arange(0, BLOCK_DIM)
    q_offsets = ((batch * tokens + query[:, None]) * query_heads + query_head) * head_dim + column[None, :]
    q_inside = (query[:, None] < tokens) & (column[None, :] < head_dim)
    q = tl.load(q_pointer + q_offsets, mask=q_inside, other=0.0)

    maximum = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    accumulator = tl.zeros([BLOCK_QUERIES, BLOCK_DIM], tl.float32)
    for first_key in range(0, min(first_query + BLOCK_QUERIES, tokens), BLOCK_KEYS):
        key = first_key + tl.arange(0, BLOCK_KEYS)
        kv_offsets = ((batch * tokens + key[:, None]) * key_heads + key_head) * head_dim + column[None, :]
        kv_inside = (key[:, None] < tokens) & (column[None, :] < head_dim)
        k = tl.load(k_pointer + kv_offsets, mask=kv_inside, other=0.0)
        v = tl.load(v_pointer + kv_offsets, mask=kv_inside, other=0.0)

        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(key[None, :] <= query[:, None], scores, float("-inf"))
        # The first block holds key 0, which every query may see: the new maximum is finite from then on.
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        shrink = tl.exp(maximum - new_maximum)
        weights = tl.exp(scores - new_maximum[:, None])
        total = total * shrink + tl.sum(weights, 1)
        product = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        accumulator = accumulator * shrink[:, None] + product
        maximum = new_maximum
    tl.store(out_pointer + q_offsets, accumulator / total[:, None], mask=q_inside)


def attention_prefill(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Returns [B, S, Q, D] for q [B, S, Q, D] and k, v [B, S, G, D], all contiguous."""
    batch, tokens, query_heads, head_dim = q.shape
    out = torch.empty_like(q)
    attention_prefill_kernel[(triton.cdiv(tokens, BLOCK_QUERIES), batch * query_heads)](
        q, k, v, out, scale, tokens, query_heads, k.shape[2], head_dim,
        BLOCK_QUERIES=BLOCK_QUERIES,
        BLOCK_KEYS=BLOCK_KEYS,
        BLOCK_DIM=max(SMALLEST_DOT, triton.next_power_of_2(head_dim)),
    )  # fmt: skip
    return out
