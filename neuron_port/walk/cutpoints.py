"""The places where a running model can be observed or replaced: modules, attention, rotary embedding, residual adds.

`intercept(model, handler)` routes every such call through one handler. The walker's handler records and passes
through; the port's handler substitutes kernels. Both therefore see exactly the same calls under the same names.

Attention is cut through transformers' own `AttentionInterface`. Our name is not registered with its mask interface,
so no mask tensor is built: causality is a property of the call, not data.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel

from neuron_port.types import TensorSpec
from neuron_port.walk.attention import decode_attention, prefill_attention
from neuron_port.walk.step import current_step

ATTENTION_NAME = "neuron_port"
ROPE_FUNCTION = "apply_rotary_pos_emb"  # transformers' name for it in every modeling file that has one
_IGNORED_ATTENTION_ARGUMENTS = {"dropout", "use_cache", "output_attentions", "scaling"}
_ADDITIONS = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call at a cut point: `function(*args, **kwargs)` is what the model itself would do."""

    name: str
    operation: str  # "module", "rope", "attention", "attention_decode", "add"
    module: torch.nn.Module | None
    owner: str  # class of the module, or of the one that the function was cut out of
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(flatten_tensors((self.args, dict(self.kwargs))))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec_of(tensor) for tensor in self.tensors)


Handler = Callable[[Call], Any]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(shape=tuple(tensor.shape), dtype=dtype_name(tensor.dtype))


def flatten_tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from flatten_tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from flatten_tensors(item)


@contextmanager
def intercept(model: PreTrainedModel, handler: Handler) -> Iterator[None]:
    """Route the model's calls through `handler` until the block ends; the model is left as it was."""
    state = _Interception(model, handler)
    with state.modules(), state.rope(), state.attention(), _AddMode(state):
        yield


class _Interception:
    """Where the model is (module names, innermost last), how often each cut point was passed, and the handler."""

    def __init__(self, model: PreTrainedModel, handler: Handler) -> None:
        self.model = model
        self.handler = handler
        self.module_stack: list[str] = []
        self.inside_function = False
        self.ordinals: dict[str, int] = {}

    @property
    def place(self) -> str:
        return self.module_stack[-1] if self.module_stack else ""

    def numbered(self, suffix: str) -> str:
        """`model.layers.3#add.0`, `#add.1`: the n-th passage in this module call."""
        key = f"{self.place}#{suffix}"
        count = self.ordinals.get(key, 0)
        self.ordinals[key] = count + 1
        return f"{key}.{count}"

    @contextmanager
    def modules(self) -> Iterator[None]:
        wrapped = [(name, module) for name, module in self.model.named_modules() if name]
        for name, module in wrapped:
            module.forward = functools.partial(self._call_module, name, module, module.forward)
        try:
            yield
        finally:
            for _, module in wrapped:
                del module.forward

    def _call_module(
        self, name: str, module: torch.nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        self.module_stack.append(name)
        for key in [key for key in self.ordinals if key.startswith(f"{name}#")]:
            del self.ordinals[key]
        try:
            call = Call(
                name=name,
                operation="module",
                module=module,
                owner=type(module).__name__,
                function=function,
                args=args,
                kwargs=kwargs,
                attributes=plain_attributes(module),
            )
            return self.handler(call)
        finally:
            self.module_stack.pop()

    @contextmanager
    def rope(self) -> Iterator[None]:
        """Replace the rotary function in each modeling file that the model's classes come from."""
        files = {type(module).__module__ for module in self.model.modules()}
        found = [
            (sys.modules[file], getattr(sys.modules[file], ROPE_FUNCTION, None)) for file in sorted(files)
        ]
        patched = [(file, function) for file, function in found if callable(function)]
        for file, function in patched:
            setattr(file, ROPE_FUNCTION, functools.partial(self._call_rope, function))
        try:
            yield
        finally:
            for file, function in patched:
                setattr(file, ROPE_FUNCTION, function)

    def _call_rope(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        attributes = {key: value for key, value in kwargs.items() if isinstance(value, (int, float, str))}
        return self._call_function(f"{self.place}#rope", "rope", function, args, kwargs, attributes)

    @contextmanager
    def attention(self) -> Iterator[None]:
        earlier = self.model.config._attn_implementation
        AttentionInterface.register(ATTENTION_NAME, self._call_attention)
        self.model.set_attn_implementation(ATTENTION_NAME)
        try:
            yield
        finally:
            self.model.set_attn_implementation(earlier)

    def _call_attention(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """query: [B, Q, S, D]; key, value: [B, G, S or C, D]."""
        step = current_step()
        attributes = {
            name: item
            for name, item in kwargs.items()
            if item is not None and name not in _IGNORED_ATTENTION_ARGUMENTS and not torch.is_tensor(item)
        }
        attributes["scaling"] = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
        attributes["is_causal"] = bool(attributes.get("is_causal", getattr(module, "is_causal", True)))
        tensors = sorted(
            name for name, item in kwargs.items() if torch.is_tensor(item) and name != "position_ids"
        )
        attributes |= {
            f"tensor:{name}": True for name in tensors
        }  # sinks, position bias: part of what it computes
        options = {name: item for name, item in kwargs.items() if name != "position_ids"}
        options["scaling"] = attributes["scaling"]
        name = f"{self.place}#attention"
        if step.phase == "prefill":
            prefill = (module, query, key, value, None)
            return self._call_function(
                name, "attention", prefill_attention, prefill, options, attributes, module
            )
        decode = (module, query, key.transpose(2, 3), value, step.positions)
        return self._call_function(
            name, "attention_decode", decode_attention, decode, options, attributes, module
        )

    def _call_function(
        self,
        name: str,
        operation: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        attributes: Mapping[str, Any],
        module: torch.nn.Module | None = None,
    ) -> Any:
        call = Call(
            name=name,
            operation=operation,
            module=module,
            owner=type(self.model.get_submodule(self.place)).__name__,
            function=function,
            args=args,
            kwargs=kwargs,
            attributes=attributes,
        )
        outer, self.inside_function = self.inside_function, True
        try:
            return self.handler(call)
        finally:
            self.inside_function = outer


class _AddMode(TorchFunctionMode):
    """Sees `a + b` of two equally shaped activations in a module that has children: the residual stream."""

    def __init__(self, state: _Interception) -> None:
        super().__init__()
        self.state = state
        self.composite = {name for name, module in state.model.named_modules() if any(module.children())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        state = self.state
        if (
            func in _ADDITIONS
            and not state.inside_function
            and state.place in self.composite
            and is_residual(args, kwargs)
        ):
            return state._call_function(state.numbered("add"), "add", func, args, kwargs, {})
        return func(*args, **kwargs)


def is_residual(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether these are the operands of x [.., H] + y [.., H], both floating point and of equal shape."""
    if kwargs or len(args) != 2 or not all(torch.is_tensor(item) for item in args):
        return False
    x, y = args
    return x.ndim >= 2 and x.shape == y.shape and x.dtype == y.dtype and x.is_floating_point()


def plain_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """The module's own numbers and words (eps, in_features, activation); what only says where it stands is left out."""
    ignored = {"training", "layer_idx", "gradient_checkpointing"}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ignored and isinstance(value, (bool, int, float, str))
    }
