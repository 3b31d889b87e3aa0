"""The GPU kernel that embedding replaces, in Triton: one program copies one row.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the embedding lookup of Liger-Kernel (BSD-2-Clause).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _gather(ids, table, out, hidden, offset, scale, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < hidden
    row = tl.load(ids + token).to(tl.int64) + offset
    values = tl.load(table + row * hidden + columns, inside)
    scaled = (values.to(tl.float32) * scale).to(out.dtype.element_ty)
    tl.store(out + token * hidden + columns, scaled, inside)


def embedding(ids: torch.Tensor, table: torch.Tensor, offset: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Rows of table [V, H] named by ids [T] + offset, times scale (rounded to the table's dtype)."""
    tokens, hidden = ids.shape[0], table.shape[1]
    out = torch.empty((tokens, hidden), dtype=table.dtype, device=table.device)
    rounded = torch.full((), scale, dtype=table.dtype).item()
    _gather[(tokens, triton.cdiv(hidden, BLOCK))](ids, table, out, hidden, offset, rounded, BLOCK=BLOCK)
    return out
