"""The GPU kernel that conv1d replaces, in Triton: one program computes some output channels of some positions.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the matrix multiplication of Triton's tutorials (MIT).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_O, BLOCK_N, BLOCK_C = 32, 64, 16


@triton.jit
def _convolve(
    x, weight, bias, out, channels, length, features, outputs, groups, stride, padding, dilation,
    TAPS: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    sequence, group = tl.program_id(2) // groups, tl.program_id(2) % groups
    group_channels, group_features = channels // groups, features // groups
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total_ON = tl.zeros((BLOCK_O, BLOCK_N), dtype=tl.float32)
    for tap in range(TAPS):
        place = n * stride - padding + tap * dilation
        met = (place >= 0) & (place < length) & (n < outputs)
        for start in range(0, group_channels, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            x_CN = tl.load(
                x + (sequence * channels + group * group_channels + c[:, None]) * length + place[None, :],
                (c[:, None] < group_channels) & met[None, :],
                other=0.0,
            )
            weight_OC = tl.load(
                weight + (c[None, :] * TAPS + tap) * features + group * group_features + o[:, None],
                (c[None, :] < group_channels) & (o[:, None] < group_features),
                other=0.0,
            )
            total_ON = tl.dot(weight_OC, x_CN, total_ON, input_precision="ieee")
    if HAS_BIAS:
        total_ON += tl.load(bias + group * group_features + o, o < group_features, other=0.0).to(tl.float32)[
            :, None
        ]
    row_O = sequence * features + group * group_features + o
    inside = (o[:, None] < group_features) & (n[None, :] < outputs)
    tl.store(out + row_O[:, None] * outputs + n[None, :], total_ON.to(out.dtype.element_ty), inside)


def conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> torch.Tensor:
    """x [B, C, L], weight [C / groups, K, O], bias [O] or none; all contiguous. Returns [B, O, N]."""
    (sequences, channels, length), (_, taps, features) = x.shape, weight.shape
    outputs = (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    out = torch.empty((sequences, features, outputs), dtype=x.dtype, device=x.device)
    has_bias = bias is not None
    grid = (triton.cdiv(features // groups, BLOCK_O), triton.cdiv(outputs, BLOCK_N), sequences * groups)
    _convolve[grid](
        x, weight, bias if has_bias else x, out, channels, length, features, outputs, groups, stride, padding, dilation,
        TAPS=taps, HAS_BIAS=has_bias, BLOCK_O=BLOCK_O, BLOCK_N=BLOCK_N, BLOCK_C=BLOCK_C,
    )  # fmt: skip
    return out
