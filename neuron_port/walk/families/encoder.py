"""Models that answer in one pass: text encoders, vision and speech encoders, two-tower models, classifiers.

    forward: the model's own inputs by name -> every tensor that its answer holds, by name

Which inputs a model takes is read off its forward's signature and its configuration; a text input brings its
attention mask, so that one graph serves every shorter text. B = batch, S = tokens (or audio samples) of the bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from neuron_port.errors import CheckpointError
from neuron_port.types import Phase
from neuron_port.walk.cutpoints import unobserved
from neuron_port.walk.pooling import Pooling, pooling_of
from neuron_port.walk.program import GraphShapes, Program, takes


class ForwardStep(torch.nn.Module):
    """Wraps a transformers model: one call, all tensors of its answer. It must run inside `intercept`."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str], pooling: Pooling | None = None) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.pooling = pooling

    def forward(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        return tuple(self.answer(dict(zip(self.names, inputs, strict=True))).values())

    def answer(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of the model's answer by their field; where the checkpoint pools, `sentence_embedding` too."""
        options = {"use_cache": False} if takes(self.model, "use_cache") else {}
        output = self.model(**inputs, return_dict=True, **options)
        named = {name: value for name, value in output.items() if torch.is_tensor(value)}
        if self.pooling is not None:
            named["sentence_embedding"] = self.pooling(named["last_hidden_state"], inputs["attention_mask"])
        return named


def programs(model: PreTrainedModel, shapes: GraphShapes) -> list[Program]:
    """One graph for each bucket; a model whose inputs have one size (images) has one graph."""
    made: list[Program] = []
    for size in shapes.buckets:
        inputs = example_inputs(model, batch=shapes.batch, length=size)
        if made and all(tensor.shape == made[0].inputs[name].shape for name, tensor in inputs.items()):
            break  # nothing in it depends on the bucket
        step = ForwardStep(model, tuple(inputs), pooling_of(model))
        with torch.no_grad(), unobserved(model):
            outputs = tuple(step.answer(inputs))
        made.append(
            Program(
                phase="forward",
                step=step,
                inputs=inputs,
                outputs=outputs,
                batch=shapes.batch,
                sequence_length=_length(inputs),
            )
        )
    return made


def run_sample(
    model: PreTrainedModel,
    sample: Mapping[str, torch.Tensor],
    *,
    cache_length: int,
    begin: Callable[[Phase], None],
) -> None:
    """One call on the sample's inputs."""
    begin("forward")
    ForwardStep(model, tuple(sample)).answer(dict(sample))


def _length(inputs: dict[str, torch.Tensor]) -> int:
    """What a bucket counts: tokens, samples or frames; of images, pixels on a side."""
    for name in ("input_ids", "input_values", "input_features", "pixel_values"):
        if name in inputs:
            return int(inputs[name].shape[-1])
    return int(next(iter(inputs.values())).shape[-1])


def example_inputs(model: PreTrainedModel, *, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Inputs of the graph's shapes, zeros (masks: ones) on the model's device, by the names of the model's forward.

    Raises:
        CheckpointError: the model wants an input that we know no shape for.
    """
    device, dtype = next(model.parameters()).device, model.dtype
    found: dict[str, torch.Tensor] = {}
    for name in wanted_inputs(model):
        shape, kind = _shape_of(model, name, batch, length)
        found[name] = (torch.ones if name == "attention_mask" else torch.zeros)(
            shape, dtype=dtype if kind == "float" else torch.int32, device=device
        )
    return found


def wanted_inputs(model: PreTrainedModel) -> list[str]:
    """The inputs of a model's forward that its graph takes, in the order of the signature."""
    main = model.main_input_name
    wanted = [main]
    if takes(model, "pixel_values") and takes(model, "input_ids"):
        wanted = ["input_ids", "pixel_values"]
    if "input_ids" in wanted:
        wanted += [name for name in ("attention_mask", "token_type_ids") if takes(model, name)]
        if getattr(model.config.get_text_config(), "type_vocab_size", 0) < 2:
            wanted = [name for name in wanted if name != "token_type_ids"]
    return wanted


def _shape_of(model: PreTrainedModel, name: str, batch: int, length: int) -> tuple[tuple[int, ...], str]:
    """Shape and kind ("float" or "int") of one input."""
    if name in ("input_ids", "attention_mask", "token_type_ids"):
        return (batch, length), "int"
    if name == "input_values":
        return (batch, length), "float"
    if name == "pixel_values":
        return (batch, *image_shape(model)), "float"
    config = _config_with(model.config, "num_mel_bins")
    if name == "input_features" and hasattr(config, "num_mel_bins"):
        frames = 2 * getattr(config, "max_source_positions", length)
        return (batch, config.num_mel_bins, frames), "float"
    raise CheckpointError(
        f"{type(model).__name__} takes `{name}`, for which no shape is known",
        hint="Text, images, audio samples and spectrograms are.",
    )


def image_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """(channels, height, width) of a picture as the configuration says."""
    config = _config_with(model.config, "image_size")
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


def _config_with(config: Any, attribute: str) -> Any:
    """The configuration, or the part of it, that has the attribute."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    return next((part for part in parts if getattr(part, attribute, None) is not None), config)
