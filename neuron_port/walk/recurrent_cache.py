"""The state of any causal language model for static graphs: keys and values, convolution windows, recurrent states.

The counterpart of transformers' cache layers, in the manner of cache.py: state tensors go in and new ones come out,
nothing outside is changed. What state a model has is read off a two-token run, layer by layer, so that any mixture
works: attention, linear attention, both in one layer, neither. Prefill starts from nothing and its prompts fill their
bucket (a recurrence, unlike attention, would run on into padding); decode takes one token.

B = batch, G = key/value heads, D, E = head dimensions of keys and values, C = cache slots, S = new tokens,
F = convolved features, W = width of the convolution.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from neuron_port.errors import CheckpointError
from neuron_port.walk.cache import FunctionalLayer
from neuron_port.walk.cutpoints import unobserved
from neuron_port.walk.program import StepState, running

Role = Literal["key_cache", "value_cache", "conv_state", "recurrent_state"]
LIST_ARGUMENT = "state"  # of models that keep no cache but take and return a list of tensors
CACHE_ARGUMENTS = ("past_key_values", "cache_params")  # transformers' two names for a model's cache


class FunctionalLinearLayer(LinearAttentionLayer):
    """One layer's convolution windows and recurrent states: what the step returns is in them when the model has run.

    Args:
        conv_states: [B, F, W] by number; recurrent_states: [B, ..] by number. Copied: models write them in place.
        prefill: the states that are given do not count; the model starts from nothing.
    """

    def __init__(
        self,
        conv_states: dict[int, torch.Tensor],
        recurrent_states: dict[int, torch.Tensor],
        *,
        prefill: bool,
    ) -> None:
        super().__init__(number_of_states=max((*conv_states, *recurrent_states), default=0) + 1)
        self._hold(conv_states, recurrent_states, prefill)

    def _hold(
        self,
        conv_states: dict[int, torch.Tensor],
        recurrent_states: dict[int, torch.Tensor],
        prefill: bool,
    ) -> None:
        for index, state in conv_states.items():
            self.conv_states[index] = state.clone()
            self.conv_kernel_size[index] = state.shape[-1]
            self.is_conv_states_initialized[index] = True
        for index, state in recurrent_states.items():
            self.recurrent_states[index] = state.clone()
            self.is_recurrent_states_initialized[index] = True
        self.has_previous_state = dict.fromkeys(range(self.number_of_states), not prefill)

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Append [B, F, S] and keep the last W; return what the convolution sees: at least W, with the past in front."""
        kept = self.conv_states[state_idx]
        assert kept is not None, f"the layer was given no convolution state {state_idx}"
        width = kept.shape[-1]
        if self.has_previous_state[state_idx]:
            seen = torch.cat([kept, conv_states], dim=-1)
        else:
            seen = torch.nn.functional.pad(conv_states, (max(0, width - conv_states.shape[-1]), 0))
            self.has_previous_state[state_idx] = True
        self.conv_states[state_idx] = seen[..., -width:].contiguous()
        return seen

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Keep the new state, in the dtype of the one that was given."""
        given = self.recurrent_states[state_idx]
        assert given is not None, f"the layer was given no recurrent state {state_idx}"
        kept = recurrent_states.to(given.dtype)
        self.recurrent_states[state_idx] = kept
        return kept


class FunctionalHybridLayer(  # type: ignore[misc, override]  # the bases' own classes differ likewise in transformers
    FunctionalLinearLayer, FunctionalLayer, LinearAttentionAndFullAttentionLayer
):
    """A layer that attends and also keeps recurrent states: both kinds in one."""

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        conv_states: dict[int, torch.Tensor],
        recurrent_states: dict[int, torch.Tensor],
        *,
        prefill: bool,
    ) -> None:
        count = max((*conv_states, *recurrent_states), default=0) + 1
        LinearAttentionAndFullAttentionLayer.__init__(self, number_of_states=count)
        FunctionalLayer.__init__(self, keys, values, positions, prefill=prefill)
        self._hold(conv_states, recurrent_states, prefill)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the tensors are given."""

    def get_max_length(self) -> int:
        return FunctionalLayer.get_max_length(self)


