"""The GPU kernels that gated_mlp replaces, in Triton: gate, up and activation in one launch, down in a second.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the matrix multiplication of Triton's tutorials (MIT) and Liger-Kernel's swiglu and geglu (BSD-2-Clause).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_T, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def _tile(base, rows, columns, row_count, column_count, stride):
    """Load base[rows, columns] of a [row_count, column_count] matrix with rows `stride` apart, zero outside."""
    inside = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    return tl.load(base + rows[:, None] * stride + columns[None, :], inside, other=0.0)


@triton.jit
def _activate(gated, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return gated * tl.sigmoid(gated)
    if ACTIVATION == "relu":
        return tl.maximum(gated, 0.0)
    if ACTIVATION == "gelu_tanh":  # tanh(x) is 2 * sigmoid(2 * x) - 1
        return gated * tl.sigmoid(1.5957691216057308 * (gated + 0.044715 * gated * gated * gated))
    return 0.5 * gated * (1.0 + tl.erf(gated * 0.7071067811865476))


@triton.jit
def _gate_up(
    x, gate, up, gate_bias, up_bias, out, tokens, hidden, intermediate, stride, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate_TI = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    up_TI = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for start in range(0, hidden, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_TK = _tile(x, t, k, tokens, hidden, hidden)
        gate_KI = _tile(gate, k, i, hidden, intermediate, stride)
        up_KI = _tile(up, k, i, hidden, intermediate, stride)
        gate_TI = tl.dot(x_TK, gate_KI, gate_TI, input_precision="ieee")
        up_TI = tl.dot(x_TK, up_KI, up_TI, input_precision="ieee")
    if HAS_BIAS:
        gate_TI += tl.load(gate_bias + i, i < intermediate, other=0.0).to(tl.float32)[None, :]
        up_TI += tl.load(up_bias + i, i < intermediate, other=0.0).to(tl.float32)[None, :]
    hidden_TI = _activate(gate_TI, ACTIVATION) * up_TI
    inside = (t[:, None] < tokens) & (i[None, :] < intermediate)
    tl.store(out + t[:, None] * intermediate + i[None, :], hidden_TI.to(out.dtype.element_ty), inside)


@triton.jit
def _down(
    x, weight, bias, out, tokens, features, columns, HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total_TN = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for start in range(0, features, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_TK = _tile(x, t, k, tokens, features, features)
        weight_KN = _tile(weight, k, n, features, columns, columns)
        total_TN = tl.dot(x_TK, weight_KN, total_TN, input_precision="ieee")
    if HAS_BIAS:
        total_TN += tl.load(bias + n, n < columns, other=0.0).to(tl.float32)[None, :]
    inside = (t[:, None] < tokens) & (n[None, :] < columns)
    tl.store(out + t[:, None] * columns + n[None, :], total_TN.to(out.dtype.element_ty), inside)


def gated_mlp(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    gate_bias: torch.Tensor | None = None,
    up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    activation: str = "silu",
    halves: str = "apart",
) -> torch.Tensor:
    """x [T, H], gate and up [H, I] or halves of [H, 2I], down [I, N]: (activation(x @ gate) * (x @ up)) @ down.

    gate and up have a bias both, or neither.
    """
    (tokens, hidden), (intermediate, columns), stride = x.shape, down.shape, gate.shape[1]
    activated = torch.empty((tokens, intermediate), dtype=x.dtype, device=x.device)
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    blocks = {"BLOCK_T": BLOCK_T, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    rows = triton.cdiv(tokens, BLOCK_T)
    has_bias = gate_bias is not None and up_bias is not None
    gate_bias, up_bias = (gate_bias, up_bias) if has_bias else (gate[0], up[0])
    if halves == "gate_up":
        up, up_bias = up[:, intermediate:], up_bias[intermediate:]
    if halves == "up_gate":
        gate, gate_bias = gate[:, intermediate:], gate_bias[intermediate:]
    _gate_up[(rows, triton.cdiv(intermediate, BLOCK_N))](
        x, gate, up, gate_bias, up_bias, activated, tokens, hidden, intermediate, stride,
        HAS_BIAS=has_bias, ACTIVATION=activation, **blocks,
    )  # fmt: skip
    _down[(rows, triton.cdiv(columns, BLOCK_N))](
        activated, down, down if down_bias is None else down_bias, out, tokens, intermediate, columns,
        HAS_BIAS=down_bias is not None, **blocks,
    )  # fmt: skip
    return out
