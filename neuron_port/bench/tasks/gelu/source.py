"""The exact GELU in Triton: one program takes one block of elements.

Origin: written for neuron-port. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _gelu(x, out, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    values = tl.load(x + place, inside, other=0.0).to(tl.float32)
    # 0.7071... is 1 / sqrt(2).
    result = 0.5 * values * (1.0 + tl.erf(values * 0.7071067811865476))
    tl.store(out + place, result.to(out.dtype.element_ty), inside)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The exact GELU of each element of x."""
    out = torch.empty_like(x)
    _gelu[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), BLOCK=BLOCK)
    return out
