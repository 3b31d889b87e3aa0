"""Rotary position embedding in Triton: one program turns one head of one token.

Origin: written for neuron-port. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _rotate(x, cos, sin, out, heads, half, BLOCK: tl.constexpr):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < half
    row = (token * heads + head) * 2 * half
    table = token * 2 * half
    left = tl.load(x + row + columns, inside, other=0.0).to(tl.float32)
    right = tl.load(x + row + half + columns, inside, other=0.0).to(tl.float32)
    cos_left = tl.load(cos + table + columns, inside, other=0.0).to(tl.float32)
    cos_right = tl.load(cos + table + half + columns, inside, other=0.0).to(tl.float32)
    sin_left = tl.load(sin + table + columns, inside, other=0.0).to(tl.float32)
    sin_right = tl.load(sin + table + half + columns, inside, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    tl.store(out + row + columns, (left * cos_left - right * sin_left).to(dtype), inside)
    tl.store(out + row + half + columns, (right * cos_right + left * sin_right).to(dtype), inside)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn x [T, N, D] by cos and sin [T, D]."""
    tokens, heads, width = x.shape
    out = torch.empty_like(x)
    _rotate[(tokens, heads)](x, cos, sin, out, heads, width // 2, BLOCK=triton.next_power_of_2(width // 2))
    return out
