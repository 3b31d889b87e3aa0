"""What linear_fp8 computes, in plain torch."""

import torch

FORMS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}  # of e4m3 the values up to 240


def linear_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    form: str = "e4m3",
) -> torch.Tensor:
    """x [T, K] times weight [K, N] (bits of float8), times scale [N], plus bias [N]. Returns [T, N]."""
    scaled = torch.matmul(x, weight.view(FORMS[form]).to(x.dtype)) * scale
    return (scaled if bias is None else scaled + bias).to(x.dtype)
