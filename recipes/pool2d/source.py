"""The GPU kernel that pool2d replaces, in Triton: one program computes a block of one plane's windows.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the definition of the operation in PyTorch's documentation.
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK = 64


@triton.jit
def _pool(
    x, out, height, width, rows, columns, stride_y, stride_x, padding_y, padding_x,
    R: tl.constexpr, S: tl.constexpr, MAXIMUM: tl.constexpr, COUNT_PADDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    top = place // columns * stride_y - padding_y
    left = place % columns * stride_x - padding_x
    largest = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for tap_y in range(R):
        for tap_x in range(S):
            y, column = top + tap_y, left + tap_x
            met = (y >= 0) & (y < height) & (column >= 0) & (column < width) & (place < rows * columns)
            value = tl.load(x + (plane * height + y) * width + column, met, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.where(met, value, float("-inf")))
            total += value
    if COUNT_PADDING:
        tall = tl.minimum(top + R, height + padding_y) - top
        wide = tl.minimum(left + S, width + padding_x) - left
    else:
        tall = tl.minimum(top + R, height) - tl.maximum(top, 0)
        wide = tl.minimum(left + S, width) - tl.maximum(left, 0)
    result = largest if MAXIMUM else total / (tall * wide)
    tl.store(out + plane * rows * columns + place, result.to(out.dtype.element_ty), place < rows * columns)


def _outputs(size: int, window: int, stride: int, padding: int, ceil: bool) -> int:
    spare = size + 2 * padding - window
    if not ceil:
        return spare // stride + 1
    outputs = -(-spare // stride) + 1
    return outputs - 1 if (outputs - 1) * stride >= size + padding else outputs


def pool2d(
    x: torch.Tensor,
    maximum: bool,
    window_y: int,
    window_x: int,
    stride_y: int,
    stride_x: int,
    padding_y: int,
    padding_x: int,
    ceil: bool,
    count_padding: bool,
) -> torch.Tensor:
    """x [B, C, H, W], contiguous. Returns [B, C, M, N]."""
    images, channels, height, width = x.shape
    rows = _outputs(height, window_y, stride_y, padding_y, ceil)
    columns = _outputs(width, window_x, stride_x, padding_x, ceil)
    out = torch.empty((images, channels, rows, columns), dtype=x.dtype, device=x.device)
    _pool[(images * channels, triton.cdiv(rows * columns, BLOCK))](
        x, out, height, width, rows, columns, stride_y, stride_x, padding_y, padding_x,
        R=window_y, S=window_x, MAXIMUM=maximum, COUNT_PADDING=count_padding, BLOCK=BLOCK,
    )  # fmt: skip
    return out
