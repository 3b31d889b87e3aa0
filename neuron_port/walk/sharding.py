"""Cuts a model over tensor-parallel ranks, as transformers' own plan for it says.

The skeleton is cut before anything looks at it: its parameters get one rank's shapes, so that walk, matching, export
and caches see local shapes by themselves. What the ranks must say to each other stands in forward hooks, outside of
whatever a kernel may take the place of: on the outermost module whose output is the row-sharded one, found by running
the skeleton and following that very tensor. Every rank runs the same program; only its weights differ.

N = ranks, Q = query heads, G = key/value heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from neuron_port.errors import LoweringError, UsageError
from neuron_port.types import Shard
from neuron_port.walk import collectives
from neuron_port.walk.cutting import Cutter
from neuron_port.walk.recurrent_cache import StateLayout, state_layout


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a model was cut.

    `tensors`: parameter name -> its part; parameters not among them are whole on every rank.
    `sums`: layers of which every rank has a summand -> the module after which they are added up, and the summand's
    place among its outputs (None: it is the output).
    `gathers`: layers whose parts are put side by side.
    `states`: name of a state of the model -> its part.
    """

    ranks: int
    tensors: Mapping[str, Shard] = field(default_factory=dict)
    sums: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    gathers: tuple[str, ...] = ()
    states: Mapping[str, Shard] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what the plan would have cut and was left whole, and why


def shard(model: PreTrainedModel, ranks: int, known: Sharding | None = None) -> Sharding:
    """Cut a skeleton (parameters on the meta device) in place; what was done.

    `known`: what was done to an equal skeleton, which saves running this one.

    Raises:
        UsageError: transformers has no plan for the model, or the plan does not go with so many ranks.
    """
    cutter = Cutter(model, ranks)
    cutter.check_heads()
    whole = state_layout(model) if known is None else None
    cutter.cut()
    cutter.count_heads()
    if known is None:
        assert whole is not None
        sums, local = _outermost(model, cutter.summed)
        known = Sharding(
            ranks=ranks,
            tensors=cutter.tensors,
            sums=sums,
            gathers=tuple(cutter.gathered),
            states=_cut_states(whole, local, ranks),
            notes=tuple(cutter.notes),
        )
    for layer, (place, position) in known.sums.items():
        model.get_submodule(place).register_forward_hook(_Sum(ranks, layer, position))
    for layer in known.gathers:
        model.get_submodule(layer).register_forward_hook(_Gather(ranks, layer))
    return known


def part_of(tensor: torch.Tensor, shard: Shard | None, rank: int) -> torch.Tensor:
    """The rank's part of a checkpoint's tensor: a view where it is one range."""
    if shard is None:
        return tensor
    if shard.axis is None:
        return tensor if rank == 0 else torch.zeros_like(tensor)
    pieces = [
        tensor.narrow(shard.axis, start, stop - start)
        for start, stop in shard.ranges(tensor.shape[shard.axis], rank)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, shard.axis)


def joined(parts: list[torch.Tensor], shard: Shard | None) -> torch.Tensor:
    """The whole of all ranks' parts, in the order of ranks: what `part_of` took apart, but for its first-rank form."""
    if shard is None:
        return parts[0]
    assert shard.axis is not None, "what only rank 0 has is never put together"
    assert shard.blocks == 1, "states are cut in one block"
    return torch.cat(parts[:: shard.copies], shard.axis)


def _cut_states(whole: StateLayout, local: StateLayout, ranks: int) -> dict[str, Shard]:
    """Which part of each of the model's states a rank has: cut along the axis where they differ, by heads."""
    found = {}
    for one, own in zip(whole.tensors, local.tensors, strict=True):
        differing = [axis for axis, (a, b) in enumerate(zip(one.shape, own.shape, strict=True)) if a != b]
        if differing:
            axis = differing[0]
            size, share = one.shape[axis], own.shape[axis]
            assert len(differing) == 1, f"{one.name}: {one.shape} beside {own.shape}"
            assert size, f"{one.name} is cut along its slots"
            assert share, f"{one.name} is cut along its slots"
            found[one.name] = Shard(ranks=ranks, axis=axis + 1, units=size // share)  # behind the batch
    return found


@dataclass(frozen=True)
class _Sum(collectives.Joining):
    """A forward hook: adds up what the ranks have of a module's output."""

    ranks: int
    layer: str
    position: int | None  # of the tensor in a tuple of outputs

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        whole = collectives.all_reduce(
            output if self.position is None else output[self.position], self.ranks, self.layer
        )
        if self.position is None:
            return whole
        return (*output[: self.position], whole, *output[self.position + 1 :])


@dataclass(frozen=True)
class _Gather(collectives.Joining):
    """A forward hook: puts what the ranks have of a module's output side by side, along its last axis."""

    ranks: int
    layer: str

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        return collectives.all_gather(output, output.ndim - 1, self.ranks, self.layer)


def _outermost(
    model: PreTrainedModel, layers: list[str]
) -> tuple[dict[str, tuple[str, int | None]], StateLayout]:
    """Layer -> the outermost module whose output is that layer's own, and its position among that module's outputs.

    And the layout of a rank's states.
    """
    found: dict[str, tuple[str, int | None]] = {layer: (layer, None) for layer in layers}
    followed: dict[tuple[int, int], str] = {}
    alive: list[torch.Tensor] = []  # a number of an object is its own only while it lives

    def hook(name: str) -> Any:
        def seen(module: torch.nn.Module, args: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            for position, item in enumerate(outputs):
                if not torch.is_tensor(item):
                    continue
                layer = name if name in found else followed.get(_home(item))
                if layer is not None and f"{layer}.".startswith(f"{name}."):
                    found[layer] = (name, position if isinstance(output, tuple) else None)
                    followed[_home(item)] = layer
                    alive.append(item)

        return seen

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        layout = state_layout(model)
    except RuntimeError as error:  # torch's: a module counts on sizes that are a rank's own now
        reason = " ".join(str(error).split()[:24])
        raise UsageError(
            f"{type(model).__name__} does not run in the parts that its tensor-parallel plan cuts: {reason}",
            hint="Convert it for one core, without --tensor-parallel.",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found, layout


def _home(tensor: torch.Tensor) -> tuple[int, int]:
    """The identity of a tensor, or of the one that it shows all of in another shape, and how often it was written to.

    A layer's output to which something was added in place is another value in the same place.
    """
    base = tensor._base
    home = tensor if base is None or base.numel() != tensor.numel() else base
    return id(home), home._version


def check_joined(sharding: Sharding, graph: torch.fx.Graph, name: str) -> None:
    """Refuse a program in which the ranks' parts of some layer's output are never joined.

    Raises:
        LoweringError: it names the layer.
    """
    sums, gathers = torch.ops.neuron_port.all_reduce.default, torch.ops.neuron_port.all_gather.default
    joined_layers = {str(node.args[-1]) for node in graph.nodes if node.target in (sums, gathers)}
    for layer in (*sharding.sums, *sharding.gathers):
        if layer not in joined_layers:
            raise LoweringError(
                f"Every rank has a part of what `{layer}` gives, and graph `{name}` joins none of them",
                hint="A recipe took a module and the sum behind it: leave it to the compiler with --compiler NAME.",
            )
