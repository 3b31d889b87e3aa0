"""What a kernel is called with: arrays from files or made from a shape, and attributes from `--set`.

An array is `NAME=SHAPE[:DTYPE[:FILL[:NUMBER]]]`, `NAME=FILE.npy`, or a whole `FILE.npz` with one array per argument.
Made arrays depend on the seed and on their place among the inputs only, so a command line says all that is needed to
make them again.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from neuron_port.errors import UsageError
from neuron_port.simulator import SimulatorError, dtypes

FILLS = ("normal", "uniform", "zeros", "ones", "arange")
_SPEC = re.compile(
    r"(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+)(?::(?P<fill>\w+)(?::(?P<number>[-+.\deE]+))?)?)?"
)
# numpy's files keep a dtype that numpy does not know as raw bytes. Two bytes can only be bfloat16: float16 is numpy's.
_RAW_TWO_BYTES = np.dtype("V2")


@dataclass(frozen=True, kw_only=True)
class Input:
    """One array, and in words where its values come from: "normal, seed 3" or the file's name."""

    name: str
    array: np.ndarray
    origin: str


def read_inputs(given: Iterable[str], seed: int = 0) -> tuple[Input, ...]:
    """The arrays that `--input` options describe, in their order.

    Raises:
        UsageError: no such file, a form that is none of the three, an unknown dtype or fill, a name given twice.
    """
    inputs: list[Input] = []
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            inputs.extend(_read_archive(Path(text)))
        elif (spec := _SPEC.fullmatch(value)) is not None:
            inputs.append(_make(name, spec, seed + len(inputs)))
        else:
            inputs.append(_read_array(name, Path(value)))
    names = [one.name for one in inputs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"Input `{name}` is given {names.count(name)} times", hint="Give each input once."
            )
    return tuple(inputs)


def _make(name: str, spec: re.Match[str], seed: int) -> Input:
    """An array from its description; the same description and seed give the same bits."""
    shape = tuple(int(size) for size in spec["shape"].split("x"))
    fill = spec["fill"] or "normal"
    number = float(spec["number"]) if spec["number"] else None
    try:
        dtype = dtypes.resolve(spec["dtype"] or "float32")
    except SimulatorError as error:
        raise UsageError(f"Input `{name}`: {error.message}", hint=error.hint) from None
    if fill not in FILLS:
        near = difflib.get_close_matches(fill, FILLS, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"One of {', '.join(FILLS)}."
        raise UsageError(f"Input `{name}`: unknown fill `{fill}`", hint=hint)
    if dtype.is_integer and fill in ("normal", "uniform") and number is None:
        raise UsageError(
            f"Input `{name}`: random {dtype} values need a range",
            hint=f"`{name}={spec['shape']}:{dtype}:uniform:1000` draws from 0 to 999; or arange, zeros, ones.",
        )
    values = _values(fill, shape, seed, number, dtype.is_integer)
    origin = f"{fill}{'' if number is None else f' x {number:g}'}"
    return Input(
        name=name,
        array=dtype.rounded(values).astype(dtype.native),
        origin=f"{origin}, seed {seed}" if fill in ("normal", "uniform") else origin,
    )


def _values(fill: str, shape: tuple[int, ...], seed: int, number: float | None, integer: bool) -> np.ndarray:
    random, scale = np.random.default_rng(seed), 1.0 if number is None else number
    if integer and fill in ("normal", "uniform"):
        return random.integers(0, max(int(scale), 1), size=shape).astype(np.float64)
    if fill == "normal":
        return random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    if fill == "uniform":
        return (random.random(shape, dtype=np.float32) * 2 - 1) * np.float32(scale)
    if fill == "arange":
        return (np.arange(math.prod(shape), dtype=np.float64) * scale).reshape(shape)
    return np.full(shape, 0.0 if fill == "zeros" else scale, dtype=np.float32)


def _read_archive(path: Path) -> Iterable[Input]:
    if path.suffix != ".npz":
        raise UsageError(
            f"Input `{path}` names no argument",
            hint="Use NAME=128x512:bfloat16, NAME=file.npy, or a file.npz that has one array per argument.",
        )
    with _opened(path) as archive:
        for name in archive.files:
            yield Input(name=name, array=_known(archive[name], f"{path}:{name}"), origin=str(path))


def _read_array(name: str, path: Path) -> Input:
    if path.suffix != ".npy":
        raise UsageError(
            f"Input `{name}={path}` is neither a shape nor a .npy file",
            hint=f"Use {name}=128x512, {name}=128x512:bfloat16:normal, or {name}=file.npy.",
        )
    return Input(name=name, array=_known(_opened(path), str(path)), origin=str(path))


def _opened(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"Input file not found: `{path}`") from None
    except (ValueError, OSError) as error:
        raise UsageError(f"Input file `{path}` cannot be read: {error}") from error


def _known(array: np.ndarray, where: str) -> np.ndarray:
    """The array in a dtype that NKI has; 64-bit values become 32-bit ones where nothing is lost."""
    if array.dtype == _RAW_TWO_BYTES:
        return array.view(ml_dtypes.bfloat16)
    if array.dtype.kind == "V":
        raise UsageError(
            f"Input `{where}` has raw elements of {array.dtype.itemsize} bytes",
            hint="Save it as float32 or as an unsigned integer of that size and .view() it in the kernel.",
        )
    narrow = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32}.get(array.dtype.name)
    if narrow is None:
        return array
    converted = array.astype(narrow)
    if array.dtype.kind in "iu" and not np.array_equal(converted, array):
        raise UsageError(f"Input `{where}` has {array.dtype} values beyond 32 bits, which NKI does not have")
    return converted


