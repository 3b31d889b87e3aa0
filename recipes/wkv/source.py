"""RWKV's time mixing in Triton: the GPU kernel that `kernel.py` replaces.

Origin: written for neuron-port. One thread per channel, and sums kept relative to their largest exponent, were learnt
from BlinkDL/RWKV-LM's wkv (CUDA, Apache-2.0); no code was taken. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl

BLOCK_CHANNELS = 128


@triton.jit
def wkv_kernel(
    key_pointer, value_pointer, decay_pointer, first_pointer, numerator_pointer, denominator_pointer, maximum_pointer,
    out_pointer, last_numerator_pointer, last_denominator_pointer, last_maximum_pointer, tokens, channels,
    HAS_STATE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program per batch row and block of channels, token after token."""
    row, block = tl.program_id(0), tl.program_id(1)
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    here = channel < channels
    rate = -tl.exp(tl.load(decay_pointer + channel, mask=here, other=0.0).to(tl.float32))
    bonus = tl.load(first_pointer + channel, mask=here, other=0.0).to(tl.float32)
    held = row * channels + channel
    numerator = tl.zeros([BLOCK_CHANNELS], tl.float32)
    denominator = tl.zeros([BLOCK_CHANNELS], tl.float32)
    maximum = tl.full([BLOCK_CHANNELS], -1e38, tl.float32)
    if HAS_STATE:
        numerator = tl.load(numerator_pointer + held, mask=here, other=0.0).to(tl.float32)
        denominator = tl.load(denominator_pointer + held, mask=here, other=0.0).to(tl.float32)
        maximum = tl.load(maximum_pointer + held, mask=here, other=0.0).to(tl.float32)
    for token in range(tokens):
        place = (row * tokens + token) * channels + channel
        key = tl.load(key_pointer + place, mask=here, other=0.0).to(tl.float32)
        value = tl.load(value_pointer + place, mask=here, other=0.0).to(tl.float32)
        largest = tl.maximum(maximum, key + bonus)
        old, new = tl.exp(maximum - largest), tl.exp(key + bonus - largest)
        out = (old * numerator + new * value) / (old * denominator + new)
        tl.store(out_pointer + place, out, mask=here)
        largest = tl.maximum(maximum + rate, key)
        old, new = tl.exp(maximum + rate - largest), tl.exp(key - largest)
        numerator = old * numerator + new * value
        denominator = old * denominator + new
        maximum = largest
    tl.store(last_numerator_pointer + held, numerator, mask=here)
    tl.store(last_denominator_pointer + held, denominator, mask=here)
    tl.store(last_maximum_pointer + held, maximum, mask=here)


def wkv(
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    first: torch.Tensor,
    numerator: torch.Tensor | None,
    denominator: torch.Tensor | None,
    maximum: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns out [B, S, C] and the state after it, three tensors [B, C]."""
    batch, tokens, channels = key.shape
    out = torch.empty_like(key)
    last = [torch.empty((batch, channels), dtype=torch.float32, device=key.device) for _ in range(3)]
    state = [key.new_zeros(1) if item is None else item for item in (numerator, denominator, maximum)]
    wkv_kernel[(batch, triton.cdiv(channels, BLOCK_CHANNELS))](
        key, value, decay, first, *state, out, *last, tokens, channels,
        HAS_STATE=numerator is not None, BLOCK_CHANNELS=BLOCK_CHANNELS,
    )  # fmt: skip
    return out, *last
