"""What gated_mlp computes, in plain torch, with the casts of transformers' LlamaMLP."""

import torch
from torch.nn import functional


def gated_mlp(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """x [T, H], gate and up [H, I], down [I, N]: (silu(x @ gate) * (x @ up)) @ down. Returns [T, N]."""
    hidden = functional.silu(functional.linear(x, gate.t())) * functional.linear(x, up.t())
    return functional.linear(hidden, down.t())
