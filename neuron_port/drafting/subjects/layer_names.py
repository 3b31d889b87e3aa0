"""Names for drafted kernels: what the layer is, after the model that it was met in: `gpt2_layer_norm`, `phi_mlp_fc1`."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterator

from neuron_port.types import Layer

# What says nothing about a layer but where it stands.
_POSITIONS = ("model", "transformer", "decoder", "layers", "h", "blocks", "backbone", "gpt_neox", "modules")
_TOO_PLAIN = ("Linear", "Conv1D", "Embedding", "Dropout", "Sequential")


def task_name(layer: Layer, model: str, taken: Collection[str] = ()) -> str:
    """An identifier that is not in `taken`."""
    return next(name for name in _candidates(layer, snake_case(model) or "model") if name not in taken)


def _candidates(layer: Layer, model: str) -> Iterator[str]:
    path = _path_words(layer.name)
    what = layer.operation if layer.operation != "module" else snake_case(layer.module_class)
    plain = layer.module_class in _TOO_PLAIN
    for words in [path] if plain else [what, path]:
        if words:
            yield _joined(model, words)
    base = _joined(model, path if plain and path else what)
    width = layer.inputs[0].shape[-1] if layer.inputs and layer.inputs[0].shape else 0
    yield f"{base}_{width}"
    yield from (f"{base}_{number}" for number in range(2, 10_000))


def _joined(model: str, words: str) -> str:
    """`gemma2` and `gemma2_rms_norm` make `gemma2_rms_norm`."""
    name = words if words.startswith(f"{model}_") else f"{model}_{words}"
    name = name if name[0].isalpha() else f"model_{name}"
    return f"{name}_" if keyword.iskeyword(name) else name


def _path_words(name: str) -> str:
    path, _, function = name.partition("#")
    parts = [part for part in path.split(".") if not part.isdigit() and part not in _POSITIONS]
    parts += [part for part in function.split(".") if part and not part.isdigit()]
    return snake_case("_".join(parts[-2:]))


def snake_case(name: str) -> str:
    """`Gemma2RMSNorm` -> `gemma2_rms_norm`."""
    text = re.sub(r"[^0-9A-Za-z]+", "_", name).replace("eLU", "elu").replace("iLU", "ilu")
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text)
    return re.sub(r"_+", "_", text).strip("_").lower()
