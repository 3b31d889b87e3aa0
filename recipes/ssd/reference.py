"""State-space duality (Mamba-2) in plain torch: chunks as masked attention, and a decay matrix between chunks."""

import torch
from torch.nn import functional

CHUNK = 64


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    initial: torch.Tensor | None,
    softplus: bool,
    dt_low: float,
    dt_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns y [B, S, H, D] and the last state [B, H, D, N], in float32 (float64 for float64).

    x is [B, S, H, D], dt [B, S, H], a, d and dt_bias [H], b and c [B, S, G, N], initial [B, H, D, N].
    """
    batch, tokens, heads, head_dim = x.shape
    share = heads // b.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if softplus:
        dt = functional.softplus(dt)
    dt = dt.clamp(dt_low, dt_high).to(wide)
    x, b, c = x.to(wide), b.to(wide).repeat_interleave(share, 2), c.to(wide).repeat_interleave(share, 2)
    length = min(CHUNK, tokens)

    def chunked(tensor: torch.Tensor) -> torch.Tensor:
        """[B, S, H, ..] as [B, chunks, H, L, ..]; padding neither decays nor adds."""
        padding = [0, 0] * (tensor.ndim - 2) + [0, -tokens % length]
        padded = functional.pad(tensor, padding)
        return padded.reshape(batch, -1, length, *tensor.shape[2:]).transpose(2, 3)

    log_decay, stepped = chunked(dt * a.to(wide)), chunked(x * dt[..., None])  # [B, n, H, L], [B, n, H, L, D]
    b, c = chunked(b), chunked(c)
    decay = torch.exp(sums_between(log_decay))  # [B, n, H, L, L]
    within = (c @ b.transpose(-1, -2) * decay) @ stepped

    until_end = torch.exp(sums_between(log_decay)[..., -1, :])
    taken = (stepped * until_end[..., None]).transpose(-1, -2) @ b  # [B, n, H, D, N]
    before = torch.zeros_like(taken[:, :1]) if initial is None else initial.to(wide)[:, None]
    whole = functional.pad(log_decay.sum(-1), (0, 0, 1, 0)).transpose(1, 2)  # [B, H, n + 1], 0 first
    carried = torch.exp(sums_between(whole))  # [B, H, n + 1, n + 1]
    given = torch.cat([before, taken], 1).transpose(1, 2)  # [B, H, n + 1, D, N]
    states = (carried @ given.flatten(3)).reshape(given.shape)
    since = torch.exp(log_decay.cumsum(-1))
    across = (c * since[..., None]) @ states[:, :, :-1].transpose(1, 2).transpose(-1, -2)

    y = (within + across).transpose(2, 3).reshape(batch, -1, heads, head_dim)[:, :tokens]
    if d is not None:
        y = y + d.to(wide)[:, None] * x
    return y, states[:, :, -1]


def sums_between(values: torch.Tensor) -> torch.Tensor:
    """The sum of values from j + 1 to i at [.., i, j], -inf for j > i; sums, not differences of sums: those cancel."""
    length = values.shape[-1]
    place = torch.arange(length, device=values.device)
    counted = values[..., :, None] * (place[:, None] > place[None, :]).to(values.dtype)
    sums = torch.cumsum(counted, -2)
    return sums.masked_fill(place[:, None] < place[None, :], float("-inf"))
