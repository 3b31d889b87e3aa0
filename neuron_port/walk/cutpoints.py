"""The places where a running model can be observed or replaced: modules, attention, functions of its file, products.

`intercept(model, handler)` routes every such call through one handler. The walker's handler records and passes
through; the port's handler substitutes kernels. Both therefore see exactly the same calls under the same names.

Attention is cut through transformers' own `AttentionInterface`, masks through its mask interface (masks.py): causality
is a property of the call, not data. Functions of a modeling file (rotary embedding, scans, causal convolutions) are
cut by what their name says they compute; products, softmax and residual additions where torch is called.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from neuron_port.types import TensorSpec
from neuron_port.walk.attention import decode_attention, prefill_attention
from neuron_port.walk.cache import is_cache_view
from neuron_port.walk.masks import (
    CAUSAL,
    EVERYTHING,
    MaskStructure,
    additive,
    build_mask,
    data_of,
    structure_of,
    structured_masks,
)
from neuron_port.walk.program import current_step, step_or_none

ATTENTION_NAME = "neuron_port"
STATIC_EXPERTS = "batched_mm"  # transformers' name for the experts whose shapes do not depend on the routing
# Functions of a modeling file that are layers, by what transformers' names say they compute -> the operation.
FUNCTIONS = {
    "rope": re.compile(r"apply_(multimodal_)?rotary"),
    "function": re.compile(
        r"(?!mamba_inner|.*split_conv1d)"  # all in one, for training: they give None without their CUDA kernel
        r"\w*(causal_conv1d|selective_scan|chunk_scan|state_update|delta_rule|linear_attention|kda|wkv)"
    ),
}
_NO_FUNCTION = re.compile(r"\w*_cpu$|load_")  # what a function above falls back to; what fetches CUDA code
_IGNORED_ATTENTION_ARGUMENTS = {
    "dropout", "use_cache", "output_attentions", "scaling", "sliding_window", "is_causal", "position_ids",
    "output_hidden_states", "return_dict", "cache_position",
}  # fmt: skip
_ADDITIONS = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)
_PRODUCTS = (
    torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__, torch.bmm,
    torch.Tensor.bmm, torch.baddbmm, torch.Tensor.baddbmm, torch.einsum,
)  # fmt: skip
_SOFTMAX = (torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call at a cut point: `function(*args, **kwargs)` is what the model itself would do."""

    name: str
    operation: str  # one of neuron_port.recipe.OPERATIONS
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
def intercept(model: PreTrainedModel, handler: Handler) -> Iterator[Callable[[], frozenset[str]]]:
    """Route the model's calls through `handler` until the block ends; the model is left as it was.

    Yields a function that gives the names of the parameters which no module of their own was called for: the code of a
    module with children read them itself.
    """
    state = _Interception(model, handler)
    with state.modules(), state.functions(), state.attention(), structured_masks(), _TorchMode(state):
        yield lambda: frozenset(
            name for name, parameter in model.named_parameters() if id(parameter) in state.touched
        )


@contextmanager
def unobserved(model: PreTrainedModel) -> Iterator[None]:
    """Run the model's calls as they are, by the rules of `intercept`; inside `intercept`, change nothing."""
    if model.config._attn_implementation == ATTENTION_NAME:
        yield
    else:
        with intercept(model, Call.run):
            yield


