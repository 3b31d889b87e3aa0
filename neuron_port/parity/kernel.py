"""Proof 1: a kernel on the simulator against the layer's own CPU forward.

Every case runs in float32, where only logic can differ, and then in the dtype that ships. Every case is also judged
with wrong outputs, which must be refused: a test that cannot fail proves nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from neuron_port.execution import KernelOperator, simulated_operator
from neuron_port.match.probe import (
    FEW_EXPERTS,
    bound_weights,
    cloned,
    materialize,
    with_few_experts,
)
from neuron_port.parity.comparison import Comparison, compare, is_telling, sabotages, shifted
from neuron_port.parity.in_double import InDouble
from neuron_port.parity.problems import Problem, as_dtype, neighbour, problems
from neuron_port.registry import RegisteredRecipe
from neuron_port.simulator import SimulatorError
from neuron_port.types import CaseResult, Layer, Match, ParityReport, TensorSpec
from neuron_port.walk.calls import Call, dtype_name, flatten_tensors, stored_tensors
from neuron_port.walk.walker import Capture

# Checkpoint tensor name, how many of its first axis are wanted (None: all) -> float32 tensor.
ReadWeight = Callable[[str, int | None], torch.Tensor]
# On how many neighbouring inputs the layer's own rounding is looked at. A small layer has few outputs, so that one
# forward says little (of 100 honest attention draws 2 were refused); a large one has many, and each costs seconds.
NEIGHBOURS, NEIGHBOURS_OF_LARGE_LAYER, LARGE_LAYER_FLOPS = 6, 1, 2_000_000_000


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
) -> ParityReport:
    """Run every case of one signature in every dtype; the report says what failed and where, it does not raise."""
    started = time.monotonic()
    few = with_few_experts(call)
    not_proven = ["no Neuron device has run this kernel"]
    if few is not call:
        not_proven.append(f"experts beyond the first {FEW_EXPERTS}: all together do not fit in memory here")
        call, capture = few, None
    if capture is None:
        not_proven.append("the inputs that the model itself gives it: those of the proof were drawn")
    subject = _Subject(layer, call, match, found, read_weight)
    wanted = list(problems(call, found, capture))
    cases: list[CaseResult] = []
    for dtype in dtypes:
        operator = simulated_operator(found, target)
        answered, refused = _all_answers(subject, operator, wanted, dtype)
        for answers in answered:
            cases.extend(_judge(subject, answers, dtype))
        not_proven += [f"{title}, {dtype_name(dtype)}: {reason}" for title, reason in refused.items()]
    return ParityReport(
        subject=f"{found.name} · {layer.module_class} · {layer.signature}",
        oracle=oracle,
        cases=tuple(cases),
        not_proven=tuple(not_proven),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What everybody answered to one problem. `outputs` is the reason when the simulator refused the kernel."""

    problem: Problem
    truths: list[torch.Tensor]
    alternatives: list[list[torch.Tensor]]
    baselines: list[torch.Tensor]
    outputs: list[torch.Tensor] | str


def _all_answers(
    subject: _Subject, operator: KernelOperator, wanted: list[Problem], dtype: torch.dtype
) -> tuple[list[_Answers], dict[str, str]]:
    """Every problem by the truth, then by the layer in `dtype`, then by the kernel; and tails that the layer refused.

    In that order because each needs the weights in another form, and one form at a time is enough: the head of an
    8-billion-parameter model is 4 GiB in float64.
    """
    # A function has no weights to hold twice, and may answer in float32 whatever its inputs: its truth is finer still.
    is_fine = dtype is torch.float32 or subject.call.operation == "function"
    exact = torch.float64 if is_fine else torch.float32
    count = NEIGHBOURS if subject.layer.flops < LARGE_LAYER_FLOPS else NEIGHBOURS_OF_LARGE_LAYER
    module = subject.module(exact, dtype)
    refusals = {problem.name: _refusal(subject, module, problem, exact, dtype) for problem in wanted}
    wanted = [problem for problem in wanted if not refusals[problem.name]]
    nearby = [[neighbour(problem, dtype, seed) for seed in range(count)] for problem in wanted]
    truths = [subject.run(module, problem, exact, dtype) for problem in wanted]
    truths_nearby = [[subject.run(module, near, exact, dtype) for near in group] for group in nearby]
    module = subject.module(dtype, dtype)
    baselines = [subject.run(module, problem, dtype, dtype) for problem in wanted]
    baselines_nearby = [[subject.run(module, near, dtype, dtype) for near in group] for group in nearby]
    weights = {
        role: tensor.contiguous() for role, tensor in bound_weights(module, subject.match.weights).items()
    }
    del module
    operator.share_weights(weights.values())
    answers = [
        _Answers(
            problem=problem,
            truths=truths[n],
            alternatives=[
                shifted(truths[n], truth, baseline)
                for truth, baseline in zip(truths_nearby[n], baselines_nearby[n], strict=True)
            ],
            baselines=baselines[n],
            outputs=subject.run_kernel(operator, weights, problem, dtype),
        )
        for n, problem in enumerate(wanted)
    ]
    return answers, {name: reason for name, reason in refusals.items() if reason}


