"""One step of a selective state space in plain torch, with the casts of transformers' own function."""

import torch
from torch.nn import functional


def selective_state_update(
    state: torch.Tensor,
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
    """Returns y [B, R] and the new state [B, R, N].

    state is [B, R, N], x, dt and z are [B, R], a [R, N], b and c [B, G, N], d and dt_bias [R].
    """
    batch, channels, states = state.shape
    groups = b.shape[1]
    wide = torch.promote_types(state.dtype, torch.float32)
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if softplus:
        dt = functional.softplus(dt)
    step = dt.to(wide)[..., None]
    taken = (step * x.to(wide)[..., None]).reshape(batch, groups, channels // groups, 1) * b.to(wide)[
        :, :, None
    ]
    new = state.to(wide) * torch.exp(step * a.to(wide)) + taken.reshape(state.shape)
    grouped = new.to(c.dtype).reshape(batch, groups, channels // groups, states)
    y = (grouped @ c[..., None]).reshape(batch, channels)
    if d is not None:
        y = y + x * d
    if z is not None:
        y = y * functional.silu(z)
    return y.to(x.dtype), new.to(state.dtype)