class _Interception:
    """Where the model is (module names, innermost last), how often each cut point was passed, and the handler."""

    def __init__(self, model: PreTrainedModel, handler: Handler) -> None:
        self.model = model
        self.handler = handler
        self.module_stack: list[str] = []
        self.inside_function = False
        self.ordinals: dict[str, int] = {}
        self.touched: set[int] = set()  # ids of the parameters that composite modules' own code reads

    @property
    def place(self) -> str:
        return self.module_stack[-1] if self.module_stack else ""

    def numbered(self, suffix: str) -> str:
        """`model.layers.3#add.0`, `#add.1`: the n-th passage in this module call."""
        key = f"{self.place}#{suffix}"
        count = self.ordinals.get(key, 0)
        self.ordinals[key] = count + 1
        return f"{key}.{count}"

    def named(self, suffix: str) -> str:
        """`self_attn#rope`, and `#rope.1` where a module passes there again: most do once."""
        return self.numbered(suffix).removesuffix(".0")

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
    def functions(self) -> Iterator[None]:
        """Replace the functions that are layers in each modeling file that the model's classes come from."""
        files = {type(module).__module__ for module in self.model.modules()}
        patched = []
        for file in (sys.modules[name] for name in sorted(files)):
            for name, value in list(vars(file).items()):
                operation = operation_of_function(name, value)
                if operation is not None:
                    patched.append((file, name, value))
                    replacement = functools.partial(self._call_named, operation, name, value)
                    setattr(file, name, replacement)
        try:
            yield
        finally:
            for file, name, value in patched:
                setattr(file, name, value)

    def _call_named(
        self, operation: str, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if self.inside_function:
            return function(*args, **kwargs)
        attributes = {key: value for key, value in kwargs.items() if isinstance(value, (int, float, str))}
        attributes["function"] = name
        place = self.named(operation if operation == "rope" else name)
        return self._call_function(place, operation, function, args, kwargs, attributes)

    @contextmanager
    def attention(self) -> Iterator[None]:
        """Attention through our interface; experts by the product that has static shapes (each token's own weights)."""
        earlier = [
            (config, config._attn_implementation, getattr(config, "_experts_implementation", None))
            for config in configurations(self.model)
        ]
        AttentionInterface.register(ATTENTION_NAME, self._call_attention)
        AttentionMaskInterface.register(ATTENTION_NAME, build_mask)
        for config, _, _ in earlier:
            config._attn_implementation = ATTENTION_NAME
            config._experts_implementation = STATIC_EXPERTS
        try:
            yield
        finally:
            for config, attention, experts in earlier:
                config._attn_implementation = attention
                config._experts_implementation = experts

    def _call_attention(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """query: [B, Q, S, D]; key [B, G, S or C, D]; value [B, G, S or C, E]."""
        structure = _rule(module, query, key, attention_mask, kwargs)
        data = data_of(attention_mask)
        bias = additive(data, query.dtype) if data is not None and data.dtype is torch.bool else data
        options = {
            name: item
            for name, item in kwargs.items()
            if item is not None and not (torch.is_tensor(item) and name in _IGNORED_ATTENTION_ARGUMENTS)
        }
        attributes = _attention_attributes(structure, query, options)
        options["scaling"] = attributes["scaling"]
        name = self.named("attention")
        if _is_decode(structure, query, key):
            decode = (module, query, key.transpose(2, 3), value, current_step().positions, bias)
            function = functools.partial(decode_attention, structure=structure)
            return self._call_function(
                name, "attention_decode", function, decode, options, attributes, module
            )
        function = functools.partial(prefill_attention, structure=structure)
        prefill = (module, query, key, value, bias)
        return self._call_function(name, "attention", function, prefill, options, attributes, module)

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


class _TorchMode(TorchFunctionMode):
    """Sees torch called in a module that has children: residual additions, products of activations, softmax."""

    def __init__(self, state: _Interception) -> None:
        super().__init__()
        self.state = state
        self.composite = {name for name, module in state.model.named_modules() if any(module.children())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        state = self.state
        if state.place not in self.composite:
            return func(*args, **kwargs)
        for tensor in flatten_tensors((args, kwargs)):
            state.touched.add(id(tensor if isinstance(tensor, torch.nn.Parameter) else tensor._base))
        if state.inside_function:
            return func(*args, **kwargs)
        operation = _torch_operation(func, args, kwargs)
        if operation is None:
            return func(*args, **kwargs)
        attributes = {} if operation == "add" else {"function": getattr(func, "__name__", str(func))}
        attributes |= {key: value for key, value in kwargs.items() if isinstance(value, (int, float, str))}
        attributes |= {
            f"argument {place}": value
            for place, value in enumerate(args)
            if isinstance(value, (int, float, str)) and operation != "add"
        }
        return state._call_function(state.numbered(operation), operation, func, args, kwargs, attributes)


def _torch_operation(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    if func in _ADDITIONS and is_residual(args, kwargs):
        return "add"
    tensors = list(flatten_tensors((args, dict(kwargs))))
    if not tensors or not all(tensor.is_floating_point() for tensor in tensors):
        return None
    if func in _PRODUCTS and len(tensors) >= 2:
        return "matmul"
    return "softmax" if func in _SOFTMAX and len(tensors) == 1 else None


def operation_of_function(name: str, value: Any) -> str | None:
    """Which operation a function of a modeling file is, by its name; None: it is no layer."""
    if not callable(value) or isinstance(value, type) or _NO_FUNCTION.match(name):
        return None
    return next((operation for operation, pattern in FUNCTIONS.items() if pattern.match(name)), None)


def configurations(model: PreTrainedModel) -> list[Any]:
    """Every configuration object that the model's parts read, each once: a part may hold a copy of its own."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    return list(found.values())


def _is_decode(structure: MaskStructure, query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether one new token looks at a cache: its slots themselves, or keys that were made of them (latent caches)."""
    step = step_or_none()
    return is_cache_view(key) or (
        step is not None
        and step.phase == "decode"
        and structure.is_causal
        and query.shape[2] == 1 < key.shape[2]
    )


def _rule(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: Mapping[str, Any],
) -> MaskStructure:
    """Which keys a query sees by rule. Without a mask the module says whether it is causal, as torch's own attention."""
    if mask is not None:
        structure = structure_of(mask)
        return EVERYTHING if structure.is_data else structure
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    window = kwargs.get("sliding_window")
    if not causal or (query.shape[2] != key.shape[2] and not is_cache_view(key)):
        return EVERYTHING
    return CAUSAL.both(MaskStructure(before=window - 1)) if window else CAUSAL


def _attention_attributes(
    structure: MaskStructure, query: torch.Tensor, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the result besides the tensors; tensors among the keywords are named `tensor:<name>`."""
    attributes: dict[str, Any] = {
        name: item
        for name, item in options.items()
        if name not in _IGNORED_ATTENTION_ARGUMENTS and isinstance(item, (bool, int, float, str))
    }
    attributes["scaling"] = float(options.get("scaling") or query.shape[-1] ** -0.5)
    attributes["is_causal"] = structure.is_causal
    bounds = {"window_before": structure.before, "chunk_size": structure.chunk}
    if not structure.is_causal:
        bounds["window_after"] = structure.after
    attributes |= {name: bound for name, bound in bounds.items() if bound is not None}
    tensors = sorted(name for name, item in options.items() if torch.is_tensor(item))
    return attributes | {f"tensor:{name}": True for name in tensors}


def is_residual(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether these are the operands of x [.., H] + y [.., H], both floating point and of equal shape."""
    if kwargs or len(args) != 2 or not all(torch.is_tensor(item) for item in args):
        return False
    x, y = args
    return x.ndim >= 2 and x.shape == y.shape and x.dtype == y.dtype and x.is_floating_point()


def stored_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The module's parameters and the buffers that a checkpoint keeps, by name, tied ones under each name."""
    return dict(module.state_dict(keep_vars=True))


def plain_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """The module's own numbers and words (eps, in_features, activation); what only says where it stands is left out."""
    ignored = {"training", "layer_idx", "gradient_checkpointing"}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ignored and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    """Numbers and words, and rows of them: two convolutions may differ in nothing but their padding and dilation."""
    if isinstance(value, tuple):
        return all(isinstance(item, (bool, int, float, str)) for item in value)
    return isinstance(value, (bool, int, float, str))
