"""The GPU kernels that mlp replaces, in Triton: one projection with an epilogue, launched twice.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the matrix multiplication of Triton's tutorials (MIT) and the fused MLP of flash-attention (BSD-3-Clause).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_T, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def _activate(hidden, ACTIVATION: tl.constexpr):
    if ACTIVATION == "none":
        return hidden
    if ACTIVATION == "relu":
        return tl.maximum(hidden, 0.0)
    if ACTIVATION == "relu2":
        positive = tl.maximum(hidden, 0.0)
        return positive * positive
    if ACTIVATION == "silu":
        return hidden * tl.sigmoid(hidden)
    if ACTIVATION == "quick_gelu":
        return hidden * tl.sigmoid(1.702 * hidden)
    if ACTIVATION == "gelu_tanh":  # tanh(x) is 2 * sigmoid(2 * x) - 1
        return hidden * tl.sigmoid(1.5957691216057308 * (hidden + 0.044715 * hidden * hidden * hidden))
    return 0.5 * hidden * (1.0 + tl.erf(hidden * 0.7071067811865476))


@triton.jit
def _project(
    x, weight, bias, out, tokens, features, columns, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
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
        total_TN = tl.dot(x_TK, weight_KN, total_TN, input_precision="ieee")
    if HAS_BIAS:
        total_TN += tl.load(bias + n, n < columns, other=0.0).to(tl.float32)[None, :]
    inside = (t[:, None] < tokens) & (n[None, :] < columns)
    active_TN = _activate(total_TN, ACTIVATION)
    tl.store(out + t[:, None] * columns + n[None, :], active_TN.to(out.dtype.element_ty), inside)


def _projected(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    (tokens, features), columns = x.shape, weight.shape[1]
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(tokens, BLOCK_T), triton.cdiv(columns, BLOCK_N))
    _project[grid](
        x, weight, x if bias is None else bias, out, tokens, features, columns,
        HAS_BIAS=bias is not None, ACTIVATION=activation, BLOCK_T=BLOCK_T, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    return out


def mlp(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    activation: str = "gelu",
) -> torch.Tensor:
    """x [T, H], up [H, I], down [I, N], all contiguous: activation(x @ up + up_bias) @ down + down_bias."""
    return _projected(_projected(x, up, up_bias, activation), down, down_bias, "none")
