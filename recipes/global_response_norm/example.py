"""A layer that global_response_norm must match, as ConvNeXt V2 has it: `neuron-port recipes check` probes this one."""

import torch


class GlobalResponseNorm(torch.nn.Module):
    """Channels compete by their norm over the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.bias = torch.nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] -> [B, H, W, C]."""
        norm = features.square().sum(dim=(1, 2), keepdim=True).sqrt()
        relative = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return self.weight * (features * relative) + self.bias + features


def example() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The layer and the arguments of one call, shapes as in a model; the probe draws parameters and values anew."""
    return GlobalResponseNorm(48), (torch.zeros(2, 7, 7, 48),)
