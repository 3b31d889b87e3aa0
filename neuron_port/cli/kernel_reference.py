"""A kernel's outputs against a reference function of the user's: figures, a verdict, and why that is the limit.

A reference is plain Python on torch tensors or NumPy arrays. It runs in wider precision for the truth; what it loses
when it rounds as the kernel's dtype does is the noise that is legal (`neuron_port.parity.comparison`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import torch

from neuron_port.cli.kernel_call import KernelError, split_place
from neuron_port.errors import NeuronPortError, UsageError
from neuron_port.execution import to_numpy, to_torch
from neuron_port.parity.comparison import EPSILON, compare

# A stranger's reference often computes in float32 and rounds once, where the kernel rounds intermediates too. The
# recipes' own limit, 1.2, is for a baseline that rounds where the kernel does.
NOISE_LIMIT = 4.0
# Between neighbouring values, relative to the smaller: 3 mantissa bits, or 2.
_FLOAT8_STEPS = {
    np.dtype(ml_dtypes.float8_e4m3): 2.0**-3,
    np.dtype(ml_dtypes.float8_e4m3fn): 2.0**-3,
    np.dtype(ml_dtypes.float8_e5m2): 2.0**-2,
}
_NAMES = {
    torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OutputVerdict:
    """How one output compares with the reference's; `explanation` says what the limit is made of."""

    index: int
    max_abs: float
    max_relative: float  # of the elements that are at least a thousandth of the largest
    cosine: float
    relative_l2: float
    passed: bool
    detail: str  # which limit is broken; empty when passed
    explanation: str


