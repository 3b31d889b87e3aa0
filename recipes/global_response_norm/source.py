"""The GPU kernel that global_response_norm replaces, in Triton: one program sums a channel block, one normalises a row.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the layer norm of Triton's tutorials (MIT). No code was taken.
"""

import torch
import triton
import triton.language as tl

EPSILON = 1e-6


@triton.jit
def _norms(x, norms, positions, channels, BLOCK: tl.constexpr):
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < channels
    total = tl.zeros((BLOCK,), tl.float32)
    start = tl.program_id(0).to(tl.int64) * positions * channels
    for position in range(positions):
        values = tl.load(x + start + position * channels + columns, inside, other=0.0).to(tl.float32)
        total += values * values
    tl.store(norms + tl.program_id(0) * channels + columns, tl.sqrt(total), inside)


@triton.jit
def _apply(x, norms, gain, shift, out, positions, channels, epsilon, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = columns < channels
    norm = tl.load(norms + tl.program_id(0) * channels + columns, inside, other=0.0)
    factor = norm / (tl.sum(norm) / channels + epsilon) * tl.load(gain + columns, inside, other=0.0) + 1.0
    row = (tl.program_id(0).to(tl.int64) * positions + tl.program_id(1)) * channels
    values = tl.load(x + row + columns, inside, other=0.0).to(tl.float32)
    result = values * factor + tl.load(shift + columns, inside, other=0.0)
    tl.store(out + row + columns, result.to(out.dtype.element_ty), inside)


def global_response_norm(x: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Scale channels of a contiguous x [B, T, C] by their relative norm over T; gain, shift: [C]."""
    images, positions, channels = x.shape
    norms = torch.empty((images, channels), dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    _norms[(images, triton.cdiv(channels, 256))](x, norms, positions, channels, BLOCK=256)
    block = triton.next_power_of_2(channels)
    _apply[(images, positions)](x, norms, gain, shift, out, positions, channels, EPSILON, BLOCK=block)
    return out
