"""Where models come from: a name, a folder, a GGUF file or a hub id becomes a `Checkpoint` on local disk.

    presets.py     models/<name>.toml: known models and their conversion defaults
    source.py      what the user typed -> Checkpoint; decides which of the sources below is meant
    hub.py  wheel.py  gguf_file.py     the sources; gguf_header.py reads what a GGUF says of itself
    contents.py    digests of files, computed once
    safetensors_file.py     tensor specs from file headers, and damaged files refused up front
    architecture.py         configuration -> module names and shapes, without allocating them
    conversion.py     tensors of files -> tensors of modules, by transformers' own table of renamed and merged ones
    quantization.py     linear layers with one byte for each weight, made of the checkpoint's own
    weights.py     one tensor at a time, real or deterministic random
    load.py        a whole transformers model and its tokenizer

Names are imported on first use, so that listing presets does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuron_port.checkpoint.architecture import build_skeleton
    from neuron_port.checkpoint.load import load_config, load_model, load_tokenizer
    from neuron_port.checkpoint.presets import Preset, Prompt, find_preset, list_presets
    from neuron_port.checkpoint.quantization import quantized, with_quantized_layers
    from neuron_port.checkpoint.source import resolve
    from neuron_port.checkpoint.weights import WeightReader

_HOMES = {
    "Preset": "presets",
    "Prompt": "presets",
    "WeightReader": "weights",
    "build_skeleton": "architecture",
    "find_preset": "presets",
    "list_presets": "presets",
    "load_config": "load",
    "load_model": "load",
    "load_tokenizer": "load",
    "quantized": "quantization",
    "resolve": "source",
    "with_quantized_layers": "quantization",
}

__all__ = [
    "Preset",
    "Prompt",
    "WeightReader",
    "build_skeleton",
    "find_preset",
    "list_presets",
    "load_config",
    "load_model",
    "load_tokenizer",
    "quantized",
    "resolve",
    "with_quantized_layers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
