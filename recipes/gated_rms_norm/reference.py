"""What gated_rms_norm computes, in plain torch, with the casts of transformers' layers.

Gate first is Mamba 2's norm; gate last is that of gated delta nets (Qwen3-Next).
"""

import torch


def gated_rms_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    gamma: torch.Tensor,
    eps: float,
    gate_first: bool,
    groups: int = 1,
    function: str = "silu",
) -> torch.Tensor:
    """Normalise groups of rows of x [T, H], scale by gamma [H], multiply by f(gate) [T, H]. Returns [T, H]."""
    x_float = x.to(torch.promote_types(x.dtype, torch.float32))
    gate_float = gate.to(x_float.dtype)
    opened = torch.nn.functional.silu(gate_float) if function == "silu" else torch.sigmoid(gate_float)
    if gate_first:
        x_float = x_float * opened
    grouped = x_float.reshape(x.shape[0], groups, x.shape[1] // groups)
    normal = grouped * torch.rsqrt(grouped.pow(2).mean(-1, keepdim=True) + eps)
    scaled = gamma * normal.reshape(x.shape).to(x.dtype)
    return scaled if gate_first else (scaled * opened).to(x.dtype)
