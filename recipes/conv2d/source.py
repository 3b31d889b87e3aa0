"""The GPU kernel that conv2d replaces, in Triton: one program computes some output channels of some pixels.

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
    x, weight, bias, out, channels, height, width, features, rows, columns, groups,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    R: tl.constexpr, S: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    image, group = tl.program_id(2) // groups, tl.program_id(2) % groups
    group_channels, group_features = channels // groups, features // groups
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total_ON = tl.zeros((BLOCK_O, BLOCK_N), dtype=tl.float32)
    for tap_y in range(R):
        y = n // columns * stride_y - padding_y + tap_y * dilation_y
        for tap_x in range(S):
            column = n % columns * stride_x - padding_x + tap_x * dilation_x
            met = (y >= 0) & (y < height) & (column >= 0) & (column < width) & (n < rows * columns)
            for start in range(0, group_channels, BLOCK_C):
                c = start + tl.arange(0, BLOCK_C)
                plane_C = image * channels + group * group_channels + c
                x_CN = tl.load(
                    x + plane_C[:, None] * height * width + (y * width + column)[None, :],
                    (c[:, None] < group_channels) & met[None, :],
                    other=0.0,
                )
                weight_OC = tl.load(
                    weight
                    + ((c[None, :] * R + tap_y) * S + tap_x) * features
                    + group * group_features
                    + o[:, None],
                    (c[None, :] < group_channels) & (o[:, None] < group_features),
                    other=0.0,
                )
                total_ON = tl.dot(weight_OC, x_CN, total_ON, input_precision="ieee")
    if HAS_BIAS:
        total_ON += tl.load(bias + group * group_features + o, o < group_features, other=0.0).to(tl.float32)[
            :, None
        ]
    plane_O = image * features + group * group_features + o
    inside = (o[:, None] < group_features) & (n[None, :] < rows * columns)
    tl.store(out + plane_O[:, None] * rows * columns + n[None, :], total_ON.to(out.dtype.element_ty), inside)


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride_y: int = 1,
    stride_x: int = 1,
    padding_y: int = 0,
    padding_x: int = 0,
    dilation_y: int = 1,
    dilation_x: int = 1,
    groups: int = 1,
) -> torch.Tensor:
    """x [B, C, H, W], weight [C / groups, R, S, O], bias [O] or none; all contiguous. Returns [B, O, M, N]."""
    (images, channels, height, width), (_, kernel_rows, kernel_columns, features) = x.shape, weight.shape
    rows = (height + 2 * padding_y - dilation_y * (kernel_rows - 1) - 1) // stride_y + 1
    columns = (width + 2 * padding_x - dilation_x * (kernel_columns - 1) - 1) // stride_x + 1
    out = torch.empty((images, features, rows, columns), dtype=x.dtype, device=x.device)
    has_bias = bias is not None
    grid = (triton.cdiv(features // groups, BLOCK_O), triton.cdiv(rows * columns, BLOCK_N), images * groups)
    _convolve[grid](
        x, weight, bias if has_bias else x, out, channels, height, width, features, rows, columns, groups,
        stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
        R=kernel_rows, S=kernel_columns, HAS_BIAS=has_bias, BLOCK_O=BLOCK_O, BLOCK_N=BLOCK_N, BLOCK_C=BLOCK_C,
    )  # fmt: skip
    return out
