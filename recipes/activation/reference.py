"""What activation computes, in plain torch: the functions under the names that transformers gives them."""

import torch
from torch.nn import functional


def activation(x: torch.Tensor, function: str) -> torch.Tensor:
    """Apply `function` to every element of x. Returns the shape and dtype of x."""
    if function == "gelu":
        return functional.gelu(x)
    if function == "gelu_tanh":
        return functional.gelu(x, approximate="tanh")
    if function == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if function == "relu2":
        return functional.relu(x).square()
    if function == "hard_swish":
        return functional.hardswish(x)
    plain = {
        "relu": functional.relu, "relu6": functional.relu6, "silu": functional.silu,
        "softplus": functional.softplus, "mish": functional.mish,
        "sigmoid": torch.sigmoid, "tanh": torch.tanh, "exp": torch.exp,
    }  # fmt: skip
    return plain[function](x)
