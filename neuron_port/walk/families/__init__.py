"""What graphs a model consists of: causal language models, encoders, and whatever else transformers runs.

A family is told by what the model's class can do (generate, encode and decode, look at images), never by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from neuron_port.errors import CheckpointError, NeuronPortError
from neuron_port.types import Family, Phase
from neuron_port.walk.families import causal, encoder, sequence_to_sequence, vision_language
from neuron_port.walk.program import GraphShapes, Program, takes

_FAMILIES: dict[Family, Any] = {
    "causal": causal,
    "encoder": encoder,
    "sequence to sequence": sequence_to_sequence,
    "vision language": vision_language,
}


def family_of(model: PreTrainedModel) -> Family:
    """Which family a model is of, from what its class can do."""
    if not model.can_generate():
        return "encoder"
    if model.config.is_encoder_decoder:
        return "sequence to sequence"
    sees = takes(model, "pixel_values") and takes(model, "input_ids")
    return "vision language" if sees else "causal"


def programs_of(model: PreTrainedModel, shapes: GraphShapes) -> list[Program]:
    """Every graph of the model, in the order in which they run."""
    try:
        made: list[Program] = _FAMILIES[family_of(model)].programs(model, shapes)
    except NeuronPortError:
        raise
    except (
        RuntimeError,
        ValueError,
        IndexError,
        TypeError,
    ) as error:  # what the model's own code makes of shapes
        raise CheckpointError(
            f"{type(model).__name__} does not run on inputs of {', '.join(map(str, shapes.buckets))}: "
            f"{' '.join(str(error).split())[:200]}",
            hint="Try other --buckets: tokens of a text, samples of a sound.",
        ) from error
    return made


def run_sample(
    model: PreTrainedModel,
    sample: Mapping[str, torch.Tensor],
    *,
    cache_length: int,
    begin: Callable[[Phase], None],
) -> None:
    """Run one real input through the model's steps, inside `intercept`; `begin` is told each phase as it begins."""
    _FAMILIES[family_of(model)].run_sample(model, sample, cache_length=cache_length, begin=begin)
