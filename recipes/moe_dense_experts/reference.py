"""What moe_dense_experts computes, in plain torch: one batched product per projection, as in Llama 4."""

from collections.abc import Callable

import torch
from torch.nn import functional

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda values: functional.gelu(values, approximate="tanh"),
    "relu": functional.relu,
}


def moe_dense_experts(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, activation: str) -> torch.Tensor:
    """Returns [E * T, N] for x [E * T, H], up [E, H, 2 I] (gates, then ups) and down [E, I, N]."""
    gate_ETI, up_ETI = torch.matmul(x.unflatten(0, (up.shape[0], -1)), up).chunk(2, dim=-1)
    return torch.matmul(up_ETI * FUNCTIONS[activation](gate_ETI), down).flatten(0, 1)
