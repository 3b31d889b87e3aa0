"""What linear_fp8 computes, in plain torch. Up to 240 torch's e4m3 has the bits of the chip's."""

import torch

FORMS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def linear_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    form: str = "e4m3",
) -> torch.Tensor:
    """x [T, K] times weight [K, N] (bits of float8), times scale [N], plus bias [N]. Returns [T, N]."""
    scaled = torch.matmul(x, decoded(weight, form, x.dtype)) * scale
    return (scaled if bias is None else scaled + bias).to(x.dtype)


def decoded(bits: torch.Tensor, form: str, dtype: torch.dtype) -> torch.Tensor:
    """The float8 values that uint8 bits stand for: exact in any float dtype."""
    return bits.view(FORMS[form]).to(dtype)
