"""The GPU kernel that layer_norm replaces, in Triton: one program normalises one row.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the layer norm of Triton's tutorials (MIT) and Liger-Kernel's layer_norm (BSD-2-Clause).
No code was taken.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _normalize(
    x, gamma, beta, out, hidden, eps, offset,
    HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * hidden
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    values = tl.load(x + row + columns, inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values) / hidden, 0.0)
    result = centred * tl.rsqrt(tl.sum(centred * centred) / hidden + eps)
    if HAS_GAMMA:
        result = result * (offset + tl.load(gamma + columns, inside, other=0.0).to(tl.float32))
    if HAS_BETA:
        result = result + tl.load(beta + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + row + columns, result, inside)


def layer_norm(
    x: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor | None, eps: float, offset: float = 0.0
) -> torch.Tensor:
    """Normalise rows of x [T, H] to mean 0 and variance 1, scale by offset + gamma [H], shift by beta [H]."""
    tokens, hidden = x.shape
    out = torch.empty_like(x)
    _normalize[(tokens,)](
        x, x if gamma is None else gamma, x if beta is None else beta, out, hidden, eps, offset,
        HAS_GAMMA=gamma is not None, HAS_BETA=beta is not None, BLOCK=triton.next_power_of_2(hidden),
    )  # fmt: skip
    return out
