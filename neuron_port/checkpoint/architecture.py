"""From a configuration to the model's tensor names and shapes; nothing is allocated.

The model is built on the meta device, so even a 70B one takes a moment and no memory. What cannot be ported
(not a causal language model, code of its own, quantized files) is refused here, from config.json alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from neuron_port.errors import CheckpointError
from neuron_port.types import TensorSpec

CONFIG_FILE = "config.json"
PROVENANCE = {"_name_or_path", "_model_name_or_path", "transformers_version"}


def read_config(directory: Path) -> dict[str, Any]:
    """The raw config.json of `directory`, of a model that can be ported. Raises CheckpointError."""
    file = directory / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{directory} has no {CONFIG_FILE}, so it is not a Hugging Face checkpoint.",
            hint="Name the folder that holds config.json and the safetensors files.",
        )
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(
            f"{file} is not valid JSON: {error}", hint="Download or copy the file again."
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{file} is not a model configuration.", hint="Download or copy the file again."
        )
    check_portable(config, str(file))
    return config


def check_portable(config: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError, naming what it found, unless `config` is of a plain causal language model."""
    if config.get("auto_map"):
        code = sorted(str(value) for value in config["auto_map"].values())[0]
        raise CheckpointError(
            f"{where} asks for code of its own ({code}), which is not run: it could do anything.",
            hint="Use a model whose architecture is part of transformers.",
        )
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise CheckpointError(
            f"{where} is of quantized weights ({method}), which cannot be read yet.",
            hint="Use the unquantized checkpoint of the model.",
        )
    _check_causal(config, where)


def _check_causal(config: Mapping[str, Any], where: str) -> None:
    """The architecture must be the causal language model that transformers builds for the model type."""
    model_type = str(config.get("model_type"))
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    named = config.get("architectures")
    architecture = (named[0] if isinstance(named, list) and named else named) or known
    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        found = architecture or f"model type `{model_type}`"
        raise CheckpointError(
            f"{where} is of {found}, which is not a causal language model known to transformers "
            f"{transformers.__version__}.",
            hint="Use a text-generation checkpoint, such as one of LlamaForCausalLM; or update transformers.",
        )
    if architecture != known:
        raise CheckpointError(
            f"{where} names {architecture}, but its model type `{model_type}` is "
            f"{f'that of {known}' if known else 'no causal language model known to transformers'}.",
            hint="Correct `architectures` or `model_type`.",
        )


def parse_config(directory: Path) -> PreTrainedConfig:
    """transformers' configuration object of `directory`. Raises CheckpointError if it is refused."""
    raw = read_config(directory)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers' validators raise many classes
        raise CheckpointError(
            f"transformers {transformers.__version__} refuses {directory / CONFIG_FILE} "
            f"(model type `{raw.get('model_type')}`): {one_line(error)}",
            hint="Correct the configuration, or use a transformers version that knows the model.",
        ) from error
    return config


def one_line(error: Exception) -> str:
    """A foreign exception as part of a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def config_values(config: PreTrainedConfig) -> dict[str, Any]:
    """All values of the configuration as plain JSON, defaults included, without where it was saved."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name not in PROVENANCE}


def build_meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model with every tensor on the meta device: shapes without memory."""
    with torch.device("meta"):
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        except Exception as error:  # whatever a constructor makes of impossible sizes
            raise CheckpointError(
                f"No model can be built from the configuration ({type(config).__name__}): {one_line(error)}",
                hint="Correct config.json.",
            ) from error
    model.tie_weights()
    model.train(False)
    return model


def module_specs(model: PreTrainedModel) -> dict[str, TensorSpec]:
    """Name -> spec of each parameter and saved buffer; of tied ones only the first, the stored one."""
    return {
        name: TensorSpec(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name not in tied_names(model)
    }


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Name -> the stored name of the same tensor: `lm_head.weight` -> `model.embed_tokens.weight`."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        home = first.setdefault(id(parameter), name)
        if home != name:
            tied[name] = home
    return tied


@lru_cache(maxsize=8)
def tied_names_of(directory: str) -> Mapping[str, str]:
    """`tied_names` of the model whose config.json is in `directory`."""
    return tied_names(build_meta_model(parse_config(Path(directory))))
