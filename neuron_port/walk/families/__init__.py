"""What graphs a model consists of: causal language models, encoders, and whatever else transformers runs.

A family is told by what the model's class can do (generate, encode and decode, look at images), never by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from transformers import PreTrainedModel

from neuron_port.types import Family, Phase
from neuron_port.walk.families import causal, encoder
from neuron_port.walk.program import GraphShapes, Program


def family_of(model: PreTrainedModel) -> Family:
    """Which family a model is of, from what its class can do."""
    if model.can_generate() and not model.config.is_encoder_decoder:
        return "causal"
    return "encoder"


def programs_of(model: PreTrainedModel, shapes: GraphShapes) -> list[Program]:
    """Every graph of the model, in the order in which they run."""
    return {"causal": causal.programs, "encoder": encoder.programs}[family_of(model)](model, shapes)


def run_sample(
    model: PreTrainedModel,
    sample: Mapping[str, torch.Tensor],
    *,
    cache_length: int,
    begin: Callable[[Phase], None],
) -> None:
    """Run one real input through the model's steps, inside `intercept`; `begin` is told each phase as it begins."""
    runs = {"causal": causal.run_sample, "encoder": encoder.run_sample}
    runs[family_of(model)](model, sample, cache_length=cache_length, begin=begin)
