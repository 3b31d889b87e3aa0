"""What global_response_norm computes, in plain torch, with the order of transformers' ConvNextV2GRN."""

import torch

EPSILON = 1e-6  # ConvNeXt V2 has it in its code, not among its attributes


def global_response_norm(x: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Scale channels of x [B, T, C] by their relative norm over T; gain, shift: [C]. Returns [B, T, C]."""
    norm = torch.linalg.vector_norm(x, ord=2, dim=1, keepdim=True)
    relative = norm / (norm.mean(dim=-1, keepdim=True) + EPSILON)
    return gain * (x * relative) + shift + x
