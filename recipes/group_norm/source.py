"""The GPU kernel that group_norm replaces, in Triton: one program normalises one group of one image.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: Liger-Kernel's group_norm (BSD-2-Clause) and FlagGems' groupnorm (Apache-2.0). No code was taken.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _normalize(
    x, gamma, beta, out, channels, group_channels, pixels, eps,
    HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    size = group_channels * pixels
    places = tl.arange(0, BLOCK)
    inside = places < size
    start = (image * channels + group * group_channels) * pixels
    values = tl.load(x + start + places, inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values) / size, 0.0)
    result = centred * tl.rsqrt(tl.sum(centred * centred) / size + eps)
    channel = group * group_channels + places // pixels
    if HAS_GAMMA:
        result = result * tl.load(gamma + channel, inside, other=0.0).to(tl.float32)
    if HAS_BETA:
        result = result + tl.load(beta + channel, inside, other=0.0).to(tl.float32)
    tl.store(out + start + places, result, inside)


def group_norm(
    x: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor | None, groups: int, eps: float
) -> torch.Tensor:
    """Normalise groups of channels of x [N, C, S], scale and shift channels by gamma, beta [C]."""
    images, channels, pixels = x.shape
    out = torch.empty_like(x)
    _normalize[(images, groups)](
        x, x if gamma is None else gamma, x if beta is None else beta, out, channels, channels // groups, pixels, eps,
        HAS_GAMMA=gamma is not None, HAS_BETA=beta is not None,
        BLOCK=triton.next_power_of_2(channels // groups * pixels),
    )  # fmt: skip
    return out