def _kept(stored: TensorSpec, shown: torch.Tensor | None) -> int | None:
    """How many of a weight's first axis the proven module has; None: all of them."""
    return shown.shape[0] if shown is not None and tuple(shown.shape) != stored.shape else None


def _refusal(
    subject: _Subject,
    module: torch.nn.Module | None,
    problem: Problem,
    compute: torch.dtype,
    rounded: torch.dtype,
) -> str:
    """Why the layer itself does not take a tail, or "": a norm over places refuses one of a single place."""
    if problem.kind != "tail":
        return ""
    try:
        subject.run(module, problem, compute, rounded)
    except (ValueError, RuntimeError) as error:
        return f"the layer itself refuses it: {' '.join(str(error).split()[:20])}"
    return ""


class _Subject:
    """The layer with its real weights, in whichever dtype is asked for: the oracle that the kernel cannot touch."""

    def __init__(
        self, layer: Layer, call: Call, match: Match, found: RegisteredRecipe, read_weight: ReadWeight
    ) -> None:
        self.layer = layer
        self.call = call
        shown = stored_tensors(call.module) if call.operation == "module" and call.module else {}
        self.match = match
        self.recipe = found.recipe
        self._float32_places = _float32_places(call)
        self._written: set[int] = set()  # places of the arguments that the function writes to
        self._weights = {
            name: read_weight(f"{layer.name.split('#')[0]}.{name}", _kept(spec, shown.get(name)))
            for name, spec in layer.parameters.items()
        }

    def module(self, compute: torch.dtype, rounded: torch.dtype) -> torch.nn.Module | None:
        """The module computing in `compute`, its weights first rounded to `rounded`; of a function, its own."""
        if self.call.operation != "module" or self.call.module is None:
            return self.call.module
        return materialize(self.call.module, lambda name, like: self._rounded(name, compute, rounded))

    def _rounded(self, name: str, compute: torch.dtype, rounded: torch.dtype) -> torch.Tensor:
        """A weight as the module gets it: quantised ones as they are, and beside them scales in no less than float32."""
        weight = self._weights[name]
        if not weight.is_floating_point():
            return weight
        if self._is_quantized and self.layer.parameters[name].dtype == "float32":
            return weight.to(compute if compute.itemsize > 4 else torch.float32)
        return weight.to(rounded).to(compute)

    @property
    def _is_quantized(self) -> bool:
        return any(not weight.is_floating_point() for weight in self._weights.values())

    def run(
        self, module: torch.nn.Module | None, problem: Problem, compute: torch.dtype, rounded: torch.dtype
    ) -> list[torch.Tensor]:
        """The layer's own forward in `compute`, on inputs first rounded to `rounded`.

        What a function leaves in an argument (the state of a convolution) is an output too.
        """
        function = module if self.call.operation == "module" and module is not None else self.call.function
        given = self._cast(problem, compute, rounded)
        args, kwargs = cloned(given)
        with torch.no_grad(), InDouble() if compute is torch.float64 else nullcontext():
            results = list(flatten_tensors(function(*args, **kwargs)))
        if self.call.operation == "function":
            pairs = zip(flatten_tensors(given), flatten_tensors((args, kwargs)), strict=True)
            self._written |= {place for place, (a, b) in enumerate(pairs) if not torch.equal(a, b)}
            results += self._left_in((args, kwargs))
        return self.recipe.comparable(results)

    def _left_in(self, arguments: Any) -> list[torch.Tensor]:
        return [tensor for place, tensor in enumerate(flatten_tensors(arguments)) if place in self._written]

    def run_kernel(
        self,
        operator: KernelOperator,
        weights: dict[str, torch.Tensor],
        problem: Problem,
        dtype: torch.dtype,
    ) -> list[torch.Tensor] | str:
        """The recipe's forward with the kernel in the middle; the simulator's words when it refuses the kernel."""
        args, kwargs = cloned(self._cast(problem, dtype, dtype))
        try:
            with torch.no_grad():
                result = self.recipe.forward(operator, weights, self.match.attributes, *args, **kwargs)
        except SimulatorError as error:
            return str(error)
        return self.recipe.comparable([*flatten_tensors(result), *self._left_in((args, kwargs))])

    def _cast(self, problem: Problem, compute: torch.dtype, rounded: torch.dtype) -> Any:
        """The problem's arguments rounded; a tensor that the call keeps in float32 beside 16-bit ones stays exact."""
        places = itertools.count()

        def cast(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                exact = next(places) in self._float32_places
                if not value.is_floating_point():
                    return value
                wide = torch.float32 if exact and compute.itemsize < 4 else compute
                return (value if exact else as_dtype(value, rounded)).to(wide)
            if isinstance(value, dict):
                return {key: cast(item) for key, item in value.items()}
            if isinstance(value, (tuple, list)):
                return type(value)(cast(item) for item in value)
            return value

        return cast((problem.args, dict(problem.kwargs)))


def _float32_places(call: Call) -> frozenset[int]:
    """Which of the call's tensors are float32 although others of the call, or its module's weights, have 16 bits."""
    stored = stored_tensors(call.module).values() if call.operation == "module" and call.module else ()
    floats = [tensor for tensor in (*call.tensors, *stored) if tensor.is_floating_point()]
    if not any(tensor.dtype.itemsize == 2 for tensor in floats):
        return frozenset()
    return frozenset(n for n, tensor in enumerate(call.tensors) if tensor.dtype is torch.float32)


def _judge(subject: _Subject, answers: _Answers, dtype: torch.dtype) -> Iterator[CaseResult]:
    """The verdict on each output of one problem, and on wrong outputs in its place."""
    problem, outputs = answers.problem, answers.outputs
    if isinstance(outputs, str):
        yield _failure(problem, dtype, f"the simulator refused the kernel: {outputs}")
        return
    if len(outputs) < len(answers.truths):
        yield _failure(problem, dtype, f"{len(outputs)} outputs, the layer has {len(answers.truths)}")
        return
    inputs = tuple(
        tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in flatten_tensors(problem.args)
    )
    for number, (truth, baseline) in enumerate(zip(answers.truths, answers.baselines, strict=True)):
        name = f"{problem.name} · output {number}" if len(answers.truths) > 1 else problem.name
        options: dict[str, Any] = {
            "alternatives": [answer[number] for answer in answers.alternatives],
            "reduction_length": _reduction_length(subject),
            "r_ratio_limit": subject.recipe.tolerance.r_ratio,
        }
        verdict = compare(outputs[number], truth, baseline, **options)
        yield _case(problem, name, problem.kind, dtype, verdict, verdict.passed, verdict.detail)
        for wrong_name, wrong in sabotages(baseline, inputs).items():
            judged = compare(wrong, truth, baseline, **options)
            if is_telling(judged):
                detail = f"{wrong_name} passed for {name}" if judged.passed else judged.detail
                yield _case(
                    problem, f"{name} · {wrong_name}", "sabotage", dtype, judged, not judged.passed, detail
                )


def _failure(problem: Problem, dtype: torch.dtype, reason: str) -> CaseResult:
    nothing = Comparison(metrics={}, limits={}, detail=reason)
    return _case(problem, problem.name, problem.kind, dtype, nothing, False, reason)


def _case(
    problem: Problem,
    name: str,
    kind: str,
    dtype: torch.dtype,
    comparison: Comparison,
    passed: bool,
    detail: str,
) -> CaseResult:
    return CaseResult(
        name=name,
        kind=kind,
        tier="simulator",
        dtype=dtype_name(dtype),
        shapes=tuple(tuple(tensor.shape) for tensor in flatten_tensors((problem.args, dict(problem.kwargs)))),
        seed=problem.seed,
        metrics=comparison.metrics,
        limits=comparison.limits,
        passed=passed,
        detail=detail,
    )


def _reduction_length(subject: _Subject) -> int:
    """The longest sum in the layer: the widest axis of its weights or inputs; 1 if its recipe says that it sums nothing.

    Axes of 65536 and more are vocabularies, which are rows of results, not terms of a sum.
    """
    if subject.recipe.tolerance.reduction_length is None:
        return 1
    sizes = [
        size for spec in (*subject.layer.parameters.values(), *subject.layer.inputs) for size in spec.shape
    ]
    return max((size for size in sizes if size < 65536), default=1)
