"""Proof 1: a kernel on the simulator against the layer's own CPU forward.

Cases: the layer's captured inputs, ordinary inputs, tails (token counts that are no multiple of any tile), stress
(tiny, constant rows, outliers) and large values; in float32, where only logic can differ, and then in the dtype that
ships. Every case is also run against wrong outputs, which must be refused: a test that cannot fail proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from neuron_port.execution import simulated_operator
from neuron_port.match.probe import (
    bound_weights,
    draw_arguments,
    index_limit,
    materialize,
)
from neuron_port.parity.comparison import EPSILON, Comparison, compare, sabotages
from neuron_port.registry import RegisteredRecipe
from neuron_port.simulator import SimulatorError
from neuron_port.types import CaseResult, Layer, Match, ParityReport
from neuron_port.walk.cutpoints import Call, dtype_name, flatten_tensors
from neuron_port.walk.walker import Capture

ReadWeight = Callable[[str], torch.Tensor]  # checkpoint tensor name -> float32 tensor
TAIL_TOKENS = (1, 3, 77)
MOVED_SEEDS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Arguments for one call of the layer, in float32."""

    name: str
    kind: str
    seed: int | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def verify_layer(
    layer: Layer,
    call: Call,
    match: Match,
    found: RegisteredRecipe,
    *,
    read_weight: ReadWeight,
    target: str,
    dtypes: Sequence[torch.dtype],
    oracle: str,
    capture: Capture | None = None,
    observe: Callable[[Any], None] = lambda run: None,
) -> ParityReport:
    """Run every case of one signature in every dtype; the report says what failed and where, it does not raise."""
    started = time.monotonic()
    subject = _Subject(layer, call, match, found, read_weight)
    operator = simulated_operator(found, target, observe)
    cases: list[CaseResult] = []
    for dtype in dtypes:
        for problem in problems(call, found, capture):
            cases.extend(_run_case(subject, operator, problem, dtype))
    return ParityReport(
        subject=f"{found.name} · {layer.module_class} · {layer.signature}",
        oracle=oracle,
        cases=tuple(cases),
        not_proven=("no Neuron device has run this kernel",),
        seconds=time.monotonic() - started,
    )


def problems(call: Call, found: RegisteredRecipe, capture: Capture | None) -> Iterator[Problem]:
    """The inputs on which this call is proven."""
    if capture is not None:
        yield Problem(name="captured", kind="captured", seed=None, args=capture.args, kwargs=capture.kwargs)
    sharp = "attention" in call.operation
    has_values = any(tensor.is_floating_point() for tensor in call.tensors)  # an embedding has indices alone
    variations: list[tuple[str, str, float, str]] = [
        ("ordinary", "ordinary", 1.0, "normal"),
        ("tiny values", "stress", 1e-3, "normal"),
        ("constant rows", "stress", 1.0, "constant"),
        ("outliers", "stress", 1.0, "outliers"),
        ("large values", "large", 6.0 if sharp else 30.0, "normal"),
    ]
    for seed, (name, kind, scale, style) in enumerate(variations if has_values else variations[:1]):
        yield _draw(call, found, name, kind, seed, scale, style, tokens=None)
    for tokens in tail_tokens(call, found):
        yield _draw(call, found, f"{tokens} tokens", "tail", 100 + tokens, 1.0, "normal", tokens=tokens)


def tail_tokens(call: Call, found: RegisteredRecipe) -> list[int]:
    """Token counts other than the call's own that reach tails; a decode step has one token by definition."""
    if call.operation == "attention_decode":
        return []
    own = {
        tensor.shape[axis]
        for tensor, axis in zip(call.tensors, found.recipe.sequence_axes, strict=False)
        if axis is not None
    }
    return [tokens for tokens in TAIL_TOKENS if tokens not in own]


def _draw(
    call: Call,
    found: RegisteredRecipe,
    name: str,
    kind: str,
    seed: int,
    scale: float,
    style: str,
    tokens: int | None,
) -> Problem:
    generator = torch.Generator().manual_seed(7919 * seed + 1)
    axes = {id(tensor): axis for tensor, axis in zip(call.tensors, found.recipe.sequence_axes, strict=False)}

    def resize(tensor: torch.Tensor) -> list[int]:
        shape = list(tensor.shape)
        axis = axes.get(id(tensor))
        if tokens is not None and axis is not None:
            shape[axis] = tokens
        return shape

    drawn = draw_arguments(
        (call.args, dict(call.kwargs)), generator, scale=scale, vocabulary=index_limit(call), resize=resize
    )
    args, kwargs = _restyle(drawn, style)
    return Problem(name=name, kind=kind, seed=seed, args=args, kwargs=kwargs)


