"""The GPU kernel that matmul replaces, in Triton: one program computes one tile of one problem's result.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the matrix multiplication of Triton's tutorials (MIT).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def _multiply(
    a, b, out, rows, features, columns, a_stride, b_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    problem = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total_MN = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, features, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a_MK = tl.load(
            a + problem * a_stride + m[:, None] * features + k[None, :],
            (m[:, None] < rows) & (k[None, :] < features),
            other=0.0,
        )
        b_KN = tl.load(
            b + problem * b_stride + k[:, None] * columns + n[None, :],
            (k[:, None] < features) & (n[None, :] < columns),
            other=0.0,
        )
        total_MN = tl.dot(a_MK, b_KN, total_MN, input_precision="ieee")
    inside = (m[:, None] < rows) & (n[None, :] < columns)
    place = out + problem * rows * columns + m[:, None] * columns + n[None, :]
    tl.store(place, total_MN.to(out.dtype.element_ty), inside)


def matmul(a: torch.Tensor, b: torch.Tensor, wide: bool = False) -> torch.Tensor:
    """a [Z or 1, M, K] times b [Z or 1, K, N]; both contiguous."""
    (left, rows, features), (right, _, columns) = a.shape, b.shape
    problems = max(left, right)
    out_dtype = torch.float32 if wide else a.dtype
    out = torch.empty((problems, rows, columns), dtype=out_dtype, device=a.device)
    grid = (triton.cdiv(rows, BLOCK_M), triton.cdiv(columns, BLOCK_N), problems)
    _multiply[grid](
        a, b, out, rows, features, columns,
        rows * features if left > 1 else 0, features * columns if right > 1 else 0,
        BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    return out
