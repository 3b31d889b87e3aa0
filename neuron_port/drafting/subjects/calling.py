"""How a layer is called and how its kernel would be: tensors found among the arguments, rows flattened, results rebuilt.

A kernel takes flat tensors. `Calling` says which tensors of a layer's call those are, in which order, and in what form;
everything else about the call (numbers, None, modules) is a fact that must be the same again.
"""

from __future__ import annotations

import contextlib
import inspect
import keyword
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from neuron_port.drafting.subjects.reference_code import Argument, NotDraftableError
from neuron_port.match.probe import index_limit, relative_difference
from neuron_port.types import TensorSpec, WeightSource
from neuron_port.walk.calls import Call, flatten_tensors

OWN_WORDS = ("operator", "weights", "attributes", "self")
RENAMED = {"input": "x", "attention_mask": "mask"}
PLAIN = (bool, int, float, str)
ROW_LIMIT = 1e-4  # of the largest value: rows computed in another order differ by rounding only
TRIAL_TOKENS = 6


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor among a call's arguments: `place` is its position or keyword, `parameter` the name it has there."""

    place: int | str
    parameter: str
    name: str  # for the kernel
    shape: tuple[int, ...]
    dtype: str
    token_axis: int | None

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith(("float", "bfloat"))


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A parameter that the kernel takes: its role, where it comes from, and its shape in the kernel's layout."""

    role: str
    source: WeightSource
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the layer returns: `container` of tensors and Nones, by number of the tensor."""

    container: Literal["tensor", "tuple", "list"]
    slots: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Calling:
    """The convention of one layer's call.

    `rows` leading axes of every tensor count rows, each of which is computed by itself: the kernel sees [T, ...].
    Zero: the tensors keep their shape.
    """

    call: Call
    module: torch.nn.Module | None  # on the CPU, parameters random in float32; of a function: as it is
    tensors: tuple[Tensor, ...]
    weights: tuple[Weight, ...]
    plain: Mapping[int | str, Any]  # arguments that are numbers or words
    results: Results
    rows: int
    ones: int  # axes of size 1 that the layer insists on in front of the rows
    index_limit: int

    def arguments(self, *, free: bool = True) -> tuple[Argument, ...]:
        """The kernel's tensors: activations in call order, then weights. `free`: the number of tokens may vary."""
        return tuple(
            Argument(name=item.name, shape=self._shape(item, free), is_float=item.is_float)
            for item in self.tensors
        ) + tuple(Argument(name=item.role, shape=item.shape) for item in self.weights)

    def _shape(self, item: Tensor, free: bool) -> tuple[int | str, ...]:
        if self.rows:
            return ("T" if free else math.prod(item.shape[: self.rows]), *item.shape[self.rows :])
        shape: list[int | str] = list(item.shape)
        if item.token_axis is not None and free:
            shape[item.token_axis] = "T"
        return tuple(shape)

    def run(self, *flat: torch.Tensor) -> list[torch.Tensor]:
        """The layer itself on the kernel's tensors; results with their rows flattened likewise."""
        tensors = list(flat[: len(self.tensors)])
        for number, item in enumerate(self.tensors):
            if not item.is_float:
                tensors[number] = tensors[number].to(getattr(torch, item.dtype))
            if self.ones:
                tensors[number] = tensors[number].reshape(*[1] * self.ones, *tensors[number].shape)
        parameters = {
            item.source.name: tensor.t() if item.source.transform == "transpose" else tensor
            for item, tensor in zip(self.weights, flat[len(self.tensors) :], strict=True)
        }
        results = list(flatten_tensors(self._call(tensors, parameters)))
        if self.ones:
            results = [result.reshape(-1, *result.shape[self.ones + 1 :]) for result in results]
        return results

    def _call(self, tensors: Sequence[torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> Any:
        given = {item.place: tensor for item, tensor in zip(self.tensors, tensors, strict=True)}
        args = tuple(given.get(place, value) for place, value in enumerate(self.call.args))
        kwargs = {name: given.get(name, value) for name, value in self.call.kwargs.items()}
        if self.call.operation == "module":
            assert self.module is not None
            return torch.func.functional_call(self.module, dict(parameters), args, kwargs)
        return self.call.function(*args, **kwargs)

    def examples(self, generator: torch.Generator, tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
        """Random tensors for the kernel's arguments, at `tokens` tokens."""
        made = []
        for argument, item in zip(self.arguments(), (*self.tensors, *self.weights), strict=True):
            shape = argument.sized(tokens)
            if argument.is_float:
                scale = shape[-1] ** -0.5 if isinstance(item, Weight) and len(shape) > 1 else 1.0
                made.append((torch.randn(shape, generator=generator) * scale).to(dtype))
            else:
                limit = tokens if self.call.operation == "attention_decode" else self.index_limit
                made.append(torch.randint(0, limit, shape, generator=generator, dtype=torch.int32))
        return made


def calling_of(call: Call, module: torch.nn.Module | None, token_axes: Sequence[int | None]) -> Calling:
    """Read the convention off one call.

    Args:
        module: of a module's call, its copy on the CPU with random parameters.
        token_axes: for each of the call's tensors, the axis that counts tokens.
    Raises:
        NotDraftableError: the call carries what a kernel cannot be given.
    """
    tensors = _tensors(call, token_axes)
    weights = _weights(module, {item.name for item in tensors}) if call.operation == "module" else ()
    floats = {item.dtype for item in tensors if item.is_float}
    if len(floats) > 1:
        raise NotDraftableError(f"its inputs have two dtypes: {' and '.join(sorted(floats))}")
    if not floats and not weights:
        raise NotDraftableError("no floating point tensor enters it")
    for item in tensors:
        if item.dtype not in ("float32", "bfloat16", "float16", "int32", "int64"):
            raise NotDraftableError(f"its input `{item.name}` is {item.dtype}")
    if any(not item.is_float for item in tensors) and not weights and call.operation != "attention_decode":
        raise NotDraftableError("is given integers, and no table says how large they may be")
    draft = Calling(
        call=call,
        module=module,
        tensors=tensors,
        weights=weights,
        plain=_plain(call),
        results=Results(container="tensor", slots=(0,)),
        rows=0,
        ones=0,
        index_limit=index_limit(call),
    )
    known = replace(draft, results=_results(draft))
    rows, ones = _row_axes(known)
    return replace(known, rows=rows, ones=ones)


def _tensors(call: Call, token_axes: Sequence[int | None]) -> tuple[Tensor, ...]:
    names = parameter_names(call)
    found: list[Tensor] = []
    taken: set[str] = set()
    given: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    for place, value in given:
        if isinstance(value, torch.Tensor):
            parameter = place if isinstance(place, str) else names[place]
            name = _unique(_identifier(RENAMED.get(parameter, parameter)), taken)
            found.append(
                Tensor(
                    place=place,
                    parameter=parameter,
                    name=name,
                    shape=tuple(value.shape),
                    dtype=str(value.dtype).removeprefix("torch."),
                    token_axis=token_axes[len(found)],
                )
            )
        elif next(flatten_tensors(value), None) is not None:
            raise NotDraftableError("is given tensors inside a tuple, a list or a dict")
        elif value is not None and not isinstance(value, (*PLAIN, torch.nn.Module)):
            raise NotDraftableError(f"is given a `{type(value).__name__}`, which is no tensor and no number")
    if not found:
        raise NotDraftableError("no tensor enters it")
    return tuple(found)


def parameter_names(call: Call) -> list[str]:
    """What the layer's own signature calls its positional arguments."""
    parameters: list[inspect.Parameter] = []
    with contextlib.suppress(TypeError, ValueError):  # a function written in C has no signature
        parameters = list(inspect.signature(call.function).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [item.name for item in parameters if item.kind in kinds]
    if len(names) < len(call.args):
        names = list("xyzuvw") if len(call.args) <= 6 else [f"x{n}" for n in range(len(call.args))]
    return [f"{name}_" if name in OWN_WORDS else name for name in names]


def _identifier(name: str) -> str:
    text = "".join(letter if letter.isalnum() else "_" for letter in name)
    return f"{text}_" if keyword.iskeyword(text) or text in ("torch", "functional", *OWN_WORDS) else text


def _unique(name: str, taken: set[str]) -> str:
    chosen, number = name, 1
    while chosen in taken:
        number += 1
        chosen = f"{name}_{number}"
    taken.add(chosen)
    return chosen


def _weights(module: torch.nn.Module | None, taken: set[str]) -> tuple[Weight, ...]:
    assert module is not None
    linear = {
        f"{name}.weight".removeprefix(".")
        for name, child in module.named_modules()
        if type(child) is torch.nn.Linear
    }
    used = set(taken)
    weights = []
    for name, parameter in module.named_parameters():
        shape = tuple(parameter.shape)
        turned = name in linear
        weights.append(
            Weight(
                role=_unique(_identifier(name), used),
                source=WeightSource(name=name, transform="transpose" if turned else "none"),
                shape=shape[::-1] if turned else shape,
            )
        )
    return tuple(weights)


def _plain(call: Call) -> dict[int | str, Any]:
    items: Iterable[tuple[int | str, Any]] = (*enumerate(call.args), *call.kwargs.items())
    return {place: value for place, value in items if isinstance(value, PLAIN)}


def _results(calling: Calling) -> Results:
    tensors, parameters = _drawn(calling, 0)
    result = attempt(calling._call, tensors, parameters)
    if isinstance(result, torch.Tensor):
        return Results(container="tensor", slots=(0,))
    containers: dict[Any, Literal["tuple", "list"]] = {tuple: "tuple", list: "list"}
    container = containers.get(type(result))
    items = list(result) if container else []
    if container is None or not all(item is None or torch.is_tensor(item) for item in items):
        raise NotDraftableError(f"returns a `{type(result).__name__}`, not tensors")
    count = iter(range(len(items)))
    slots = tuple(None if item is None else next(count) for item in items)
    if not any(slot is not None for slot in slots):
        raise NotDraftableError("returns no tensor")
    return Results(container=container, slots=slots)


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """Run the layer's own code; whatever it raises becomes a reason."""
    try:
        with torch.no_grad():
            return function(*args)
    except NotDraftableError:
        raise
    except Exception as error:  # the layer's code is the model's author's
        reason = " ".join(str(error).split()[:25])
        raise NotDraftableError(f"fails on random inputs: {type(error).__name__}: {reason}") from error


def _drawn(calling: Calling, seed: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Arguments in the layer's own form, few tokens, and its parameters."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for item in calling.tensors:
        shape = list(item.shape)
        if item.token_axis is not None and calling.call.operation != "attention_decode":
            shape[item.token_axis] = TRIAL_TOKENS
        if item.is_float:
            tensors.append(torch.randn(shape, generator=generator))
        else:
            dtype = getattr(torch, item.dtype)
            tensors.append(torch.randint(0, calling.index_limit, shape, generator=generator, dtype=dtype))
    module = calling.module if calling.call.operation == "module" else None
    return tensors, dict(module.named_parameters()) if module is not None else {}


def _row_axes(calling: Calling) -> tuple[int, int]:
    """How many leading axes count rows that are computed one by one, and how many ones the layer wants before them.

    No rows when tokens look at each other.
    """
    if calling.call.operation.startswith("attention"):
        return 0, 0
    least = max((item.token_axis or 0) + 1 for item in calling.tensors)
    most = min(len(item.shape) - item.is_float for item in calling.tensors)
    for rows in range(most, least - 1, -1):
        for ones in sorted({0, rows - 1}):
            if _is_row_wise(calling, rows, ones):
                return rows, ones
    return 0, 0


def _is_row_wise(calling: Calling, rows: int, ones: int) -> bool:
    """Whether shuffling the rows, and leaving some out, does just that to the results."""
    tensors, parameters = _drawn(calling, 1)
    leading = {tuple(tensor.shape[:rows]) for tensor in tensors}
    whole = list(flatten_tensors(attempt(calling._call, tensors, parameters)))
    if len(leading) > 1 or any(tuple(result.shape[:rows]) not in leading for result in whole):
        return False
    count = math.prod(*leading)
    expected = [result.reshape(count, *result.shape[rows:]) for result in whole]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(2))
    for chosen in (order, order[: max(1, count // 2)]):
        front = (*[1] * ones, len(chosen))
        picked = [
            tensor.reshape(count, *tensor.shape[rows:])[chosen].reshape(*front, *tensor.shape[rows:])
            for tensor in tensors
        ]
        try:
            ours = list(flatten_tensors(attempt(calling._call, picked, parameters)))
        except NotDraftableError:  # it insists on its own leading axes
            return False
        if any(tuple(result.shape[: len(front)]) != front for result in ours):
            return False
        flat = [result.reshape(len(chosen), *result.shape[len(front) :]) for result in ours]
        if relative_difference(flat, [result[chosen] for result in expected]) > ROW_LIMIT:
            return False
    return True


def token_axes(
    inputs: Sequence[TensorSpec], other: Sequence[TensorSpec] | None, tokens: int
) -> list[int | None]:
    """For each tensor of a call, the axis that counts tokens.

    Args:
        other: the same layer's inputs in a step with another number of tokens; where shapes differ, tokens are.
        tokens: of this step; the axis of this size, the last of a float tensor excepted, when there is no other.
    """
    if other is not None and [len(spec.shape) for spec in other] == [len(spec.shape) for spec in inputs]:
        differing = [
            next((axis for axis, size in enumerate(a.shape) if size != b.shape[axis]), None)
            for a, b in zip(inputs, other, strict=True)
        ]
        if any(axis is not None for axis in differing):
            return differing
    found: list[int | None] = []
    for spec in inputs:
        last = len(spec.shape) - 1 if spec.dtype.startswith(("float", "bfloat")) else len(spec.shape)
        matching = [axis for axis in range(last) if spec.shape[axis] == tokens]
        found.append(matching[-1] if matching else None)
    return found
