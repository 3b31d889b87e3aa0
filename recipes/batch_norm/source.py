"""The GPU kernel that batch_norm replaces, in Triton: one program scales and shifts one channel of one image.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: FlagGems' batch_norm (Apache-2.0). No code was taken.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _normalize(
    x, mean, variance, gamma, beta, out, channels, pixels, eps,
    HAS_GAMMA: tl.constexpr, HAS_BETA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = row % channels
    scale = tl.rsqrt(tl.load(variance + channel).to(tl.float32) + eps)
    if HAS_GAMMA:
        scale = scale * tl.load(gamma + channel).to(tl.float32)
    shift = -tl.load(mean + channel).to(tl.float32) * scale
    if HAS_BETA:
        shift = shift + tl.load(beta + channel).to(tl.float32)
    for first in range(0, pixels, BLOCK):
        places = first + tl.arange(0, BLOCK)
        inside = places < pixels
        values = tl.load(x + row * pixels + places, inside, other=0.0).to(tl.float32)
        tl.store(out + row * pixels + places, values * scale + shift, inside)


def batch_norm(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """Normalise channels of x [N, C, S] by the statistics [C] of training."""
    images, channels, pixels = x.shape
    out = torch.empty_like(x)
    _normalize[(images * channels,)](
        x, mean, variance, x if gamma is None else gamma, x if beta is None else beta, out, channels, pixels, eps,
        HAS_GAMMA=gamma is not None, HAS_BETA=beta is not None, BLOCK=1024,
    )  # fmt: skip
    return out