class Reference:
    """A function of a reference file, called on the kernel's inputs."""

    def __init__(self, place: str) -> None:
        self.path, self.name = split_place(place)
        self.function = _function(_load(self.path), self.path, self.name)
        self.framework = _framework(self.function)

    def answers(self, arguments: Mapping[str, Any], compute: torch.dtype | None) -> list[torch.Tensor]:
        """Its outputs, with every floating-point input first cast to `compute`; None leaves them as they are."""
        keywords, positional = self._matched(arguments)
        try:
            with torch.no_grad():
                returned = self.function(
                    *[self._converted(value, compute) for value in positional],
                    **{name: self._converted(value, compute) for name, value in keywords.items()},
                )
        except Exception as error:  # a stranger's function: its failure is an outcome
            raise KernelError(
                f"Reference `{self.name}` failed: {type(error).__name__}: {error}",
                hint=f"It was called with {self.framework} inputs.",
            ) from error
        outputs = returned if isinstance(returned, (tuple, list)) else (returned,)
        return [_as_torch(output) for output in outputs]

    def left_out(self, arguments: Mapping[str, Any]) -> list[str]:
        """Settings of the kernel that the reference does not take."""
        keywords, positional = self._matched(arguments)
        return [] if positional else [name for name in arguments if name not in keywords]

    def _matched(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """By name where the reference has the kernel's names, else the arrays by position and the rest by name."""
        parameters = inspect.signature(self.function).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        arrays = [name for name, value in arguments.items() if isinstance(value, np.ndarray)]
        named = {name: value for name, value in arguments.items() if takes_any or name in parameters}
        if all(name in named for name in arrays):
            return named, []
        return {name: value for name, value in named.items() if name not in arrays}, [
            arguments[name] for name in arrays
        ]

    def _converted(self, value: Any, compute: torch.dtype | None) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        tensor = _as_torch(value)
        if compute is not None and tensor.is_floating_point():
            tensor = tensor.to(compute)
        if self.framework == "torch":
            return tensor
        return to_numpy(tensor)


def judge(
    outputs: Sequence[np.ndarray],
    reference: Reference,
    arguments: Mapping[str, Any],
    tolerance: tuple[float, float] | None,
) -> list[OutputVerdict]:
    """Compare every output with the reference's.

    Args:
        tolerance: (relative, absolute) for each element; None for a limit in units of the dtype's own noise.

    Raises:
        KernelError: the reference fails, or has fewer outputs than the kernel.
    """
    candidates = [_as_torch(output) for output in outputs]
    wide = torch.float64 if any(output.dtype is torch.float32 for output in candidates) else torch.float32
    truths = reference.answers(arguments, wide)
    if len(truths) < len(candidates):
        raise KernelError(
            f"Reference `{reference.name}` returns {len(truths)} outputs, the kernel {len(candidates)}",
            hint="Return a tuple with one array for each output of the kernel.",
        )
    # A NumPy reference has no 16-bit arithmetic worth the name: what it loses is the one rounding at the end.
    as_given = reference.answers(arguments, None) if reference.framework == "torch" else truths
    return [
        _judge_one(
            index,
            candidate,
            truths[index],
            as_given[index].to(candidate.dtype),
            tolerance,
            _FLOAT8_STEPS.get(outputs[index].dtype),
        )
        for index, candidate in enumerate(candidates)
    ]


def _judge_one(
    index: int,
    candidate: torch.Tensor,
    truth: torch.Tensor,
    baseline: torch.Tensor,
    tolerance: tuple[float, float] | None,
    float8_step: float | None,
) -> OutputVerdict:
    figures = _figures(candidate, truth)
    if tolerance is not None:
        passed, detail, explanation = _by_tolerance(candidate, truth, tolerance)
    elif float8_step is not None:
        passed, detail, explanation = _by_tolerance(candidate, truth, (float8_step, 0.0))
        explanation = f"one step of the 8-bit float: {explanation}"
    elif candidate.dtype in EPSILON:
        passed, detail, explanation = _by_noise(candidate, truth, baseline)
    else:
        passed, detail = _exactly(candidate, truth)
        explanation = "integers must be equal"
    return OutputVerdict(index=index, passed=passed, detail=detail, explanation=explanation, **figures)


def _figures(candidate: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Distances of two outputs; all are NaN where the shapes differ."""
    if candidate.shape != truth.shape:
        return dict.fromkeys(("max_abs", "max_relative", "cosine", "relative_l2"), math.nan)
    finite = torch.isfinite(truth.double()) & torch.isfinite(candidate.double())
    one, other = candidate.double()[finite], truth.double()[finite]
    if one.numel() == 0:
        return {"max_abs": 0.0, "max_relative": 0.0, "cosine": 1.0, "relative_l2": 0.0}
    error = (one - other).abs()
    large = other.abs() >= 1e-3 * other.abs().max()
    relative = (error[large] / other[large].abs()).nan_to_num(nan=0.0, posinf=math.inf)
    norms = one.norm() * other.norm()
    cosine = (one @ other / norms).item() if norms > 0 else float(one.norm() == other.norm())
    size = other.norm().item()
    distance = error.norm().item()
    return {
        "max_abs": error.max().item(),
        "max_relative": relative.max().item() if relative.numel() else 0.0,
        "cosine": min(cosine, 1.0),
        "relative_l2": distance / size if size else (0.0 if distance == 0 else math.inf),
    }


def _by_noise(candidate: torch.Tensor, truth: torch.Tensor, baseline: torch.Tensor) -> tuple[bool, str, str]:
    comparison = compare(candidate, truth, baseline, r_ratio_limit=NOISE_LIMIT)
    name = _NAMES[candidate.dtype]
    if not comparison.metrics:
        return False, comparison.detail, f"same shape and finite elements as the reference, in {name}"
    error = comparison.metrics["relative_l2"]
    if candidate.dtype is torch.float32:
        limit = comparison.limits["relative_l2"]
        why = f"4 x what the reference loses in float32 ({comparison.metrics['legal_l2']:.2g}), or what rounding explains"
    else:
        noise = max(comparison.metrics["legal_l2"], 0.25 * EPSILON[candidate.dtype])
        limit = NOISE_LIMIT * noise
        why = f"{NOISE_LIMIT:g} x what the reference loses by rounding to {name} ({noise:.2g})"
    return comparison.passed, comparison.detail, f"relative L2 {error:.2g}, limit {limit:.2g} = {why}"


def _by_tolerance(
    candidate: torch.Tensor, truth: torch.Tensor, tolerance: tuple[float, float]
) -> tuple[bool, str, str]:
    relative, absolute = tolerance
    explanation = f"each element within {absolute:g} + {relative:g} x |reference|"
    if candidate.shape != truth.shape:
        return (
            False,
            f"shape is {tuple(candidate.shape)}, the reference's is {tuple(truth.shape)}",
            explanation,
        )
    one, other = candidate.double(), truth.double()
    same = (one == other) | (torch.isnan(one) & torch.isnan(other))
    outside = ~same & ~((one - other).abs() <= absolute + relative * other.abs())
    count = int(outside.sum())
    if count == 0:
        return True, "", explanation
    excess = torch.where(outside, (one - other).abs() - relative * other.abs(), -math.inf)
    place = tuple(
        int(at) for at in torch.unravel_index(excess.nan_to_num(nan=math.inf).argmax(), excess.shape)
    )
    detail = (
        f"{count} of {one.numel()} elements are outside; "
        f"worst at {place}: {one[place]:.6g}, must be {other[place]:.6g}"
    )
    return False, detail, explanation


def _exactly(candidate: torch.Tensor, truth: torch.Tensor) -> tuple[bool, str]:
    if candidate.shape != truth.shape:
        return False, f"shape is {tuple(candidate.shape)}, the reference's is {tuple(truth.shape)}"
    differs = candidate.double() != truth.double()
    if not differs.any():
        return True, ""
    place = tuple(differs.nonzero()[0].tolist())
    return False, (
        f"{int(differs.sum())} of {candidate.numel()} elements differ, first at {place}: "
        f"{candidate[place].item()}, must be {truth[place].item()}"
    )


def parse_tolerance(text: str | None) -> tuple[float, float] | None:
    """(relative, absolute) from `R` or `R,A`; None for `auto` and for nothing.

    Raises:
        UsageError: neither.
    """
    if text is None or text == "auto":
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
        relative, absolute = numbers if len(numbers) == 2 else (*numbers, 0.0)
    except ValueError:
        raise UsageError(
            f"Tolerance `{text}` is neither auto, a number, nor two",
            hint="For example 1e-2 (relative), or 1e-2,1e-3 (relative, absolute).",
        ) from None
    return relative, absolute


def _load(path: Path) -> ModuleType:
    """The reference file as a module; its folder, or its package's, can be imported from."""
    root, parts = path.resolve().parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    name = ".".join(parts) if len(parts) > 1 else f"neuron_port_reference_{path.stem}"
    if str(root) not in sys.path:
        sys.path.append(str(root))
    try:
        if len(parts) > 1:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"Reference file `{path}` is no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except NeuronPortError:
        raise
    except Exception as error:  # a stranger's file: its failure is an outcome
        raise KernelError(
            f"Reference file `{path}` cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return module


def _function(module: ModuleType, path: Path, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(
            f"`{path}` defines no function `{name}`", hint=f"It defines {', '.join(known) or 'none'}."
        )
    found: Callable[..., Any] = function
    return found


def _framework(function: Callable[..., Any]) -> str:
    """What the function takes: its annotations decide, then what its file imports; NumPy when nothing says torch."""
    said = " ".join(str(annotation) for annotation in getattr(function, "__annotations__", {}).values())
    if "torch" in said or "Tensor" in said:
        return "torch"
    if "ndarray" in said or "numpy" in said:
        return "NumPy"
    return "torch" if "torch" in getattr(function, "__globals__", {}) else "NumPy"


def _as_torch(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    array = np.ascontiguousarray(value)
    if array.dtype in _FLOAT8_STEPS:
        array = array.astype(np.float32)
    elif array.dtype in (np.uint16, np.uint32):
        array = array.astype(np.int64)
    return to_torch(array)
