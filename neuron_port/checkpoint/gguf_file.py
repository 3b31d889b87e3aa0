"""Models in GGUF files: read once through transformers, kept in the store as float32 safetensors.

After that they are an ordinary checkpoint folder, read lazily one tensor at a time. Quantized weights become
the float32 values that their blocks stand for, so nothing more is lost.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from neuron_port.checkpoint.architecture import CONFIG_FILE, config_values, module_specs, one_line
from neuron_port.checkpoint.contents import file_sha256
from neuron_port.checkpoint.gguf_header import GgufHeader, read_gguf_header
from neuron_port.checkpoint.load import quiet_progress
from neuron_port.checkpoint.safetensors_file import SINGLE_FILE
from neuron_port.errors import CheckpointError
from neuron_port.store import Store, write_json
from neuron_port.types import digest

STAGE = "checkpoint"
CONVERSION_VERSION = 1  # part of the key: change it when the conversion gives other files


def convert(file: Path, store: Store, progress: Callable[[str], None]) -> Path:
    """The checkpoint folder made from a GGUF file. Raises CheckpointError if the file cannot be used."""
    header = read_gguf_header(file)
    key = digest("gguf", file_sha256(file, store), CONVERSION_VERSION)
    needed_bytes = header.parameter_count * 4 + 16 * 2**20  # float32, and the tokenizer

    def write(folder: Path) -> None:
        progress(f"Converting {file.name} to {needed_bytes / 2**20:.0f} MiB of safetensors.")
        _save(*_load(file, header), folder)

    folder, reused = store.build(STAGE, key, write, on_wait=progress, needed_bytes=needed_bytes)
    if reused:
        progress(f"{file.name} was converted before, skipping.")
    return folder


def read_config(file: Path) -> PreTrainedConfig:
    """The configuration that the file's header states. Raises CheckpointError if transformers cannot read it."""
    try:
        with quiet_progress(), redirect_stderr(io.StringIO()):
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True
            )
    except Exception as error:  # unknown architectures raise many classes
        raise CheckpointError(
            f"transformers cannot read {file}: {one_line(error)}",
            hint="Use the model's safetensors checkpoint instead.",
        ) from error
    return config


def _load(
    file: Path, header: GgufHeader
) -> tuple[PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase]:
    """Configuration, float32 model and tokenizer as transformers reads them. Raises CheckpointError."""
    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        # transformers draws a bar for GGUF whatever its setting; failures are raised, not printed.
        with quiet_progress(), redirect_stderr(io.StringIO()):
            config = AutoConfig.from_pretrained(file.parent, **where)
            model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    except Exception as error:  # unknown architectures and vocabularies raise many classes
        architecture = header.metadata.get("general.architecture")
        raise CheckpointError(
            f"transformers cannot read {file} (architecture `{architecture}`): {one_line(error)}",
            hint="Use the model's safetensors checkpoint instead.",
        ) from error
    return config, model, tokenizer


def _save(
    config: PreTrainedConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write a Hugging Face folder. Not save_pretrained: it refuses models that came from quantized files."""
    config.architectures = [type(model).__name__]
    write_json(folder / CONFIG_FILE, {**_shortest_floats(config_values(config)), "dtype": "float32"})
    state = model.state_dict()
    tensors = {name: state[name].contiguous() for name in module_specs(model)}
    save_file(tensors, folder / SINGLE_FILE, {"format": "pt"})
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _shortest_floats(value: Any) -> Any:
    """The decimals that were meant: GGUF keeps float32, where 1e-05 reads back as 9.999999747378752e-06."""
    if isinstance(value, dict):
        return {name: _shortest_floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shortest_floats(item) for item in value]
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value
