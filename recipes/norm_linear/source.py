"""The GPU kernel that norm_linear replaces, in Triton: one program computes one tile, and the mean squares of its rows.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the matrix multiplication of Triton's tutorials (MIT) and Liger-Kernel's rms_norm (BSD-2-Clause).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_T, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def _project(
    x, gamma, weight, bias, out, tokens, features, columns, eps,
    HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total_TN = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    squares_T = tl.zeros((BLOCK_T,), dtype=tl.float32)
    for start in range(0, features, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_TK = tl.load(
            x + t[:, None] * features + k[None, :], (t[:, None] < tokens) & (k[None, :] < features), other=0.0
        )
        weight_KN = tl.load(
            weight + k[:, None] * columns + n[None, :],
            (k[:, None] < features) & (n[None, :] < columns),
            other=0.0,
        )
        squares_T += tl.sum(x_TK.to(tl.float32) * x_TK.to(tl.float32), axis=1)
        scaled_TK = (x_TK * tl.load(gamma + k, k < features, other=0.0)[None, :]).to(x_TK.dtype)
        total_TN = tl.dot(scaled_TK, weight_KN, total_TN, input_precision="ieee")
    total_TN *= tl.rsqrt(squares_T / features + eps)[:, None]
    if HAS_BIAS:
        total_TN += tl.load(bias + n, n < columns, other=0.0).to(tl.float32)[None, :]
    inside = (t[:, None] < tokens) & (n[None, :] < columns)
    tl.store(out + t[:, None] * columns + n[None, :], total_TN.to(out.dtype.element_ty), inside)


def norm_linear(
    x: torch.Tensor,
    gamma: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Normalise rows of x [T, K], scale by gamma [K], project by weight [K, N], add bias [N]; all contiguous."""
    (tokens, features), columns = x.shape, weight.shape[1]
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(tokens, BLOCK_T), triton.cdiv(columns, BLOCK_N))
    _project[grid](
        x, gamma, weight, weight if bias is None else bias, out, tokens, features, columns, eps,
        HAS_BIAS=bias is not None, BLOCK_T=BLOCK_T, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    return out
