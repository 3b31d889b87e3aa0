"""Inputs for the proofs: the prompts' texts where a model reads text, made pictures and sounds where it does not.

Without a tokenizer random tokens stand in for texts. Pictures are smooth coloured gradients, sounds are chords: nothing
that a model was trained on, but shaped like what it was, and the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from neuron_port.walk.families.encoder import example_inputs, wanted_inputs
from neuron_port.walk.families.vision_language import picture_of, prompt_with_picture

if TYPE_CHECKING:
    from neuron_port.pipeline.workbench import Workbench

Sample = Mapping[str, torch.Tensor]


def make_sample(work: Workbench, number: int) -> dict[str, torch.Tensor]:
    """One input of the model, one row: of a causal model `input_ids` int64 [1, L] alone."""
    prompt = work.options.prompts[number]
    if work.family == "causal":
        return {"input_ids": torch.tensor([work.prompt_ids(prompt, number)])}
    if work.family == "vision language":
        return _prompt_with_picture(work, number)
    skeleton = work.skeleton(torch.float32)
    names = wanted_inputs(skeleton)
    made: dict[str, torch.Tensor] = {}
    if "input_ids" in names:
        made |= _text(work, number)
    longest = max(work.options.buckets)
    shapes = example_inputs(skeleton, batch=1, length=longest)
    for name in names:
        if name in made:
            continue
        made[name] = (
            picture_values(shapes[name].shape, number)
            if name == "pixel_values"
            else _sound(shapes[name].shape, number)
        )
    sample = {name: made[name] for name in names}
    if work.family == "sequence to sequence":
        start = work.config.decoder_start_token_id
        sample["decoder_input_ids"] = torch.tensor([[0 if start is None else start]])
    return sample


def _text(work: Workbench, number: int) -> dict[str, torch.Tensor]:
    ids = torch.tensor([work.prompt_ids(work.options.prompts[number], number)])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


def _prompt_with_picture(work: Workbench, number: int) -> dict[str, torch.Tensor]:
    """A picture and the prompt's text behind it, with what else the model and its graphs take beside them."""
    skeleton = work.skeleton(torch.float32)
    picture = picture_of(skeleton, min(work.options.buckets))
    ids = work.prompt_ids(work.options.prompts[number], number)
    sample = prompt_with_picture(skeleton, ids, picture)
    sample["pixel_values"] = picture_values(picture.shape, number)
    return sample


def picture_values(shape: Sequence[int], number: int) -> torch.Tensor:
    """[.., channels, height, width]: a gradient with waves of its own in every channel, of about unit variance.

    Rows of patches, [patches, values], are filled alike: as one channel of such a picture.
    """
    channels, height, width = (1, *shape)[-3:]
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    layers = [
        torch.sin((3 + channel + number) * x + 2 * y) + (x if (channel + number) % 2 else y)
        for channel in range(channels)
    ]
    return torch.stack(layers).reshape(shape)


def _sound(shape: torch.Size, number: int) -> torch.Tensor:
    """[1, .., time]: a chord that fades, the same for every row of a spectrogram but for its pitch."""
    time = torch.arange(shape[-1]) / shape[-1]
    rows = math.prod(shape[1:-1]) if len(shape) > 2 else 1
    pitches = [40.0 * (1 + number) + 7.0 * row for row in range(rows)]
    sounds = [torch.sin(pitch * time) + 0.5 * torch.sin(2.5 * pitch * time + 1) for pitch in pitches]
    return (torch.stack(sounds) * (1 - 0.5 * time)).reshape(shape)


def fingerprints(sample: Sample) -> dict[str, str]:
    """Digests of a sample's tensors, for the keys of what was made from them."""
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in sample.items()}
