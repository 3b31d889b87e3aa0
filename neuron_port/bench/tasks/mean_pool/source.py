"""The mean over tokens in Triton: one program adds up one block of columns.

Origin: written for neuron-port. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl

BLOCK = 64


@triton.jit
def _mean(x, out, tokens, hidden, BLOCK: tl.constexpr):
    batch = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < hidden
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for token in range(tokens):
        total += tl.load(x + (batch * tokens + token) * hidden + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + batch * hidden + columns, (total / tokens).to(out.dtype.element_ty), inside)


def mean_pool(x: torch.Tensor) -> torch.Tensor:
    """Average x [B, T, H] over its tokens. Returns [B, H]."""
    batch, tokens, hidden = x.shape
    out = torch.empty((batch, hidden), dtype=x.dtype, device=x.device)
    _mean[(batch, triton.cdiv(hidden, BLOCK))](x, out, tokens, hidden, BLOCK=BLOCK)
    return out
