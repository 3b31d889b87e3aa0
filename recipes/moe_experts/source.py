"""Experts of a mixture in Triton: the GPU kernels that `kernel.py` replaces.

One program computes a tile of columns for one (token, choice): first the hidden activation, then the down projection;
the choices of a token are summed with its scores by the caller.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the fused mixture-of-experts kernels of vLLM (Apache-2.0), which give every program one expert's weights,
and the tutorials of Triton (MIT). No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_N, BLOCK_K = 32, 32


@triton.jit
def _row_times_columns(
    row, weight, bias, features, stride, column, inside, HAS_BIAS: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """A row of `features` times the columns at `column`, rows `stride` apart, in float32."""
    total = tl.zeros(column.shape, dtype=tl.float32)
    for start in range(0, features, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        values = tl.load(row + k, k < features, other=0.0).to(tl.float32)
        mask = (k[:, None] < features) & inside[None, :]
        tile = tl.load(weight + k[:, None] * stride + column[None, :], mask, other=0.0).to(tl.float32)
        total += tl.sum(values[:, None] * tile, 0)
    if HAS_BIAS:
        total += tl.load(bias + column, inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def _activate(values, alpha, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        result = 0.5 * values * (1.0 + tl.erf(values * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        inner = 1.5957691216057308 * (values + 0.044715 * values * values * values)
        result = values * tl.sigmoid(inner)
    elif ACTIVATION == "relu":
        result = tl.maximum(values, 0.0)
    elif ACTIVATION == "relu_squared":
        result = tl.maximum(values, 0.0) * tl.maximum(values, 0.0)
    else:
        result = values * tl.sigmoid(alpha * values)
    return result


@triton.jit
def _hidden(
    x, index, up, up_bias, hidden, choices, features, intermediate, columns, gate_step, gate_to_up,
    alpha, limit, up_offset,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0)
    expert = tl.load(index + pair).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < intermediate
    row = x + (pair // choices) * features
    weight, bias = up + expert * features * columns, up_bias + expert * columns
    column = n * gate_step
    gate = _row_times_columns(row, weight, bias, features, columns, column, inside, HAS_BIAS, BLOCK_K)
    if GATED:
        other = _row_times_columns(
            row, weight, bias, features, columns, column + gate_to_up, inside, HAS_BIAS, BLOCK_K
        )
        if limit > 0:
            gate = tl.minimum(gate, limit)
            other = tl.maximum(tl.minimum(other, limit), -limit)
        result = _activate(gate, alpha, ACTIVATION) * (other + up_offset)
    else:
        result = _activate(gate, alpha, ACTIVATION)
    tl.store(hidden + pair * intermediate + n, result.to(hidden.dtype.element_ty), inside)


@triton.jit
def _down(
    hidden, index, down, down_bias, out, intermediate, columns,
    HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0)
    expert = tl.load(index + pair).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < columns
    weight, bias = down + expert * intermediate * columns, down_bias + expert * columns
    row = hidden + pair * intermediate
    total = _row_times_columns(row, weight, bias, intermediate, columns, n, inside, HAS_BIAS, BLOCK_K)
    tl.store(out + pair * columns + n, total, inside)


def moe_experts(
    x: torch.Tensor, index: torch.Tensor, scores: torch.Tensor, up: torch.Tensor, down: torch.Tensor,
    up_bias: torch.Tensor | None, down_bias: torch.Tensor | None,
    activation: str, gating: str, alpha: float, limit: float, up_offset: float,
) -> torch.Tensor:  # fmt: skip
    """Returns [T, N] for x [T, H], index and scores [T, C], up [E, H, M], down [E, I, N]; all contiguous."""
    (tokens, features), choices = x.shape, index.shape[1]
    intermediate, columns = down.shape[1:]
    pairs = tokens * choices
    hidden = torch.empty((pairs, intermediate), dtype=x.dtype, device=x.device)
    parts = torch.empty((tokens, choices, columns), dtype=torch.float32, device=x.device)
    gate_step, gate_to_up = (2, 1) if gating == "interleaved" else (1, intermediate)
    blocks = {"BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    _hidden[(pairs, triton.cdiv(intermediate, BLOCK_N))](
        x, index, up, up if up_bias is None else up_bias, hidden, choices, features, intermediate, up.shape[2],
        gate_step, gate_to_up, alpha, limit, up_offset,
        ACTIVATION=activation, GATED=gating != "none", HAS_BIAS=up_bias is not None, **blocks,
    )  # fmt: skip
    _down[(pairs, triton.cdiv(columns, BLOCK_N))](
        hidden, index, down, down if down_bias is None else down_bias, parts, intermediate, columns,
        HAS_BIAS=down_bias is not None, **blocks,
    )  # fmt: skip
    return (parts * scores[..., None]).sum(1).to(x.dtype)
