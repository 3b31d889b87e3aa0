"""The GPU kernel that residual_add replaces, in Triton.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the vector addition of Triton's tutorials (MIT).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _add(x, y, out, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    total = tl.load(x + offsets, inside).to(tl.float32) + tl.load(y + offsets, inside).to(tl.float32)
    tl.store(out + offsets, total.to(out.dtype.element_ty), inside)


def residual_add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sum of two contiguous activations [T, H] of one dtype."""
    out = torch.empty_like(x)
    _add[(triton.cdiv(x.numel(), BLOCK),)](x, y, out, x.numel(), BLOCK=BLOCK)
    return out
