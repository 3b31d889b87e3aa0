"""What embedding computes, in plain torch."""

import torch
from torch.nn import functional


def embedding(ids: torch.Tensor, table: torch.Tensor, offset: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Rows of table [V, H] named by ids [T] + offset, times scale (rounded to the table's dtype). Returns [T, H]."""
    rows = functional.embedding(ids + offset, table)
    return rows if scale == 1.0 else rows * torch.full((), scale, dtype=table.dtype, device=table.device)