@dataclass(frozen=True, kw_only=True)
class StateTensor:
    """One tensor of a model's state. `shape` is without the batch, and None where the cache's slots are counted."""

    name: str  # "key_cache.3", "recurrent_state.0"; of several in one layer: "conv_state.0.1"
    role: Role
    layer: int
    index: int = 0
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def zeros(self, batch: int, cache_length: int, device: torch.device) -> torch.Tensor:
        """An example of the tensor, [B, ..]."""
        shape = [cache_length if size is None else size for size in self.shape]
        return torch.zeros((batch, *shape), dtype=self.dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class StateLayout:
    """Every state tensor of a model, in the order in which its graphs take and return them."""

    layers: int
    tensors: tuple[StateTensor, ...]

    def zeros(self, *, batch: int, cache_length: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Example states by name."""
        return {item.name: item.zeros(batch, cache_length, device) for item in self.tensors}

    @property
    def is_recurrent(self) -> bool:
        """Whether padding behind a prompt would change the state: prompts must then fill their bucket."""
        return any(item.role in ("conv_state", "recurrent_state") for item in self.tensors)

    def cache_layers(
        self, states: Sequence[torch.Tensor], positions: torch.Tensor, *, prefill: bool
    ) -> list[Any]:
        """transformers cache layers over `states`; positions: int32 [B], the slot of each row's first new token."""
        given: list[dict[Role, dict[int, torch.Tensor]]] = [{} for _ in range(self.layers)]
        for item, tensor in zip(self.tensors, states, strict=True):
            given[item.layer].setdefault(item.role, {})[item.index] = tensor
        return [_cache_layer(tensors, positions, prefill) for tensors in given]

    def updated(self, layers: Sequence[Any]) -> list[torch.Tensor]:
        """The new states, once the model has run over `layers`."""
        return [_state_of(layers[item.layer], item.role, item.index) for item in self.tensors]

    def given(
        self,
        model: PreTrainedModel,
        states: Sequence[torch.Tensor],
        positions: torch.Tensor,
        *,
        prefill: bool,
    ) -> dict[str, Any]:
        """The model's arguments that carry `states` in, by name."""
        layers = self.cache_layers(states, positions, prefill=prefill)
        return {cache_argument(model): Cache(layers=layers)}

    def left(self, model: PreTrainedModel, given: dict[str, Any], output: Any) -> list[torch.Tensor]:
        """The new states, from what `given` made and from the model's answer."""
        (cache,) = given.values()
        return self.updated(cache.layers)


@dataclass(frozen=True, kw_only=True)
class ListLayout(StateLayout):
    """The state of a model that takes it as a list of tensors, `state`, and answers with the new one (RWKV)."""

    def given(
        self,
        model: PreTrainedModel,
        states: Sequence[torch.Tensor],
        positions: torch.Tensor,
        *,
        prefill: bool,
    ) -> dict[str, Any]:
        """Nothing in prefill, which starts from nothing; else copies, because the model writes in them."""
        return {LIST_ARGUMENT: None if prefill else [state.clone() for state in states]}

    def left(self, model: PreTrainedModel, given: dict[str, Any], output: Any) -> list[torch.Tensor]:
        """The list in the model's answer."""
        return list(output.state)


@dataclass(frozen=True, kw_only=True)
class AttributeLayout(StateLayout):
    """The state of a model whose modules keep some of it in attributes of their own (RecurrentGemma).

    `attributes`: states by the module and the attribute that hold them, `model.layers.0.rg_lru.recurrent_states`; they
    follow the tensors of the cache.
    """

    attributes: Mapping[str, StateTensor]

    def zeros(self, *, batch: int, cache_length: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Example states by name."""
        cached = super().zeros(batch=batch, cache_length=cache_length, device=device)
        return cached | {
            item.name: item.zeros(batch, cache_length, device) for item in self.attributes.values()
        }

    @property
    def is_recurrent(self) -> bool:
        return True

    def given(
        self,
        model: PreTrainedModel,
        states: Sequence[torch.Tensor],
        positions: torch.Tensor,
        *,
        prefill: bool,
    ) -> dict[str, Any]:
        """The cache; the attributes are set: in prefill to nothing, from which their modules begin."""
        count = len(self.tensors)
        for place, tensor in zip(self.attributes, states[count:], strict=True):
            _set_attribute(model, place, None if prefill else tensor.clone())
        return super().given(model, states[:count], positions, prefill=prefill)

    def left(self, model: PreTrainedModel, given: dict[str, Any], output: Any) -> list[torch.Tensor]:
        """The cache's new states, then the attributes', which are cleared: the next step is given its own."""
        kept = super().left(model, given, output)
        for place, item in self.attributes.items():
            owner, _, leaf = place.rpartition(".")
            kept.append(getattr(model.get_submodule(owner), leaf).to(item.dtype))
            _set_attribute(model, place, None)
        return kept


def _set_attribute(model: torch.nn.Module, place: str, value: torch.Tensor | None) -> None:
    owner, _, leaf = place.rpartition(".")
    setattr(model.get_submodule(owner), leaf, value)


def _tensor_attributes(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that modules hold as plain attributes, neither parameters nor buffers, by place."""
    return {
        f"{name}.{attribute}": value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if torch.is_tensor(value)
    }


def _cache_layer(tensors: dict[Role, dict[int, torch.Tensor]], positions: torch.Tensor, prefill: bool) -> Any:
    conv, recurrent = tensors.get("conv_state", {}), tensors.get("recurrent_state", {})
    if "key_cache" not in tensors:
        return FunctionalLinearLayer(conv, recurrent, prefill=prefill) if conv or recurrent else DummyLayer()
    keys, values = tensors["key_cache"][0], tensors["value_cache"][0]
    if conv or recurrent:
        return FunctionalHybridLayer(keys, values, positions, conv, recurrent, prefill=prefill)
    return FunctionalLayer(keys, values, positions, prefill=prefill)


def _state_of(layer: Any, role: Role, index: int) -> torch.Tensor:
    if role == "key_cache":
        return cast(torch.Tensor, layer.keys)
    if role == "value_cache":
        return cast(torch.Tensor, layer.values)
    states = layer.conv_states if role == "conv_state" else layer.recurrent_states
    return cast(torch.Tensor, states[index])


def cache_argument(model: PreTrainedModel) -> str:
    """By which name the model's forward takes its cache.

    Raises:
        CheckpointError: it takes none.
    """
    taken = inspect.signature(model.forward).parameters
    for name in CACHE_ARGUMENTS:
        if name in taken:
            return name
    raise CheckpointError(
        f"{type(model).__name__} takes none of {', '.join(CACHE_ARGUMENTS)}",
        hint="Its state is not kept in a transformers cache.",
    )


def state_layout(model: PreTrainedModel) -> StateLayout:
    """What state the model keeps, read off a two-token run.

    Raises:
        CheckpointError: a layer keeps something that is neither keys and values nor linear-attention states, or the
            model keeps nothing.
    """
    device = next(model.parameters()).device
    ids = torch.zeros((1, 2), dtype=torch.int64, device=device)
    state = StepState("prefill", torch.ones(1, dtype=torch.int32, device=device))
    is_list = LIST_ARGUMENT in inspect.signature(model.forward).parameters
    cache = None if is_list else DynamicCache(config=model.config)
    given = {LIST_ARGUMENT if is_list else cache_argument(model): cache}
    before = _tensor_attributes(model)
    with torch.no_grad(), unobserved(model), running(state):
        output = model(input_ids=ids, use_cache=True, **given)
    kept = {
        place: tensor
        for place, tensor in _tensor_attributes(model).items()
        if tensor is not before.get(place)
    }
    for place in kept:
        _set_attribute(model, place, before.get(place))
    if cache is None:
        return list_layout_of(output.state)
    layout = layout_of(cache, type(model).__name__, may_be_elsewhere=bool(kept))
    return _with_attributes(layout, kept) if kept else layout


def _with_attributes(layout: StateLayout, kept: Mapping[str, torch.Tensor]) -> AttributeLayout:
    attributes = {
        place: StateTensor(
            name=f"recurrent_state.{number}",
            role="recurrent_state",
            layer=number,
            shape=tuple(tensor.shape[1:]),
            dtype=tensor.dtype,
        )
        for number, (place, tensor) in enumerate(kept.items())
    }
    return AttributeLayout(layers=layout.layers, tensors=layout.tensors, attributes=attributes)


def list_layout_of(states: Sequence[torch.Tensor]) -> ListLayout:
    """The layout of a list of states [1, ..] that a run of one row has answered with."""
    tensors = (
        StateTensor(
            name=f"recurrent_state.{number}",
            role="recurrent_state",
            layer=0,
            index=number,
            shape=tuple(tensor.shape[1:]),
            dtype=tensor.dtype,
        )
        for number, tensor in enumerate(states)
    )
    return ListLayout(layers=1, tensors=tuple(tensors))


def layout_of(cache: Cache, owner: str, *, may_be_elsewhere: bool = False) -> StateLayout:
    """The layout of a cache that a run of one row has filled; `owner` is whose it is, for messages.

    `may_be_elsewhere`: modules keep state themselves, so that a layer of the cache may stay empty.
    """
    tensors: list[StateTensor] = []
    for number, layer in enumerate(cache.layers):
        found = list(_tensors_of(layer, number))
        if not found and not may_be_elsewhere and not isinstance(layer, DummyLayer):
            raise CheckpointError(
                f"Layer {number} of {owner} keeps its state in `{type(layer).__name__}`, "
                "which holds neither keys and values nor recurrent states",
                hint="Its kind of layer cannot be converted yet.",
            )
        tensors.extend(found)
    if not tensors:
        raise CheckpointError(f"{owner} used no cache", hint="Is it a causal language model?")
    return StateLayout(layers=len(cache.layers), tensors=tuple(tensors))


def _tensors_of(layer: Any, number: int) -> Iterator[StateTensor]:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if isinstance(layer, DynamicLayer) and keys is not None and values is not None:
        heads, key_size, value_size = keys.shape[1], keys.shape[3], values.shape[3]
        yield StateTensor(
            name=f"key_cache.{number}",
            role="key_cache",
            layer=number,
            shape=(heads, key_size, None),
            dtype=keys.dtype,
        )
        yield StateTensor(
            name=f"value_cache.{number}",
            role="value_cache",
            layer=number,
            shape=(heads, None, value_size),
            dtype=values.dtype,
        )
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        roles: tuple[tuple[Role, dict[int, torch.Tensor | None]], ...] = (
            ("conv_state", layer.conv_states),
            ("recurrent_state", layer.recurrent_states),
        )
        for role, states in roles:
            for index, tensor in states.items():
                if tensor is not None:
                    several = f".{index}" if layer.number_of_states > 1 else ""
                    yield StateTensor(
                        name=f"{role}.{number}{several}",
                        role=role,
                        layer=number,
                        index=index,
                        shape=tuple(tensor.shape[1:]),
                        dtype=tensor.dtype,
                    )
