"""What mlp computes, in plain torch, with the casts of transformers' MLPs."""

import torch
from torch.nn import functional


def mlp(
    x: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    activation: str = "gelu",
) -> torch.Tensor:
    """x [T, H], up [H, I], down [I, N]: activation(x @ up + up_bias) @ down + down_bias. Returns [T, N]."""
    hidden = activated(functional.linear(x, up.t(), up_bias), activation)
    return functional.linear(hidden, down.t(), down_bias)


def activated(hidden: torch.Tensor, activation: str) -> torch.Tensor:
    """The activation of that name."""
    if activation == "silu":
        return functional.silu(hidden)
    if activation == "quick_gelu":
        return hidden * torch.sigmoid(1.702 * hidden)
    if activation == "relu":
        return functional.relu(hidden)
    if activation == "relu2":
        return functional.relu(hidden).square()
    return functional.gelu(hidden, approximate="tanh" if activation == "gelu_tanh" else "none")
