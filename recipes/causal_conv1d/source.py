"""The GPU kernel that causal_conv1d replaces, in Triton: one program computes a block of one channel.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the interface of causal-conv1d (Tri Dao, BSD-3-Clause), as transformers calls it.
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK = 128


@triton.jit
def _convolve(
    x, weight, bias, out, channels, length,
    TAPS: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    channel = row % channels
    s = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for tap in range(TAPS):
        place = s + tap - (TAPS - 1)
        value = tl.load(x + row * length + place, (place >= 0) & (place < length), other=0.0)
        total += value.to(tl.float32) * tl.load(weight + channel * TAPS + tap).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + channel).to(tl.float32)
    if SILU:
        total = total * tl.sigmoid(total)
    tl.store(out + row * length + s, total.to(out.dtype.element_ty), s < length)


def causal_conv1d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, silu: bool = False
) -> torch.Tensor:
    """x [B, C, S], weight [C, K], bias [C] or none; all contiguous. Returns [B, C, S]."""
    (sequences, channels, length), taps = x.shape, weight.shape[1]
    out = torch.empty_like(x)
    has_bias = bias is not None
    grid = (sequences * channels, triton.cdiv(length, BLOCK))
    _convolve[grid](
        x, weight, bias if has_bias else x, out, channels, length,
        TAPS=taps, HAS_BIAS=has_bias, SILU=silu, BLOCK=BLOCK,
    )  # fmt: skip
    return out
