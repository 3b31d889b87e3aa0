"""Selective scan (Mamba) in plain torch, with the casts of transformers' own function; the scan takes log2(S) steps."""

import torch
from torch.nn import functional


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    softplus: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns y [B, E, S] and the last state [B, E, N].

    x, dt and z are [B, E, S], a [E, N], b and c [B, N, S], d and dt_bias [E].
    """
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)[:, None]
    if softplus:
        dt = functional.softplus(dt)
    wide = torch.promote_types(x.dtype, torch.float32)
    decay = torch.exp(a[:, :, None] * dt[:, :, None, :])  # [B, E, N, S]
    states = dt[:, :, None, :] * b[:, None].to(wide) * x[:, :, None, :].to(wide)
    decay, steps = decay.to(wide), x.shape[-1]
    distance = 1
    while distance < steps:  # after this round each state sums over the last 2 * distance steps
        states = states + decay * functional.pad(states, (distance, 0))[..., :steps]
        decay = decay * functional.pad(decay, (distance, 0))[..., :steps]
        distance *= 2
    weighted = states.permute(0, 3, 1, 2).to(x.dtype) @ c.transpose(1, 2)[..., None]  # [B, S, E, 1]
    y = weighted.squeeze(-1).transpose(1, 2)
    if d is not None:
        y = y + x * d[:, None]
    if z is not None:
        y = y * functional.silu(z)
    return y, states[..., -1]
