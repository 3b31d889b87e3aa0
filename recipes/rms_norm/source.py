"""The GPU kernel that rms_norm replaces, in Triton: one program normalises one row.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the layer norm of Triton's tutorials (MIT) and Liger-Kernel's rms_norm (BSD-2-Clause).
No code was taken.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _normalize(
    x, gamma, out, hidden, eps, offset,
    HAS_GAMMA: tl.constexpr, HAS_OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * hidden
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    values = tl.load(x + row + columns, inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / hidden + eps)
    normal = values * scale
    if HAS_GAMMA:
        gain = tl.load(gamma + columns, inside)
        if HAS_OFFSET:
            normal = normal * (offset + gain.to(tl.float32))
        else:  # rounded before gamma, as in the layer that it serves
            normal = normal.to(out.dtype.element_ty) * gain
    tl.store(out + row + columns, normal, inside)


def rms_norm(x: torch.Tensor, gamma: torch.Tensor | None, eps: float, offset: float = 0.0) -> torch.Tensor:
    """Normalise rows of x [T, H] by their root mean square and scale by offset + gamma [H]."""
    tokens, hidden = x.shape
    out = torch.empty_like(x)
    _normalize[(tokens,)](
        x, x if gamma is None else gamma, out, hidden, eps, offset,
        HAS_GAMMA=gamma is not None, HAS_OFFSET=offset != 0.0, BLOCK=triton.next_power_of_2(hidden),
    )  # fmt: skip
    return out
