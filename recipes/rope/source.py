"""Rotary position embedding in Triton: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. The idea of rotating queries and keys in one launch was learnt from Liger
Kernel (BSD-2-Clause) and the layout of programs from flash-attention's rotary kernel (BSD-3-Clause); no
code was taken. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def rotate_token(
    x_pointer, out_pointer, first_cos, second_cos, first_sin, second_sin, token, heads, head_dim, width,
    first_in, stride_in, first_out, stride_out, BLOCK_HEADS: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
):  # fmt: skip
    """Rotates the heads of one token: x and out are [T, heads, D]; member two of a pair is `first_*` behind one."""
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    pair = tl.arange(0, BLOCK_PAIRS)[None, :]
    row = (token * heads + head) * head_dim
    inside = (head < heads) & (pair < width // 2)
    source = row + pair * stride_in
    target = row + pair * stride_out
    first = tl.load(x_pointer + source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_pointer + source + first_in, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_pointer + target, first * first_cos - second * first_sin, mask=inside)
    tl.store(out_pointer + target + first_out, second * second_cos + first * second_sin, mask=inside)


@triton.jit
def rope_kernel(
    q_pointer, k_pointer, cos_pointer, sin_pointer, q_out_pointer, k_out_pointer, query_heads, key_heads,
    head_dim, width, first_in, stride_in, first_out, stride_out,
    BLOCK_QUERY_HEADS: tl.constexpr, BLOCK_KEY_HEADS: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
):  # fmt: skip
    """One program per token; cos and sin are read once for all heads."""
    token = tl.program_id(0)
    half = width // 2
    pair = tl.arange(0, BLOCK_PAIRS)[None, :]
    row = token * width + pair
    inside = pair < half
    first_cos = tl.load(cos_pointer + row, mask=inside, other=0.0).to(tl.float32)
    second_cos = tl.load(cos_pointer + row + half, mask=inside, other=0.0).to(tl.float32)
    first_sin = tl.load(sin_pointer + row, mask=inside, other=0.0).to(tl.float32)
    second_sin = tl.load(sin_pointer + row + half, mask=inside, other=0.0).to(tl.float32)
    rotate_token(
        q_pointer, q_out_pointer, first_cos, second_cos, first_sin, second_sin, token, query_heads, head_dim,
        width, first_in, stride_in, first_out, stride_out, BLOCK_QUERY_HEADS, BLOCK_PAIRS,
    )  # fmt: skip
    rotate_token(
        k_pointer, k_out_pointer, first_cos, second_cos, first_sin, second_sin, token, key_heads, head_dim,
        width, first_in, stride_in, first_out, stride_out, BLOCK_KEY_HEADS, BLOCK_PAIRS,
    )  # fmt: skip


def rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, pairs: str = "half"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns q [B, S, Q, D] and k [B, S, G, D] rotated by cos and sin [B, S, R]; all contiguous."""
    batch, sequence, query_heads, head_dim = q.shape
    key_heads, width = k.shape[2], cos.shape[-1]
    q_out, k_out = q.clone(), k.clone()  # what the tables do not cover stays
    halves, interleaved = (width // 2, 1), (1, 2)
    rope_kernel[(batch * sequence,)](
        q, k, cos, sin, q_out, k_out, query_heads, key_heads, head_dim, width,
        *(halves if pairs == "half" else interleaved), *(interleaved if pairs == "interleaved" else halves),
        BLOCK_QUERY_HEADS=triton.next_power_of_2(query_heads),
        BLOCK_KEY_HEADS=triton.next_power_of_2(key_heads),
        BLOCK_PAIRS=triton.next_power_of_2(width // 2),
    )  # fmt: skip
    return q_out, k_out
