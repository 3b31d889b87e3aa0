"""The GPU kernels that gated_mlp replaces, in Triton: gate, up and silu in one launch, down in a second.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the matrix multiplication of Triton's tutorials (MIT) and Liger-Kernel's swiglu (BSD-2-Clause).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_T, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def _tile(base, rows, columns, row_count, column_count):
    """Load base[rows, columns] of a contiguous [row_count, column_count] matrix, zero outside."""
    inside = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    return tl.load(base + rows[:, None] * column_count + columns[None, :], inside, other=0.0)


@triton.jit
def _gate_up(
    x, gate, up, out, tokens, hidden, intermediate,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate_TI = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    up_TI = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for start in range(0, hidden, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_TK = _tile(x, t, k, tokens, hidden)
        gate_TI = tl.dot(x_TK, _tile(gate, k, i, hidden, intermediate), gate_TI, input_precision="ieee")
        up_TI = tl.dot(x_TK, _tile(up, k, i, hidden, intermediate), up_TI, input_precision="ieee")
    hidden_TI = gate_TI * tl.sigmoid(gate_TI) * up_TI
    inside = (t[:, None] < tokens) & (i[None, :] < intermediate)
    tl.store(out + t[:, None] * intermediate + i[None, :], hidden_TI.to(out.dtype.element_ty), inside)


@triton.jit
def _down(
    x, weight, out, tokens, features, columns,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total_TN = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for start in range(0, features, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_TK = _tile(x, t, k, tokens, features)
        total_TN = tl.dot(x_TK, _tile(weight, k, n, features, columns), total_TN, input_precision="ieee")
    inside = (t[:, None] < tokens) & (n[None, :] < columns)
    tl.store(out + t[:, None] * columns + n[None, :], total_TN.to(out.dtype.element_ty), inside)


def gated_mlp(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """x [T, H], gate and up [H, I], down [I, N], all contiguous: (silu(x @ gate) * (x @ up)) @ down."""
    (tokens, hidden), intermediate, columns = x.shape, gate.shape[1], down.shape[1]
    activated = torch.empty((tokens, intermediate), dtype=x.dtype, device=x.device)
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    blocks = {"BLOCK_T": BLOCK_T, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    rows = triton.cdiv(tokens, BLOCK_T)
    grid = (rows, triton.cdiv(intermediate, BLOCK_N))
    _gate_up[grid](x, gate, up, activated, tokens, hidden, intermediate, **blocks)
    grid = (rows, triton.cdiv(columns, BLOCK_N))
    _down[grid](activated, down, out, tokens, intermediate, columns, **blocks)
    return out
