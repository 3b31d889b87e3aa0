"""From the tensors of the files to the tensors of the modules, by transformers' own table.

The hub's files of many models have other names and shapes than the modules that transformers builds today: a mixture's
experts are stored one by one and merged on load, BERT's norms are called gamma and beta, prefixes were moved.
transformers says which with `get_model_conversion_mapping`; this file applies it the way that its loader does
(core_model_loading.py, `convert_and_load_state_dict_in_model`), but one tensor at a time, and first without any data:
on the meta device, which tells names, shapes and what each tensor is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from neuron_port.checkpoint.safetensors_file import StoredTensor
from neuron_port.errors import CheckpointError
from neuron_port.types import ConvertedTensor, TensorSpec


@dataclass(kw_only=True)
class _Group:
    """Tensors of the files that become one or more tensors of the modules together.

    `parts` has them by the pattern that they matched; `converter` is None where one tensor only gets another name.
    """

    first_target: str
    converter: WeightConverter | None
    parts: dict[str, list[str]] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        return tuple(name for names in self.parts.values() for name in names)


class Conversion:
    """What each tensor of a model is made of in given files, and how to read it.

    Raises: CheckpointError when tensors that belong together do not fit, as when one expert is missing.
    """

    def __init__(self, model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> None:
        """model: on the meta device, weights tied."""
        self._model = model
        self._stored = stored
        self._wanted = model.state_dict()
        self.unused: tuple[str, ...] = ()
        self._homes: dict[str, _Group] = {}
        self._specs: dict[str, TensorSpec] = {}
        for group in self._group():
            for name, tensor in self._convert(group, on_meta=True).items():
                if name in self._wanted:
                    self._homes[name] = group
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    self._specs[name] = TensorSpec(shape=tuple(tensor.shape), dtype=dtype)

    def __contains__(self, name: str) -> bool:
        return name in self._homes

    def spec(self, name: str) -> TensorSpec:
        """Shape that the files give the module's tensor, and their dtype."""
        return self._specs[name]

    def made_of(self, name: str) -> tuple[str, ...]:
        """The tensors of the files that the module's tensor is made of: itself alone, most often."""
        return self._homes[name].names()

    def converted(self, name: str) -> ConvertedTensor | None:
        """How the module's tensor is made; None if it stands in a file under its own name."""
        group = self._homes[name]
        if group.converter is None and group.names() == (name,):
            return None
        operations = () if group.converter is None else tuple(map(repr, group.converter.operations))
        return ConvertedTensor(made_of=group.names(), operations=operations)

    def read(self, name: str, dtype: torch.dtype | None = None, *, first: int | None = None) -> torch.Tensor:
        """A module's tensor, made of what the files hold; floating-point ones in `dtype` if one is given.

        first: only so many along the first axis; of merged experts the others are not read.
        """
        group = self._homes[name]
        if group.converter is None:
            return read_stored(group.names()[0], self._stored, dtype, first=first)
        few = first if _stacks_experts(group.converter) else None
        tensor = self._convert(group, dtype=dtype, few=few)[name]
        return tensor if first is None else tensor[:first].clone()

    def _group(self) -> list[_Group]:
        """The files' tensors by what they become, in transformers' order; those that become nothing are `unused`."""
        mapping = get_model_conversion_mapping(self._model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        prefix = self._model.base_model_prefix
        groups: dict[str, _Group] = {}
        unused = []
        for name in sorted(self._stored, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, self._wanted)
            if target not in self._wanted and name in self._wanted:
                target, pattern = rename_source_key(name, [], [], prefix, self._wanted)
            if target not in self._wanted:
                unused.append(name)
                continue
            converter = None if pattern is None else by_pattern[pattern]
            group = groups.setdefault(target, _Group(first_target=target, converter=converter))
            if group.converter is None and group.parts:
                unused.append(name)  # a second tensor of the same name: transformers takes the first
                continue
            group.parts.setdefault(pattern or name, []).append(name)
        self.unused = tuple(sorted(unused))
        return list(groups.values())

    def _convert(
        self,
        group: _Group,
        *,
        dtype: torch.dtype | None = None,
        few: int | None = None,
        on_meta: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Everything that a group becomes, by module name. The parts are read when the converter asks for them."""
        read = self._blank if on_meta else partial(read_stored, stored=self._stored, dtype=dtype)
        if group.converter is None:
            return {group.first_target: read(group.names()[0])}
        converter = deepcopy(group.converter)
        for pattern, names in group.parts.items():
            for name in names[:few]:
                later: Any = partial(read, name)
                converter.add_tensor(group.first_target, name, pattern, later)
        try:
            made = converter.convert(group.first_target, model=self._model, config=self._model.config)
        except (
            RuntimeError,
            ValueError,
            IndexError,
        ) as error:  # what torch.stack, cat and the operations raise
            raise _misfit(group, error) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _blank(self, name: str) -> torch.Tensor:
        spec = self._stored[name].spec
        return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta")


def read_stored(
    name: str,
    stored: Mapping[str, StoredTensor],
    dtype: torch.dtype | None = None,
    *,
    first: int | None = None,
) -> torch.Tensor:
    """One tensor (or the first rows of one) out of its file; the rest of the file is not read."""
    with safe_open(stored[name].file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name) if first is None else file.get_slice(name)[:first]
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _stacks_experts(converter: WeightConverter) -> bool:
    """Whether the first rows need the first tensors only: the n-th tensor of each pattern becomes the n-th row."""
    stacking, *others = converter.operations
    return (
        isinstance(stacking, MergeModulelist)
        and stacking.dim == 0
        and all(
            (isinstance(item, Concatenate) and item.dim > 0)
            or (isinstance(item, Transpose) and min(item.dim0, item.dim1) > 0)
            for item in others
        )
    )


def _misfit(group: _Group, error: Exception) -> CheckpointError:
    names = group.names()
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    reason = " ".join(str(error).split())
    return CheckpointError(
        f"Tensor `{names[0]}`{others} of the files cannot become `{group.first_target}`: {reason}",
        hint="Some of them are missing or of another model: fetch config.json and weights from the same place.",
    )
