"""What gated_mlp computes, in plain torch, with the casts of transformers' LlamaMLP."""

import torch
from torch.nn import functional


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
    """x [T, H], gate and up [H, I], down [I, N]: (activation(x @ gate) * (x @ up)) @ down. Returns [T, N].

    Unless `halves` is "apart", gate and up (and their biases) are halves of weights [H, 2I], in that order.
    """
    gate, gate_bias = half(gate, gate_bias, halves, "gate")
    up, up_bias = half(up, up_bias, halves, "up")
    gated = activated(functional.linear(x, gate.t(), gate_bias), activation)
    return functional.linear(gated * functional.linear(x, up.t(), up_bias), down.t(), down_bias)


def half(
    weight: torch.Tensor, bias: torch.Tensor | None, halves: str, role: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The columns of a weight, and the elements of its bias, that play the role."""
    if halves == "apart":
        return weight, bias
    place = halves.split("_").index(role)
    return weight.chunk(2, dim=-1)[place], None if bias is None else bias.chunk(2)[place]


def activated(gated: torch.Tensor, activation: str) -> torch.Tensor:
    """The activation of that name."""
    if activation == "silu":
        return functional.silu(gated)
    if activation == "relu":
        return functional.relu(gated)
    return functional.gelu(gated, approximate="tanh" if activation == "gelu_tanh" else "none")
