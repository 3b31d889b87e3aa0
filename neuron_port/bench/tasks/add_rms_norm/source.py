"""Residual addition and root mean square normalisation in Triton: one program takes one row.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the layer norm of Triton's tutorials (MIT).
No code was taken.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _add_normalize(x, residual, gamma, normal, added, hidden, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * hidden
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    total = tl.load(x + row + columns, inside, other=0.0).to(tl.float32)
    total += tl.load(residual + row + columns, inside, other=0.0).to(tl.float32)
    tl.store(added + row + columns, total.to(added.dtype.element_ty), inside)
    scale = tl.rsqrt(tl.sum(total * total, axis=0) / hidden + eps)
    gain = tl.load(gamma + columns, inside, other=0.0).to(tl.float32)
    tl.store(normal + row + columns, (total * scale * gain).to(normal.dtype.element_ty), inside)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, gamma: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add x and residual [T, H] and normalise the sum; returns the normalised rows and the sum."""
    tokens, hidden = x.shape
    normal, added = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    _add_normalize[(tokens,)](x, residual, gamma, normal, added, hidden, eps, BLOCK=block)
    return normal, added
