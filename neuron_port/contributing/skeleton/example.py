"""A layer that my_recipe must match, as a model has it: `neuron-port recipes check` probes this one."""

import torch


class MyRecipe(torch.nn.Module):
    """Raise values below `floor` to it, then scale each feature."""

    def __init__(self, hidden: int, floor: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden))
        self.floor = floor

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H]."""
        return self.weight * hidden_states.clamp(min=self.floor)


def example() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The layer and the arguments of one call, shapes as in a model; the probe draws parameters and values anew."""
    return MyRecipe(64, -0.25), (torch.zeros(2, 5, 64),)
