"""What kv_cache_update computes, in plain torch: each slot takes a new token where there is one, else what it held."""

import torch


def kv_cache_update(
    cache: torch.Tensor, new: torch.Tensor, positions: torch.Tensor, axis: int
) -> torch.Tensor:
    """Returns a tensor like cache [B, G, ..] with row b of `new` written along `axis` from positions[b] on."""
    slots = torch.arange(cache.shape[axis], device=cache.device)
    tokens = torch.arange(new.shape[axis], device=cache.device)
    placed_BCS = slots[None, :, None] == (positions[:, None] + tokens)[:, None, :]
    values = new if axis == 2 else new.transpose(2, 3)  # [B, G, S, D]
    # A product with ones and zeros moves tokens to their slots exactly.
    moved = torch.matmul(placed_BCS[:, None].to(values.dtype), values)
    filled = placed_BCS.any(-1)[:, None, :, None]
    if axis == 3:
        moved, filled = moved.transpose(2, 3), filled.transpose(2, 3)
    return torch.where(filled, moved, cache)
