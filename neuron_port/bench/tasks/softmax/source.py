"""Softmax in Triton: one program normalises one row.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the fused softmax of Triton's tutorials (MIT).
No code was taken.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _softmax(x, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    values = tl.load(x + row + columns, inside, other=-float("inf")).to(tl.float32)
    weights = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row + columns, (weights / tl.sum(weights, axis=0)).to(out.dtype.element_ty), inside)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax of each row of x [T, H]."""
    tokens, width = x.shape
    out = torch.empty_like(x)
    _softmax[(tokens,)](x, out, width, BLOCK=triton.next_power_of_2(width))
    return out
