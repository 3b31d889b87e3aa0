"""What a zoo entry is: a tiny configuration of one architecture, and the inputs of one call.

Everything is drawn from fixed seeds, so that two builds of an entry are the same model.
B = batch, S = tokens.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

VOCABULARY, HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, HEAD_SIZE, INTERMEDIATE = 128, 64, 2, 4, 2, 16, 128
FIRST_TEXT_TOKEN = 10  # lower ids are special tokens: padding, beginning, end, image, video
IMAGE_TOKEN = 5
BATCH, TOKENS = 2, 16
TEXT: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INTERMEDIATE,
    "image_size": 32,
    "patch_size": 8,
}

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One architecture of the zoo.

    `settings` are the arguments of the configuration class that `model_type` names, `architecture` is the model
    class as `architectures` in a config.json names it, and `constants` are the inputs whose values decide shapes:
    a graph is exported for one value of each.
    """

    name: str
    family: str
    model_type: str
    architecture: str
    settings: Mapping[str, Any]
    inputs: Callable[[], Inputs]
    constants: tuple[str, ...] = field(default=())

    def config(self) -> PretrainedConfig:
        """A new configuration with `architectures` set."""
        config = AutoConfig.for_model(self.model_type, **copy.deepcopy(dict(self.settings)))
        config.architectures = [self.architecture]
        return config


def build(entry: Entry, *, seed: int = 0) -> PreTrainedModel:
    """The entry's model with random weights, in float32 and evaluation mode."""
    model_class = getattr(transformers, entry.architecture)
    torch.manual_seed(seed)
    return model_class(entry.config()).eval()


def write_checkpoint(entry: Entry, folder: Path) -> Path:
    """Write the entry's config.json into `folder`, which `neuron-port convert --random-weights` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = entry.config().to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def draw(*shape: int) -> torch.Tensor:
    """Normal numbers: pixels, mel features, samples of sound."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def token_ids(batch: int = BATCH, tokens: int = TOKENS) -> torch.Tensor:
    """[B, S] ids of ordinary tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(FIRST_TEXT_TOKEN, VOCABULARY, (batch, tokens), generator=generator)


def prompt() -> Inputs:
    """What a decoder takes."""
    return {"input_ids": token_ids()}


def sentence() -> Inputs:
    """What an encoder takes: two sentences, the second one padded by three tokens."""
    mask = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    mask[1, -3:] = 0
    return {"input_ids": token_ids(), "attention_mask": mask}


def pixels() -> Inputs:
    """What an image encoder takes: [B, 3, 32, 32]."""
    return {"pixel_values": draw(BATCH, 3, 32, 32)}


def text_settings(*without: str, **changed: Any) -> dict[str, Any]:
    """The settings that most text models share, some left out, some changed or added."""
    return {key: value for key, value in TEXT.items() if key not in without} | changed
