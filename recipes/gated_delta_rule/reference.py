"""The gated delta rule in plain torch: a triangular system within chunks of 64 tokens, a state from chunk to chunk."""

import torch
from torch.nn import functional

CHUNK = 64
NORM_EPSILON = 1e-6


def gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial: torch.Tensor | None,
    normalize: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns out [B, S, H, E] in the dtype of q, and the last state [B, H, D, E] in float32 (float64 for float64).

    q and k are [B, S, K, D], v [B, S, H, E], g and beta [B, S, H], initial [B, H, D, E].
    """
    dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    (batch, tokens, _, depth), (heads, width) = k.shape, v.shape[2:]
    length = min(CHUNK, tokens)

    def chunked(tensor: torch.Tensor) -> torch.Tensor:
        """[B, S, H, ..] as [B, H, chunks, L, ..]; padding neither decays nor writes."""
        repeated = tensor.to(wide).repeat_interleave(heads // tensor.shape[2], 2)
        padded = functional.pad(repeated, [0, 0] * (tensor.ndim - 2) + [0, -tokens % length])
        return padded.reshape(batch, -1, length, heads, *tensor.shape[3:]).movedim(3, 1)

    q, k, v, g, beta = (chunked(tensor) for tensor in (q, k, v, g, beta))
    if normalize:
        q = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + NORM_EPSILON)
        k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + NORM_EPSILON)
    q, beta = q * depth**-0.5, beta[..., None]

    decay = torch.exp(sums_between(g))  # [B, H, n, L, L]
    weights = q @ k.transpose(-1, -2) * decay
    inverse = inverted((k * beta) @ k.transpose(-1, -2) * decay)
    since = torch.exp(g.cumsum(-1))[..., None]
    until_end = decay[..., -1, :, None]
    whole = since[..., -1:, :]
    values, known = inverse @ (v * beta), inverse @ (k * beta * since)
    q, k = q * since, (k * until_end).transpose(-1, -2)

    state = v.new_zeros((batch, heads, depth, width)) if initial is None else initial.to(wide)
    outputs = []
    for chunk in range(v.shape[2]):
        written = values[:, :, chunk] - known[:, :, chunk] @ state
        outputs.append(q[:, :, chunk] @ state + weights[:, :, chunk] @ written)
        state = state * whole[:, :, chunk] + k[:, :, chunk] @ written
    out = torch.cat(outputs, 2)[:, :, :tokens]
    return out.transpose(1, 2).to(dtype), state


def inverted(triangle: torch.Tensor) -> torch.Tensor:
    """The inverse of 1 + the part of `triangle` [.., L, L] below its diagonal, by blocks of doubling length."""
    length = triangle.shape[-1]
    place = torch.arange(length, device=triangle.device)
    inverse = (place[:, None] == place[None, :]).to(triangle.dtype).expand(triangle.shape)
    block = 1
    while block < length:
        row, column = place[:, None] // block, place[None, :] // block
        corner = (row == column + 1) & (row % 2 == 1)  # lower left quarter of each block of twice the length
        inverse = inverse - inverse @ (triangle * corner.to(triangle.dtype)) @ inverse
        block *= 2
    return inverse


def sums_between(values: torch.Tensor) -> torch.Tensor:
    """The sum of values from j + 1 to i at [.., i, j], -inf for j > i; sums, not differences of sums: those cancel."""
    length = values.shape[-1]
    place = torch.arange(length, device=values.device)
    counted = values[..., :, None] * (place[:, None] > place[None, :]).to(values.dtype)
    sums = torch.cumsum(counted, -2)
    return sums.masked_fill(place[:, None] < place[None, :], float("-inf"))
