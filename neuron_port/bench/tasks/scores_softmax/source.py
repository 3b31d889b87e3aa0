"""Causal attention weights in Triton: one program takes one query.

Origin: written for neuron-port. License: Apache-2.0.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _weights(q, k, out, scale, length, width, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    query, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    s = tl.arange(0, BLOCK_S)
    first = batch * length * width
    q_D = tl.load(q + first + query * width + d, d < width, other=0.0).to(tl.float32)
    k_SD = tl.load(
        k + first + s[:, None] * width + d[None, :],
        (s[:, None] < length) & (d[None, :] < width),
        other=0.0,
    ).to(tl.float32)
    scores = tl.sum(k_SD * q_D[None, :], axis=1) * scale
    scores = tl.where(s <= query, scores, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, axis=0))
    weights = weights / tl.sum(weights, axis=0)
    row = out + (batch * length + query) * length
    tl.store(row + s, weights.to(out.dtype.element_ty), s < length)


def scores_softmax(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal softmax of scale * q k^T for q and k [B, S, D]. Returns [B, S, S]."""
    batch, length, width = q.shape
    out = torch.empty((batch, length, length), dtype=q.dtype, device=q.device)
    blocks = {"BLOCK_S": triton.next_power_of_2(length), "BLOCK_D": triton.next_power_of_2(width)}
    _weights[(length, batch)](q, k, out, scale, length, width, **blocks)
    return out
