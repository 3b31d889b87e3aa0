"""The GPU kernel that linear_fp8 replaces, in Triton: one program computes one tile of the result.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the matrix multiplication of Triton's tutorials (MIT) and the float8 products of torchao (BSD-3-Clause).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_T, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def _project(
    x, weight, scale, bias, out, tokens, features, columns,
    HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total_TN = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
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
        total_TN = tl.dot(x_TK, weight_KN.to(x_TK.dtype), total_TN, input_precision="ieee")
    total_TN *= tl.load(scale + n, n < columns, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        total_TN += tl.load(bias + n, n < columns, other=0.0).to(tl.float32)[None, :]
    inside = (t[:, None] < tokens) & (n[None, :] < columns)
    tl.store(out + t[:, None] * columns + n[None, :], total_TN.to(out.dtype.element_ty), inside)


def linear_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    form: str = "e4m3",
) -> torch.Tensor:
    """x [T, K] times weight [K, N] (bits of float8), times scale [N], plus bias [N]; all contiguous."""
    (tokens, features), columns = x.shape, weight.shape[1]
    weight = weight.view(torch.float8_e4m3fn if form == "e4m3" else torch.float8_e5m2)
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(tokens, BLOCK_T), triton.cdiv(columns, BLOCK_N))
    _project[grid](
        x, weight, scale, scale if bias is None else bias, out, tokens, features, columns,
        HAS_BIAS=bias is not None, BLOCK_T=BLOCK_T, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    return out
