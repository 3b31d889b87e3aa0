"""Linear layer, bias and exact GELU in Triton: one program computes one tile of the result.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the matrix multiplication of Triton's tutorials (MIT).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_T, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def _project(
    x, weight, bias, out, tokens, features, columns,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for start in range(0, features, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = tl.load(
            x + t[:, None] * features + k[None, :], (t[:, None] < tokens) & (k[None, :] < features), other=0.0
        )
        right = tl.load(
            weight + k[:, None] * columns + n[None, :],
            (k[:, None] < features) & (n[None, :] < columns),
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision="ieee")
    total += tl.load(bias + n, n < columns, other=0.0).to(tl.float32)[None, :]
    # 0.7071... is 1 / sqrt(2).
    total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    inside = (t[:, None] < tokens) & (n[None, :] < columns)
    tl.store(out + t[:, None] * columns + n[None, :], total.to(out.dtype.element_ty), inside)


def bias_gelu_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(x @ weight + bias) for x [T, K], weight [K, N], bias [N], all contiguous."""
    (tokens, features), columns = x.shape, weight.shape[1]
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(tokens, BLOCK_T), triton.cdiv(columns, BLOCK_N))
    blocks = {"BLOCK_T": BLOCK_T, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    _project[grid](x, weight, bias, out, tokens, features, columns, **blocks)
    return out