def read_settings(given: Iterable[str], namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes from NAME=VALUE: a Python literal, a name of the kernel's module such as `Mode.FAST`, else a word.

    Raises:
        UsageError: no `=`, or a dotted name that the kernel's module does not know.
    """
    settings: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"Setting `{text}` is not NAME=VALUE", hint="For example --set eps=1e-6.")
        settings[name] = _value(name, value, namespace)
    return settings


def _value(name: str, text: str, namespace: Mapping[str, Any]) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass  # no literal: a name or a word
    first, *rest = text.split(".")
    if not rest and first not in namespace:
        return text
    try:
        value = namespace[first]
        for part in rest:
            value = getattr(value, part)
    except (KeyError, AttributeError):
        raise UsageError(
            f"Setting `{name}={text}`: the kernel's file knows no `{text}`",
            hint=f"Quote it if it is a word: --set '{name}=\"{text}\"'.",
        ) from None
    return value


def bind(
    function: Callable[..., Any], inputs: tuple[Input, ...], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Arrays and settings by argument name, in the order of the function's signature.

    Raises:
        UsageError: an argument that the function does not have, or one that nothing was given for.
    """
    values = {one.name: one.array for one in inputs}
    for name in settings:
        if name in values:
            raise UsageError(f"`{name}` is given both by --input and by --set")
    values |= settings
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in values:
        if name not in parameters and not takes_any:
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f"Did you mean `{near[0]}`? " if near else ""
            raise UsageError(
                f"Kernel `{function.__name__}` has no argument `{name}`",
                hint=f"{hint}It has {', '.join(parameters) or 'none'}.",
            )
    for name, parameter in parameters.items():
        is_needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if is_needed and name not in values:
            raise UsageError(
                f"Kernel `{function.__name__}` needs a value for `{name}`",
                hint=f"Give --input {name}=128x512:bfloat16 for a tensor, or --set {name}=VALUE.",
            )
    ordered = [name for name in parameters if name in values] + [
        name for name in values if name not in parameters
    ]
    return {name: values[name] for name in ordered}
