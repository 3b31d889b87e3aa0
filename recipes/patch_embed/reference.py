"""What patch_embed computes, in plain torch."""

import torch
from torch.nn import functional


def patch_embed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [B, C, H, W], weight [C, R, S, O], bias [O] or none. Returns [B, (H // R) * (W // S), O], in reading order."""
    images, channels, height, width = x.shape
    _, patch_rows, patch_columns, features = weight.shape
    rows, columns = height // patch_rows, width // patch_columns
    whole = x[:, :, : rows * patch_rows, : columns * patch_columns]
    parts = whole.reshape(images, channels, rows, patch_rows, columns, patch_columns)
    patches = parts.permute(0, 2, 4, 1, 3, 5).reshape(images, rows * columns, -1)
    return functional.linear(patches, weight.reshape(-1, features).t(), bias)
