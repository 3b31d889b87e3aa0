"""Gives every module and parameter that a tensor-parallel plan names one rank's shape.

The plan is transformers' own (`base_model_tp_plan` of the configuration, `_tp_plan` of the model class). What has to be
joined behind the cut layers is only noted here; sharding.py finds out where.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard

from neuron_port.errors import UsageError
from neuron_port.types import Shard

# transformers' names for how a module, or a parameter of its own, is cut (distributed/tensor_parallel.py).
COLUMNS = {"colwise", "packed_colwise", "colwise_gather_output", "colwise_rep"}
ROWS = {"rowwise", "packed_rowwise"}
SUMMED_MODULES = {"moe_tp_experts", "all_reduce"}
GATHERED = {"colwise_gather_output", "colwise_rep"}
# Nothing is cut. A table of tokens could be: every rank would need another offset into it, for a small part of the
# memory; the same program on all ranks is worth more.
WHOLE = {
    "replicated_with_grad_allreduce", "mla_kv_a_proj", "replicate", "local_params", "embedding_rowwise",
    "embedding_colwise",
}  # fmt: skip
# What attention modules call the counts that change with their share of the heads.
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
_KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads")


class Cutter:
    """Goes through a skeleton and keeps what it did: the part of each tensor, and layers whose parts are to be joined."""

    def __init__(self, model: PreTrainedModel, ranks: int) -> None:
        self.model = model
        self.ranks = ranks
        self.architecture = type(model).__name__
        self.plan: dict[str, str] = dict(model.tp_plan or {})
        config: Any = model.config.get_text_config()
        self.heads: int = getattr(config, "num_attention_heads", 1)
        self.key_value_heads: int = getattr(config, "num_key_value_heads", None) or self.heads
        self.tensors: dict[str, Shard] = {}
        self.summed: list[str] = []
        self.gathered: list[str] = []
        self.notes: list[str] = []
        self._attention: set[str] = set()

    def check_heads(self) -> None:
        """Refuse before anything is cut what the plan, or the number of heads, cannot give."""
        styles = set(self.plan.values())
        if not styles & ROWS:
            raise UsageError(
                f"transformers has no tensor-parallel plan for the layers of {self.architecture}",
                hint="Convert it for one core, without --tensor-parallel.",
            )
        unknown = styles - COLUMNS - ROWS - SUMMED_MODULES - WHOLE
        if unknown:
            where = next(name for name, style in self.plan.items() if style in unknown)
            raise UsageError(
                f"The tensor-parallel plan of {self.architecture} cuts `{where}` as "
                f"`{self.plan[where]}`, which has no lowering yet",
                hint="Convert it for one core, without --tensor-parallel.",
            )
        if self.heads % self.ranks:
            fitting = [str(n) for n in range(2, self.heads + 1) if self.heads % n == 0]
            raise UsageError(
                f"{self.architecture} has {self.heads} attention heads, which {self.ranks} ranks cannot share evenly",
                hint=f"Use --tensor-parallel {' or '.join(fitting[:4])}." if fitting else None,
            )

    def cut(self) -> None:
        for name, style, module in self._planned():
            if style in SUMMED_MODULES:
                self.summed.append(name)
            elif isinstance(module, torch.nn.Parameter):
                self._cut_parameter(name, module, style)
            elif style in COLUMNS | ROWS:
                self._cut_module(name, module, style)

    def _planned(self) -> Iterator[tuple[str, str, torch.nn.Module | torch.nn.Parameter]]:
        for name, item in [*self.model.named_modules(), *self.model.named_parameters()]:
            style = self.plan.get(replace_layer_number_by_wildcard(name))
            if style is not None and style not in WHOLE:
                yield name, style, item

    def _cut_module(self, name: str, module: torch.nn.Module, style: str) -> None:
        if style in GATHERED:
            size = int(_matrix_of(module).shape[0])
            if size % self.ranks:
                self.notes.append(
                    f"`{name}` is whole on every rank: {self.ranks} ranks cannot share {size} rows"
                )
                return
            self.gathered.append(name)
        if style in ROWS:
            self.summed.append(name)
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            self._cut_parameter(f"{name}.{leaf}", parameter, style)
        for attribute, axis in (("out_features", 0), ("in_features", 1)):
            if isinstance(getattr(module, attribute, None), int):
                setattr(module, attribute, int(_matrix_of(module).shape[axis]))

    def _cut_parameter(self, name: str, parameter: torch.nn.Parameter, style: str) -> None:
        made = self._shard(name, tuple(parameter.shape), style)
        if made is None:
            return
        self.tensors[name] = made
        owner, _, leaf = name.rpartition(".")
        shape = made.local_shape(tuple(parameter.shape))
        local = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
        setattr(self.model.get_submodule(owner), leaf, torch.nn.Parameter(local, requires_grad=False))

    def _shard(self, name: str, shape: tuple[int, ...], style: str) -> Shard | None:
        """The part of a parameter; None: every rank needs all of it."""
        blocks = 2 if style.startswith("packed") else 1
        if (
            style in ROWS and len(shape) == 1
        ):  # of a row-sharded layer's output: added once, or a factor of all of it
            return Shard(ranks=self.ranks, axis=None) if name.endswith("bias") else None
        axis = len(shape) - 1 if style in ROWS or len(shape) == 1 else len(shape) - 2
        size = shape[axis]
        heads = self._heads_of(name, size)
        if heads is not None and heads < self.ranks and self.ranks % heads == 0:
            return Shard(ranks=self.ranks, axis=axis, units=heads)
        if (heads or size // blocks) % self.ranks:
            what = (
                f"{heads} key/value heads"
                if heads
                else f"{size // blocks} {'rows' if axis == 0 else 'columns'}"
            )
            raise UsageError(
                f"`{name}` of {self.architecture} has {what}, which {self.ranks} ranks cannot share evenly",
                hint="Use another --tensor-parallel.",
            )
        return Shard(ranks=self.ranks, axis=axis, blocks=blocks, units=self.ranks)

    def _heads_of(self, name: str, size: int) -> int | None:
        """How many heads an axis of an attention module's parameter counts; None: it is no attention's."""
        path = name.split(".")
        own = getattr(self.model.get_submodule(".".join(path[:-1])), "head_dim", None)  # attention sinks
        if own is not None:
            self._attention.add(".".join(path[:-1]))
            return size
        owner = self.model.get_submodule(".".join(path[:-2]))
        if not hasattr(owner, "head_dim") and not hasattr(owner, "qk_head_dim"):
            return None
        self._attention.add(".".join(path[:-2]))
        head_size = getattr(owner, "head_dim", None)
        if head_size and size % head_size == 0 and size // head_size % self.key_value_heads == 0:
            return int(size // head_size)
        return self.heads if size % self.heads == 0 else None

    def count_heads(self) -> None:
        """Tell attention modules how many heads they have now, where they keep the number."""
        heads = self.heads // self.ranks
        key_value_heads = max(1, self.key_value_heads // self.ranks)
        for place in self._attention:
            module: Any = self.model.get_submodule(place)
            counts = dict.fromkeys(_HEAD_COUNTS, (self.heads, heads))
            counts |= dict.fromkeys(_KEY_VALUE_COUNTS, (self.key_value_heads, key_value_heads))
            counts["num_key_value_groups"] = (self.heads // self.key_value_heads, heads // key_value_heads)
            for attribute, (whole, local) in counts.items():
                if getattr(module, attribute, None) == whole:
                    setattr(module, attribute, local)


def _matrix_of(module: torch.nn.Module) -> torch.Tensor:
    """A linear layer's weight."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor), type(module).__name__
    return weight
