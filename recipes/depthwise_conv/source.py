"""The GPU kernel that depthwise_conv replaces, in Triton: one program computes a block of one channel's pixels.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the definition of the operation in PyTorch's documentation.
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK = 128


@triton.jit
def _convolve(
    x, weight, bias, out, channels, height, width, rows, columns,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    R: tl.constexpr, S: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0)
    channel = plane % channels
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row, column = pixel // columns, pixel % columns
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for tap_y in range(R):
        y = row * stride_y - padding_y + tap_y * dilation_y
        for tap_x in range(S):
            x_place = column * stride_x - padding_x + tap_x * dilation_x
            met = (y >= 0) & (y < height) & (x_place >= 0) & (x_place < width) & (row < rows)
            value = tl.load(x + (plane * height + y) * width + x_place, met, other=0.0)
            total += value.to(tl.float32) * tl.load(weight + (channel * R + tap_y) * S + tap_x).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + channel).to(tl.float32)
    tl.store(out + plane * rows * columns + pixel, total.to(out.dtype.element_ty), pixel < rows * columns)


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride_y: int = 1,
    stride_x: int = 1,
    padding_y: int = 0,
    padding_x: int = 0,
    dilation_y: int = 1,
    dilation_x: int = 1,
) -> torch.Tensor:
    """x [B, C, H, W], weight [C, R, S], bias [C] or none; all contiguous. Returns [B, C, M, N]."""
    (images, channels, height, width), (_, kernel_rows, kernel_columns) = x.shape, weight.shape
    rows = (height + 2 * padding_y - dilation_y * (kernel_rows - 1) - 1) // stride_y + 1
    columns = (width + 2 * padding_x - dilation_x * (kernel_columns - 1) - 1) // stride_x + 1
    out = torch.empty((images, channels, rows, columns), dtype=x.dtype, device=x.device)
    has_bias = bias is not None
    _convolve[(images * channels, triton.cdiv(rows * columns, BLOCK))](
        x, weight, bias if has_bias else x, out, channels, height, width, rows, columns,
        stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
        R=kernel_rows, S=kernel_columns, HAS_BIAS=has_bias, BLOCK=BLOCK,
    )  # fmt: skip
    return out
