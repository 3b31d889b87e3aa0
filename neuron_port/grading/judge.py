"""Judges what came out of the sandbox for each case: arrays against the truth, and nothing that the candidate says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from neuron_port.execution import to_numpy, to_torch
from neuron_port.grading.across_cases import Tried, compare_cases, growth
from neuron_port.grading.degenerate import as_float32
from neuron_port.grading.evidence import Wrong, describe, is_trivial
from neuron_port.grading.oracle import CaseTruth
from neuron_port.parity.comparison import Comparison
from neuron_port.sandbox.job import CallOutcome, Failure, RunFacts, SandboxOutcome
from neuron_port.task import KernelTask
from neuron_port.types import CaseResult, Tier

NOT_REACHED = Failure(
    kind="protocol",
    error_class="missing outputs",
    message="the process ended before this case and gave nothing",
)
SHOWN_CASES = 2  # whose evidence is given; the others are most often wrong for the same reason
NOTHING = Comparison(metrics={}, limits={}, detail="")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One case: whether the outputs are right, and if not, which kind of wrong."""

    truth: CaseTruth
    kind: str  # as in CaseResult
    comparison: Comparison = NOTHING
    error_class: str = ""
    message: str = ""
    hint: str = ""
    line: int | None = None
    guard: str = ""
    ran: bool = False  # the kernel came to its end
    output: int = 0  # which output is the worst
    outputs: tuple[np.ndarray, ...] = ()
    facts: RunFacts | None = None

    @property
    def passed(self) -> bool:
        return not self.error_class

    def result(self, tier: Tier) -> CaseResult:
        """The record for reports; of a hidden case it says the kind and what was measured, and no input."""
        hidden = self.kind == "hidden"
        return CaseResult(
            name=self.truth.case.name,
            kind=self.kind,
            tier=tier,
            dtype=self.truth.dtype,
            shapes=() if hidden else self.truth.shapes,
            seed=None if hidden else self.truth.seed,
            metrics=self.comparison.metrics,
            limits=self.comparison.limits,
            passed=self.passed,
            detail=(self.error_class if hidden else self.message),
        )


def judge(
    task: KernelTask, truths: Sequence[CaseTruth], outcome: SandboxOutcome, kind: str | None = None
) -> list[Judgement]:
    """Judge every case of a job; `truths` in the order of its calls. `kind` overrides that of the cases."""
    judged = []
    for number, truth in enumerate(truths):
        call = outcome.calls[number] if number < len(outcome.calls) else None
        if call is None:
            ended = outcome.failure if number == len(outcome.calls) and outcome.failure else NOT_REACHED
            if outcome.failure and not outcome.calls:
                ended = outcome.failure
            call = CallOutcome(failure=ended)
        judged.append(replace(_judge_call(task, truth, call), kind=kind or truth.case.kind))
    return judged


def _judge_call(task: KernelTask, truth: CaseTruth, call: CallOutcome) -> Judgement:
    start = Judgement(truth=truth, kind="", outputs=call.outputs, facts=call.facts)
    if call.failure is not None:
        return _failed(start, call.failure)
    start = replace(start, ran=True)
    if truth.inputs_changed():
        return replace(
            start,
            error_class="inputs changed",
            message="the inputs are no longer those that were given",
            guard="read-only inputs",
        )
    return _wrong_form(start) or _wrong_values(start) or _broken_invariant(task, start) or _right(start)


def _failed(start: Judgement, failure: Failure) -> Judgement:
    guard = {"protocol": "missing outputs", "crash": "missing outputs", "refused": "allow-list"}.get(
        failure.kind, ""
    )
    return replace(
        start,
        error_class=failure.error_class,
        message=failure.message,
        hint=failure.hint or "",
        line=failure.line,
        guard=guard,
    )


def _wrong_form(start: Judgement) -> Judgement | None:
    """Number, shapes, dtypes and memory of the outputs."""
    wanted = [to_numpy(baseline) for baseline in start.truth.baselines]
    if len(start.outputs) != len(wanted):
        return replace(
            start,
            error_class="wrong number of outputs",
            message=f"{len(start.outputs)} outputs, must be {len(wanted)}",
        )
    for number, (output, right) in enumerate(zip(start.outputs, wanted, strict=True)):
        named = f"output {number}" if len(wanted) > 1 else "the output"
        start = replace(start, output=number)
        if output.shape != right.shape:
            message = f"shape of {named} is {output.shape}, must be {right.shape}"
            return replace(start, error_class="wrong shape", message=message)
        if output.dtype != right.dtype and not output.dtype.kind == right.dtype.kind == "i":
            message = f"dtype of {named} is {output.dtype}, must be {right.dtype}"
            return replace(start, error_class="wrong dtype", message=message)
        if any(np.shares_memory(output, array) for array in start.truth.given.values()):
            message = f"{named} shares memory with an input"
            return replace(start, error_class="aliasing", message=message, guard="aliasing")
    return None


