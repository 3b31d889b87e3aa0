"""What linear_fp8 computes, in plain torch. Bits are decoded by arithmetic, every step of it exact in any float dtype."""

import torch

FORMS = {"e4m3": (3, 7), "e5m2": (2, 15)}  # bits of the mantissa, bias of the exponent


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
    """The finite float8 values that uint8 bits stand for."""
    mantissa_bits, exponent_bias = FORMS[form]
    code = bits.to(torch.int32)
    magnitude = code & 127
    exponent = torch.div(magnitude, 2**mantissa_bits, rounding_mode="floor")
    fraction = magnitude & (2**mantissa_bits - 1)
    value = torch.where(exponent > 0, fraction + 2**mantissa_bits, 2 * fraction).to(dtype)  # else subnormal
    for bit in range(
        7 - mantissa_bits
    ):  # times 2 ** exponent, bit by bit: powers of two that every dtype has
        is_set = (exponent & 2**bit) > 0
        value = torch.where(is_set, value * 2.0 ** (2**bit), value)
    value = value * 2.0 ** -(exponent_bias + mantissa_bits)
    return torch.where(code > 127, -value, value)
