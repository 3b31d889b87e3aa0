"""The GPU kernel that causal_conv1d_update replaces, in Triton: one program serves a block of channels.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the interface of causal-conv1d (Tri Dao, BSD-3-Clause), as transformers calls it.
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK = 64


@triton.jit
def _step(
    x, state, weight, bias, out, new_state, rows, channels, length,
    TAPS: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    channel = row % channels
    newest = tl.load(x + row, inside, other=0.0)
    total = newest.to(tl.float32) * tl.load(weight + channel * TAPS + TAPS - 1, inside, other=0.0).to(
        tl.float32
    )
    for place in range(length):
        value = tl.load(state + row * length + place, inside, other=0.0)
        tap = place - length + TAPS - 1 + tl.zeros_like(row)
        tap_weight = tl.load(weight + channel * TAPS + tap, inside & (tap >= 0), other=0.0)
        total += value.to(tl.float32) * tap_weight.to(tl.float32)
        tl.store(new_state + row * length + place - 1, value, inside & (place + tl.zeros_like(row) > 0))
    tl.store(new_state + row * length + length - 1, newest, inside)
    if HAS_BIAS:
        total += tl.load(bias + channel, inside, other=0.0).to(tl.float32)
    if SILU:
        total = total * tl.sigmoid(total)
    tl.store(out + row, total.to(out.dtype.element_ty), inside)


def causal_conv1d_update(
    x: torch.Tensor,
    state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    silu: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [B, C, 1], state [B, C, L], weight [C, K], bias [C] or none; all contiguous. Returns result and new state."""
    (sequences, channels, length), taps = state.shape, weight.shape[1]
    out, new_state = torch.empty_like(x), torch.empty_like(state)
    has_bias = bias is not None
    rows = sequences * channels
    _step[(triton.cdiv(rows, BLOCK),)](
        x, state, weight, bias if has_bias else x, out, new_state, rows, channels, length,
        TAPS=taps, HAS_BIAS=has_bias, SILU=silu, BLOCK=BLOCK,
    )  # fmt: skip
    return out, new_state
