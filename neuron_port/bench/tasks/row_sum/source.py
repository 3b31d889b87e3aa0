"""The sum of each row in Triton: one program walks along one row.

Origin: written for neuron-port. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl

BLOCK = 512


@triton.jit
def _row_sum(x, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        total += tl.load(x + row + columns, columns < width, other=0.0).to(tl.float32)
    tl.store(out + tl.program_id(0), tl.sum(total, axis=0).to(out.dtype.element_ty))


def row_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum each row of x [T, H]. Returns [T]."""
    tokens, width = x.shape
    out = torch.empty((tokens,), dtype=x.dtype, device=x.device)
    _row_sum[(tokens,)](x, out, width, BLOCK=BLOCK)
    return out
