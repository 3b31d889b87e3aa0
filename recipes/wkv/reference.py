"""RWKV's time mixing in plain torch: weighted sums over 1, 2, 4 .. tokens, each relative to its largest exponent."""

import torch
from torch.nn import functional

BEFORE_ALL = -1e38  # exponent of a state that holds nothing


def wkv(
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    first: torch.Tensor,
    numerator: torch.Tensor | None,
    denominator: torch.Tensor | None,
    maximum: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns out [B, S, C] in the dtype of key, and numerator, denominator and maximum [B, C] after the last token.

    key and value are [B, S, C], decay and first [C]; numerator, denominator and maximum [B, C], or None for nothing.
    """
    dtype, wide = key.dtype, torch.promote_types(key.dtype, torch.float32)
    key, value, rate, bonus = key.to(wide), value.to(wide), -torch.exp(decay.to(wide)), first.to(wide)
    tokens = key.shape[1]
    if numerator is None or denominator is None or maximum is None:
        numerator = denominator = torch.zeros_like(key[:, 0])
        maximum = numerator + BEFORE_ALL
    # Place 0 is what came before, place t + 1 the token t.
    sums = torch.cat([numerator.to(wide)[:, None], value], 1)
    weights = torch.cat([denominator.to(wide)[:, None], torch.ones_like(key)], 1)
    largest = torch.cat([maximum.to(wide)[:, None], key], 1)
    distance = 1
    while distance <= tokens:  # after this round each place sums over the last 2 * distance
        earlier = (0, 0, distance, 0)
        decayed = functional.pad(largest, earlier, value=BEFORE_ALL)[:, : tokens + 1] + distance * rate
        new = torch.maximum(largest, decayed)
        kept, own = torch.exp(decayed - new), torch.exp(largest - new)
        sums = own * sums + kept * functional.pad(sums, earlier)[:, : tokens + 1]
        weights = own * weights + kept * functional.pad(weights, earlier)[:, : tokens + 1]
        largest = new
        distance *= 2
    new = torch.maximum(largest[:, :-1], key + bonus)
    old, own = torch.exp(largest[:, :-1] - new), torch.exp(key + bonus - new)
    out = (old * sums[:, :-1] + own * value) / (old * weights[:, :-1] + own)
    return out.to(dtype), sums[:, -1], weights[:, -1], largest[:, -1]
