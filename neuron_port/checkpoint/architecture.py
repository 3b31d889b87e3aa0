"""From a configuration to the model's tensor names and shapes; nothing is allocated.

The model is built on the meta device, so even a 70B one takes a moment and no memory. What cannot be ported
(an architecture that transformers does not have, code of its own, quantized files) is refused here, from config.json
alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

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
    """Raise CheckpointError, naming what it found, unless `config` is of a model that transformers has."""
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
    architecture_of(config, where)


def architecture_of(config: Mapping[str, Any], where: str) -> str:
    """Name of the transformers class that a configuration asks for; of one that names none, what its type is used as.

    Raises:
        CheckpointError: transformers has no such model, or it is that of another model type.
    """
    model_type = str(config.get("model_type"))
    named = config.get("architectures")
    given = named[0] if isinstance(named, list) and named else named
    usual = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) or MODEL_MAPPING_NAMES.get(model_type)
    architecture = given or (usual[0] if isinstance(usual, (list, tuple)) else usual)
    found = getattr(transformers, str(architecture), None) if architecture else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel) and found.config_class):
        what = architecture or f"model type `{model_type}`"
        raise CheckpointError(
            f"{where} is of {what}, which is no model known to transformers {transformers.__version__}.",
            hint="Use a checkpoint such as one of LlamaForCausalLM or BertModel; or update transformers.",
        )
    config_class: Any = found.config_class
    if config_class.model_type != model_type:
        raise CheckpointError(
            f"{where} names {architecture}, but its model type `{model_type}` is not that of {architecture} "
            f"(`{config_class.model_type}`).",
            hint="Correct `architectures` or `model_type`.",
        )
    return str(architecture)


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The transformers class of a configuration."""
    name = architecture_of(config.to_dict(), type(config).__name__)
    found: type[PreTrainedModel] = getattr(transformers, name)
    return found


def build_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a configuration with eager attention, initialised as its class does; eval mode, no gradients."""
    model: PreTrainedModel = model_class(config)._from_config(
        config, dtype=dtype, attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


def build_skeleton(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model with everything that a checkpoint stores on the meta device, and real (computed) buffers."""
    with init_empty_weights(include_buffers=False):
        model = build_model(config, dtype)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.nn.Parameter):
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, tensor.to("meta"))
    return model


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
            model = build_model(config, torch.float32)
        except Exception as error:  # whatever a constructor makes of impossible sizes
            raise CheckpointError(
                f"No model can be built from the configuration ({type(config).__name__}): {one_line(error)}",
                hint="Correct config.json.",
            ) from error
    model.tie_weights()
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
