"""Gated SiLU in Triton: one program takes one row.

Origin: written for neuron-port. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _swiglu(x, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(x + row * 2 * width + columns, inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), inside)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """silu of the left half of x [T, 2 I] times its right half. Returns [T, I]."""
    tokens, width = x.shape[0], x.shape[1] // 2
    out = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
    _swiglu[(tokens,)](x, out, width, BLOCK=triton.next_power_of_2(width))
    return out
