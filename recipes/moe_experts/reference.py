"""What moe_experts computes, in plain torch: every expert for every token, weighted by what the router gave it.

No shape depends on data. The order of casts is that of transformers' grouped implementation: the products round to the
dtype of x, the weighted sum over experts does not.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda values: functional.gelu(values, approximate="tanh"),
    "relu": functional.relu,
    "relu_squared": lambda values: torch.square(functional.relu(values)),
}


def moe_experts(
    x: torch.Tensor,
    index: torch.Tensor,
    scores: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    activation: str,
    gating: str,
    alpha: float,
    limit: float,
    up_offset: float,
) -> torch.Tensor:
    """Returns [T, N] for x [T, H], index and scores [T, C], up [E, H, M], down [E, I, N]."""
    sums_ETM = torch.matmul(x, up)
    if up_bias is not None:
        sums_ETM = sums_ETM + up_bias[:, None]
    hidden_ETI = _hidden(sums_ETM, activation, gating, alpha, limit, up_offset)
    result_ETN = torch.matmul(hidden_ETI, down)
    if down_bias is not None:
        result_ETN = result_ETN + down_bias[:, None]
    numbers = torch.arange(up.shape[0], device=index.device, dtype=index.dtype)
    share_TE = torch.where(index[..., None] == numbers, scores[..., None], 0).sum(1)
    return (result_ETN * share_TE.t()[..., None]).sum(0).to(x.dtype)


def _hidden(
    sums: torch.Tensor, activation: str, gating: str, alpha: float, limit: float, up_offset: float
) -> torch.Tensor:
    if gating == "none":
        return _activate(sums, activation, alpha)
    if gating == "interleaved":
        gate, up = sums[..., ::2], sums[..., 1::2]
    else:
        gate, up = sums.chunk(2, dim=-1)
    if limit > 0:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    activated = _activate(gate, activation, alpha)
    return activated * (up + up_offset if up_offset else up)


def _activate(values: torch.Tensor, activation: str, alpha: float) -> torch.Tensor:
    if activation == "silu" and alpha != 1.0:
        return values * torch.sigmoid(values * alpha)
    return FUNCTIONS[activation](values)
