"""A model's repeated blocks, and a copy of its configuration with one block of each kind.

Large models repeat a few kinds of block. What is walked or lowered is a trimmed copy at full width; what it says of each
kind is then multiplied by how often the model has it. Blocks are of one kind when their parameters have the same names
and shapes and the configuration calls their layers the same.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from neuron_port.checkpoint.architecture import build_meta_model, build_skeleton

# How configurations of transformers call the number of blocks; a name that a class maps to another is set through it.
COUNTS = (
    "num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers", "depth", "n_layer",
)  # fmt: skip
NOT_TEXT = re.compile(r"vis|audio|image|encoder")  # lists of blocks that `layer_types` does not speak of
LARGEST_TRIM = 12  # blocks; a model whose kinds are spread wider is looked at whole


@dataclass(frozen=True)
class Kind:
    """What blocks have in common: the list that they stand in, and a digest of what is in them."""

    place: str  # "model.layers"
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    layer_type: str


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """A copy of the model with few blocks, and how to get back to the whole."""

    config: PreTrainedConfig
    repeats: dict[
        str, float
    ]  # block of the copy ("model.layers.0") -> blocks of the model that it stands for

    def scaled(self, amounts: dict[str, float]) -> float:
        """The sum over the whole model of amounts by name (modules, parameters, layers) in the copy."""
        return sum(amount * self.repeat_of(name) for name, amount in amounts.items())

    def repeat_of(self, name: str) -> float:
        """How many of the model's blocks the block around this name stands for; 1 outside of blocks."""
        path = name.removeprefix("model.") if name.startswith("model.model.") else name
        for block, repeat in self.repeats.items():
            if path == block or path.startswith(f"{block}."):
                return repeat
        return 1.0


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The whole model without data, and without the time that initialisation takes."""
    with no_init_weights():
        return build_meta_model(config)


def skeleton(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Parameters on the meta device, computed buffers with their values."""
    with no_init_weights():
        return build_skeleton(config, dtype)


def trim(config: PreTrainedConfig, model: PreTrainedModel) -> Trimmed:
    """The smallest copy that has every kind of block of `model`; the model itself where none can be made."""
    kinds = kinds_of(model)
    wanted = Counter(kinds.values())
    prefixes = _prefixes(kinds)
    longest = max(prefixes.values(), default=0)
    if longest and longest <= LARGEST_TRIM:
        shorter = _shortened(config, prefixes, kinds)
        try:
            found = kinds_of(meta_model(shorter))
        except Exception:  # whatever a constructor makes of fewer layers: the model is looked at whole
            found = {}
        have = Counter(found.values())
        if set(have) == set(wanted):
            return Trimmed(
                config=shorter,
                repeats={block: wanted[kind] / have[kind] for block, kind in found.items()},
            )
    return Trimmed(config=config, repeats={})


def kinds_of(model: PreTrainedModel) -> dict[str, Kind]:
    """Block -> its kind, in the order in which they stand: entries of the outermost lists of modules."""
    return {name: _kind(model, name, block) for name, block in _blocks(model)}


def _blocks(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    outer: list[str] = []
    for place, module in model.named_modules():
        inside = any(place.startswith(f"{other}.") for other in outer)
        if inside or not isinstance(module, torch.nn.ModuleList) or len(module) == 0:
            continue
        if all(any(True for _ in entry.children()) for entry in module):
            outer.append(place)
            yield from ((f"{place}.{index}", entry) for index, entry in enumerate(module))


def _kind(model: PreTrainedModel, name: str, block: torch.nn.Module) -> Kind:
    place, _, index = name.rpartition(".")
    shapes = tuple((leaf, tuple(item.shape)) for leaf, item in block.named_parameters())
    types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if NOT_TEXT.search(place) or len(types) != len(list(model.get_submodule(place).children())):
        return Kind(place=place, shapes=shapes, layer_type="")
    return Kind(place=place, shapes=shapes, layer_type=str(types[int(index)]))


def _prefixes(kinds: dict[str, Kind]) -> dict[str, int]:
    """List of blocks -> how many of its first blocks show every kind."""
    found: dict[str, int] = {}
    seen: set[Kind] = set()
    for name, kind in kinds.items():
        if kind not in seen:
            seen.add(kind)
            found[kind.place] = int(name.rpartition(".")[2]) + 1
    return found


def _shortened(
    config: PreTrainedConfig, prefixes: dict[str, int], kinds: dict[str, Kind]
) -> PreTrainedConfig:
    """A copy in which every count of blocks that equals a list's length is cut to its prefix."""
    lengths = Counter(kind.place for kind in kinds.values())
    cut: dict[int, int] = {}
    for place, length in lengths.items():
        cut[length] = max(cut.get(length, 0), prefixes[place])
    shorter = copy.deepcopy(config)
    for part in _parts(shorter):
        for name in COUNTS:
            value = getattr(part, name, None)
            if isinstance(value, int) and value in cut and not isinstance(value, bool):
                _set_count(part, name, value, cut[value])
    return shorter


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _set_count(config: PreTrainedConfig, name: str, old: int, new: int) -> None:
    """Set the count, and shorten what is listed layer by layer."""
    setattr(config, name, new)
    for other, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == old and not re.search("token|architectures", other):
            setattr(config, other, value[:new])
