"""What activation computes, in plain torch: the functions under the names that transformers gives them."""

import torch
import torch.nn.functional as F


def activation(x: torch.Tensor, function: str) -> torch.Tensor:
    """Apply `function` to every element of x. Returns the shape and dtype of x."""
    if function == "gelu":
        return F.gelu(x)
    if function == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if function == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if function == "relu2":
        return F.relu(x).square()
    if function == "hard_swish":
        return F.hardswish(x)
    plain = {
        "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
        "softplus": F.softplus, "mish": F.mish, "exp": torch.exp,
    }  # fmt: skip
    return plain[function](x)
