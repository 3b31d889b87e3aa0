"""A whole transformers model of a checkpoint: the reference that everything ported is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging

from neuron_port.checkpoint.architecture import build_model, model_class, module_specs, one_line, parse_config
from neuron_port.checkpoint.weights import WeightReader
from neuron_port.errors import CheckpointError
from neuron_port.types import Checkpoint

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def load_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """transformers' configuration of the checkpoint."""
    return parse_config(Path(checkpoint.directory))


def load_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model with its weights in `dtype`, for inference: eval mode, no gradients, eager attention."""
    model = _random_model(checkpoint, dtype) if checkpoint.random_weights else _real_model(checkpoint, dtype)
    model.train(False)
    model.requires_grad_(False)
    return model


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    """The tokenizer, or None when the checkpoint has none. Raises CheckpointError if it is unreadable."""
    directory = Path(checkpoint.directory)
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(
            f"The tokenizer in {directory} cannot be read: {one_line(error)}",
            hint="Download or copy its files again.",
        ) from error
    return tokenizer


def _real_model(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    with quiet_progress():
        loaded: Any = model_class(load_config(checkpoint)).from_pretrained(
            checkpoint.directory,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model: PreTrainedModel = loaded[0]
    report = loaded[1]
    # resolve() compared names and shapes already, so transformers may not have invented anything.
    assert not report["missing_keys"], report
    assert not report["mismatched_keys"], report
    return model


def _random_model(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """Built empty and filled tensor by tensor, so the peak is the model plus its largest tensor."""
    with no_init_weights():
        model = build_model(load_config(checkpoint), dtype)
    model.tie_weights()
    reader = WeightReader(checkpoint)
    tensors = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in module_specs(model):
            tensors[name].copy_(reader.get(name, tensors[name].dtype))
    return model


class quiet_progress:  # noqa: N801 - used as a function, `with quiet_progress():`
    """Switch transformers' progress bars off inside the `with`: progress is told in sentences."""

    def __enter__(self) -> None:
        self._was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            logging.enable_progress_bar()
