"""Layer normalisation in Triton: one program normalises one row.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the layer norm of Triton's tutorials (MIT).
No code was taken.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _normalize(x, gamma, beta, out, hidden, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * hidden
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    values = tl.load(x + row + columns, inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / hidden
    centred = tl.where(inside, values - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / hidden + eps)
    gain = tl.load(gamma + columns, inside, other=0.0).to(tl.float32)
    shift = tl.load(beta + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + row + columns, (centred * scale * gain + shift).to(out.dtype.element_ty), inside)


def layer_norm(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise rows of x [T, H] to mean 0 and variance 1, scale by gamma [H], shift by beta [H]."""
    tokens, hidden = x.shape
    out = torch.empty_like(x)
    _normalize[(tokens,)](x, gamma, beta, out, hidden, eps, BLOCK=triton.next_power_of_2(hidden))
    return out
