"""Experts with tokens of their own in Triton: the GPU kernels that `kernel.py` replaces.

One program computes a tile of rows and columns of one expert: first gate and up, then the down projection.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the matrix multiplication of Triton's tutorials (MIT). No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_T, BLOCK_N, BLOCK_K = 16, 32, 32


@triton.jit
def _product(
    x, weight, t, n, tokens, features, stride, columns,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows t of x [tokens, features] times columns n of a weight whose rows are `stride` apart, in float32."""
    total = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for start in range(0, features, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        rows = tl.load(
            x + t[:, None] * features + k[None, :], (t[:, None] < tokens) & (k[None, :] < features), other=0.0
        )
        inside = (k[:, None] < features) & (n[None, :] < columns)
        tile = tl.load(weight + k[:, None] * stride + n[None, :], inside, other=0.0)
        total = tl.dot(rows, tile, total, input_precision="ieee")
    return total


@triton.jit
def _hidden(
    x, up, hidden, tokens, features, intermediate,
    ACTIVATION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    x += expert * tokens * features
    up += expert * features * 2 * intermediate
    gate = _product(x, up, t, n, tokens, features, 2 * intermediate, intermediate, BLOCK_T, BLOCK_N, BLOCK_K)
    other = _product(
        x,
        up + intermediate,
        t,
        n,
        tokens,
        features,
        2 * intermediate,
        intermediate,
        BLOCK_T,
        BLOCK_N,
        BLOCK_K,
    )
    if ACTIVATION == "gelu":
        gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    elif ACTIVATION == "relu":
        gate = tl.maximum(gate, 0.0)
    else:
        gate = gate * tl.sigmoid(gate)
    place = (expert * tokens + t[:, None]) * intermediate + n[None, :]
    inside = (t[:, None] < tokens) & (n[None, :] < intermediate)
    tl.store(hidden + place, (gate * other).to(hidden.dtype.element_ty), inside)


@triton.jit
def _down(
    hidden, down, out, tokens, intermediate, columns,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    hidden += expert * tokens * intermediate
    down += expert * intermediate * columns
    total = _product(hidden, down, t, n, tokens, intermediate, columns, columns, BLOCK_T, BLOCK_N, BLOCK_K)
    place = (expert * tokens + t[:, None]) * columns + n[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), (t[:, None] < tokens) & (n[None, :] < columns))


def moe_dense_experts(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, activation: str) -> torch.Tensor:
    """Returns [E * T, N] for x [E * T, H], up [E, H, 2 I] and down [E, I, N]; all contiguous."""
    experts, intermediate, columns = down.shape
    (rows, features), tokens = x.shape, x.shape[0] // experts
    hidden = torch.empty((rows, intermediate), dtype=x.dtype, device=x.device)
    out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    blocks = {"BLOCK_T": BLOCK_T, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    tiles = triton.cdiv(tokens, BLOCK_T)
    _hidden[(experts, tiles, triton.cdiv(intermediate, BLOCK_N))](
        x, up, hidden, tokens, features, intermediate, ACTIVATION=activation, **blocks
    )
    _down[(experts, tiles, triton.cdiv(columns, BLOCK_N))](
        hidden, down, out, tokens, intermediate, columns, **blocks
    )
    return out