def _wrong_values(start: Judgement) -> Judgement | None:
    """The first output that is not within its noise; the comparison of a right answer is kept by `_right`."""
    for number, output in enumerate(start.outputs):
        comparison = start.truth.compare(number, _tensor(output))
        if comparison.passed:
            continue
        finite = torch.isfinite(start.truth.truths[number])
        non_finite = output.dtype.kind not in "iub" and bool(
            (torch.isfinite(_tensor(output)) != finite).any()
        )
        wrong = replace(
            start,
            output=number,
            comparison=comparison,
            error_class="non-finite" if non_finite else "wrong values",
            message=comparison.detail,
        )
        trivial = is_trivial(as_wrong(wrong, ()))
        if trivial:
            return replace(wrong, error_class="trivial answer", message=trivial, guard="trivial answer")
        return wrong
    return None


def _broken_invariant(task: KernelTask, start: Judgement) -> Judgement | None:
    inputs, outputs = as_float32(start.truth.given.values()), as_float32(start.outputs)
    for invariant in task.invariants:
        problem = invariant.check(inputs, start.truth.case.attributes, outputs)
        if problem:
            message = f"invariant `{invariant.name}`: {problem}"
            return replace(start, error_class="invariant", message=message)
    return None


def _right(start: Judgement) -> Judgement:
    """A passed case, with the figures of the output that comes closest to its limits."""
    comparisons = [
        start.truth.compare(number, _tensor(output)) for number, output in enumerate(start.outputs)
    ]
    closest = max(range(len(comparisons)), key=lambda number: _share(comparisons[number]))
    return replace(start, comparison=comparisons[closest], output=closest)


def _share(comparison: Comparison) -> float:
    shares = [comparison.metrics[name] / limit for name, limit in comparison.limits.items() if limit > 0]
    return max(shares, default=0.0)


def _tensor(output: np.ndarray) -> torch.Tensor:
    tensor = to_torch(output)
    return tensor.int() if output.dtype.kind in "iub" else tensor


def as_wrong(judgement: Judgement, others: Sequence[CaseTruth]) -> Wrong:
    """The case as evidence sees it; `others` are cases whose answers this may be by mistake."""
    truth, number = judgement.truth, judgement.output
    expected = _float64(truth.truths[number])
    noises = [
        (answer.double() - truth.truths[number].double()).abs()
        for answer in (truth.baselines[number], *truth.alternatives[number])
    ]
    noise = max((float(torch.nan_to_num(noise).max()) for noise in noises if noise.numel()), default=0.0)
    return Wrong(
        expected=expected,
        got=judgement.outputs[number].astype(np.float64),
        noise=noise,
        dtype=truth.dtype,
        case=truth.case,
        inputs={
            f"{place}": array.astype(np.float64)
            for place, array in truth.given.items()
            if array.dtype.kind not in "iub"
        },
        others={
            other.case.name: _float64(other.truths[number])
            for other in others
            if other is not truth and other.truths[number].shape == truth.truths[number].shape
        },
    )


def _float64(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.double().numpy()
    return array


def evidence_of(task: KernelTask, judged: Sequence[Judgement]) -> tuple[str, ...]:
    """What public cases show: what sets the failing ones apart, then the first of them in detail."""
    tried = [_tried(one) for one in judged]
    said = compare_cases(tried)
    grows = growth(tried, task.tolerance.reduction_length)
    said.extend([grows] if grows else [])
    failed = [one for one in judged if not one.passed]
    said.extend(
        f"{one.truth.case.name} ({one.truth.dtype}): {one.message}"
        for one in failed[:1]
        if not one.comparison.metrics
    )
    truths = [one.truth for one in judged]
    shown = [one for one in failed if one.ran and one.outputs and _comparable(one)]
    for one in shown[:SHOWN_CASES]:
        label = f"case `{one.truth.case.name}` in {one.truth.dtype}"
        if len(one.outputs) > 1:
            label += f", output {one.output}"
        wrong = as_wrong(one, [truth for truth in truths if truth.dtype == one.truth.dtype])
        said.extend(f"{label}: {_with_names(task, sentence)}" for sentence in describe(wrong))
    if len(failed) > 1:
        names = ", ".join(f"`{one.truth.case.name}` ({one.truth.dtype})" for one in failed)
        said.append(f"{len(failed)} of {len(judged)} cases fail: {names}")
    return tuple(said)


def _comparable(one: Judgement) -> bool:
    return one.outputs[one.output].shape == tuple(one.truth.truths[one.output].shape)


def _with_names(task: KernelTask, sentence: str) -> str:
    """Inputs by their names in the schema instead of their places."""
    for place, name in enumerate(task.tensor_arguments):
        sentence = sentence.replace(f"input `{place}`", f"input `{name}`").replace(
            f": `{place}` is", f": `{name}` is"
        )
    return sentence


def _tried(one: Judgement) -> Tried:
    error: Any = one.comparison.metrics.get("relative_l2")
    return Tried(
        case=one.truth.case,
        dtype=one.truth.dtype,
        passed=one.passed,
        error_class=one.error_class,
        error=error if error and np.isfinite(error) else None,
    )
