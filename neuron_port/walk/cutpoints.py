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
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from neuron_port.walk.attention import (
    IGNORED_ARGUMENTS,
    attributes_of,
    decode_attention,
    is_decode,
    prefill_attention,
    rule_of,
)
from neuron_port.walk.calls import Call, Handler, plain_attributes
from neuron_port.walk.masks import (
    additive,
    build_mask,
    data_of,
    structured_masks,
)
from neuron_port.walk.program import current_step
from neuron_port.walk.torch_calls import TorchCalls

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


@contextmanager
def intercept(model: PreTrainedModel, handler: Handler) -> Iterator[Callable[[], frozenset[str]]]:
    """Route the model's calls through `handler` until the block ends; the model is left as it was.

    Yields a function that gives the names of the parameters which no module of their own was called for: the code of a
    module with children read them itself.
    """
    state = Interception(model, handler)
    with state.modules(), state.functions(), state.attention(), structured_masks(), TorchCalls(state):
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


class Interception:
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
        # A word says which of a module's tables is meant: calls with different words are different layers.
        words = {f"argument {place}": word for place, word in enumerate(args) if isinstance(word, str)}
        words |= {key: word for key, word in kwargs.items() if isinstance(word, str)}
        try:
            call = Call(
                name="#".join((name, *words.values())),
                operation="module",
                module=module,
                owner=type(module).__name__,
                function=function,
                args=args,
                kwargs=kwargs,
                attributes=plain_attributes(module) | words,
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
        return self.call_function(place, operation, function, args, kwargs, attributes)

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
        structure = rule_of(module, query, key, attention_mask, kwargs)
        data = data_of(attention_mask)
        bias = additive(data, query.dtype) if data is not None and data.dtype is torch.bool else data
        options = {
            name: item
            for name, item in kwargs.items()
            if item is not None and not (torch.is_tensor(item) and name in IGNORED_ARGUMENTS)
        }
        attributes = attributes_of(structure, query, options)
        options["scaling"] = attributes["scaling"]
        name = self.named("attention")
        if is_decode(structure, query, key):
            decode = (module, query, key.transpose(2, 3), value, current_step().positions, bias)
            function = functools.partial(decode_attention, structure=structure)
            return self.call_function(name, "attention_decode", function, decode, options, attributes, module)
        function = functools.partial(prefill_attention, structure=structure)
        prefill = (module, query, key, value, bias)
        return self.call_function(name, "attention", function, prefill, options, attributes, module)

    def call_function(
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