def _restyle(value: Any, style: str) -> Any:
    """Make rows constant, or give one element in each row a thousand times the weight of the others."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        if style == "constant":
            return value[..., :1].expand(value.shape).contiguous()
        if style == "outliers":
            value = value.clone()
            value[..., value.shape[-1] // 3] *= 1e3 if value.ndim < 4 else 10.0
        return value
    if isinstance(value, dict):
        return {key: _restyle(item, style) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_restyle(item, style) for item in value)
    return value


class _Subject:
    """The layer with its real weights, in whichever dtype is asked for: the oracle that the kernel cannot touch."""

    def __init__(
        self, layer: Layer, call: Call, match: Match, found: RegisteredRecipe, read_weight: ReadWeight
    ) -> None:
        self.layer = layer
        self.call = call
        self.match = match
        self.recipe = found.recipe
        self._read_weight = read_weight
        self._modules: dict[tuple[torch.dtype, torch.dtype], torch.nn.Module | None] = {}

    def module(self, compute: torch.dtype, rounded: torch.dtype) -> torch.nn.Module | None:
        """The module computing in `compute`, its weights first rounded to `rounded`."""
        call = self.call
        if call.operation != "module" or call.module is None:
            return call.module
        key = (compute, rounded)
        if key not in self._modules:
            self._modules.clear()  # one copy at a time: a head of 128k x 4096 is 2 GiB in float32
            self._modules[key] = materialize(
                call.module, lambda name, like: self._weight(name, compute, rounded)
            )
        return self._modules[key]

    def _weight(self, name: str, compute: torch.dtype, rounded: torch.dtype) -> torch.Tensor:
        return self._read_weight(f"{self.layer.name}.{name}").to(rounded).to(compute)

    def run(
        self, problem: Problem, compute: torch.dtype, rounded: torch.dtype, *, round_inputs: bool = True
    ) -> list[torch.Tensor]:
        """The layer's own forward in `compute`, its weights (and inputs) first rounded to `rounded`."""
        module = self.module(compute, rounded)
        function = module if self.call.operation == "module" and module is not None else self.call.function
        args, kwargs = _cast(
            (problem.args, dict(problem.kwargs)), compute, rounded if round_inputs else compute
        )
        with torch.no_grad():
            return list(flatten_tensors(function(*args, **kwargs)))

    def run_kernel(
        self, problem: Problem, operator: Callable[..., Any], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The recipe's forward with `operator` in the middle, in `dtype`."""
        weights = bound_weights(self.module(dtype, dtype), self.match.weights)
        args, kwargs = _cast((problem.args, dict(problem.kwargs)), dtype, dtype)
        with torch.no_grad():
            result = self.recipe.forward(operator, weights, self.match.attributes, *args, **kwargs)
        return list(flatten_tensors(result))


def _cast(value: Any, compute: torch.dtype, rounded: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(rounded).to(compute) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, compute, rounded) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, compute, rounded) for item in value)
    return value


def _run_case(
    subject: _Subject, operator: Callable[..., Any], problem: Problem, dtype: torch.dtype
) -> Iterator[CaseResult]:
    truth_dtype = torch.float64 if dtype is torch.float32 else torch.float32
    truths = subject.run(problem, truth_dtype, dtype)
    moved = [
        subject.run(moved_problem(problem, dtype, seed), truth_dtype, dtype, round_inputs=False)
        for seed in MOVED_SEEDS
    ]
    baselines = subject.run(problem, dtype, dtype)
    shapes = tuple(tuple(tensor.shape) for tensor in flatten_tensors((problem.args, dict(problem.kwargs))))

    def result(name: str, kind: str, comparison: Comparison, passed: bool, detail: str) -> CaseResult:
        return CaseResult(
            name=name,
            kind=kind,
            tier="simulator",
            dtype=dtype_name(dtype),
            shapes=shapes,
            seed=problem.seed,
            metrics=comparison.metrics,
            limits=comparison.limits,
            passed=passed,
            detail=detail,
        )

    try:
        outputs = subject.run_kernel(problem, operator, dtype)
    except SimulatorError as error:
        nothing = Comparison(metrics={}, limits={}, detail=str(error))
        yield result(problem.name, problem.kind, nothing, False, f"the simulator refused the kernel: {error}")
        return
    if len(outputs) < len(truths):
        nothing = Comparison(metrics={}, limits={}, detail="")
        yield result(
            problem.name, problem.kind, nothing, False, f"{len(outputs)} outputs, the layer has {len(truths)}"
        )
        return
    inputs = tuple(_cast(tensor, dtype, dtype) for tensor in flatten_tensors(problem.args))
    for number, (output, truth, baseline) in enumerate(zip(outputs, truths, baselines, strict=False)):
        suffix = f" · output {number}" if len(truths) > 1 else ""
        options: dict[str, Any] = {
            "alternatives": [outputs_of_one[number] for outputs_of_one in moved],
            "reduction_length": _reduction_length(subject),
            "r_ratio_limit": subject.recipe.tolerance.r_ratio,
        }
        comparison = compare(output, truth, baseline, **options)
        yield result(problem.name + suffix, problem.kind, comparison, comparison.passed, comparison.detail)
        for name, wrong in sabotages(baseline, inputs).items():
            refused = compare(wrong, truth, baseline, **options)
            fooled = refused.passed and not _is_legal(wrong, baseline)
            detail = f"{name} passed for {problem.name}{suffix}" if fooled else refused.detail
            yield result(f"{problem.name}{suffix} · {name}", "sabotage", refused, not fooled, detail)


def moved_problem(problem: Problem, dtype: torch.dtype, seed: int) -> Problem:
    """The same inputs, each moved by up to half a unit in the last place of `dtype`; in float64."""
    generator = torch.Generator().manual_seed(seed)

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            nudge = torch.rand(value.shape, generator=generator, dtype=torch.float64) - 0.5
            return value.to(dtype).double() * (1 + nudge * EPSILON[dtype])
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(move(item) for item in value)
        return value

    return replace(problem, args=move(problem.args), kwargs=move(dict(problem.kwargs)))


def _is_legal(wrong: torch.Tensor, baseline: torch.Tensor) -> bool:
    """Whether a sabotage is no sabotage here: it changes nothing beyond the noise (all rows equal, for example)."""
    difference = (wrong.double() - baseline.double()).abs().max().item()
    scale = baseline.double().abs().max().item()
    return difference <= 4 * torch.finfo(baseline.dtype).eps * scale


def _reduction_length(subject: _Subject) -> int:
    """The longest sum in the layer: the widest axis of its weights or inputs."""
    sizes = [
        size for spec in (*subject.layer.parameters.values(), *subject.layer.inputs) for size in spec.shape
    ]
    return max((size for size in sizes if size < 65536), default=1)
