"""The kernel on the simulator: on its own cases, on sizes that it has not been shown, and on values that break kernels.

Every trial goes through `parity/recipe_cases.py`: there is one comparison, and it is the one of the generated tests.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from neuron_port.contributing.records import Check, Say, judged
from neuron_port.contributing.sizes import roomy_case, swept_cases
from neuron_port.execution import KernelOperator, simulated_operator
from neuron_port.grading.oracle import DRAWN_SLACK, TORCH_DTYPES
from neuron_port.parity.comparison import Comparison
from neuron_port.parity.draw import STYLES
from neuron_port.parity.recipe_cases import case_inputs, run_case
from neuron_port.recipe import Case
from neuron_port.registry import RegisteredRecipe
from neuron_port.simulator import SimulatorError

TARGET_OF_GENERATION = {"gen2": "inf2", "gen3": "trn2"}
SCALES = (("tiny values", 1e-3), ("large values", 6.0))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the kernel that was judged; `detail` is empty when it is right."""

    case: Case
    dtype: str
    generation: str
    detail: str
    refused: int = 0  # wrong answers in its place that were refused
    accepted: tuple[str, ...] = ()  # wrong answers that were not

    @property
    def title(self) -> str:
        return f"`{self.case.name}`, {self.dtype}, {self.generation}"


class Bench:
    """The recipe's kernel under the rules of each generation that it is written for."""

    def __init__(self, found: RegisteredRecipe) -> None:
        self.found = found
        self.recipe = found.recipe
        self.operators: dict[str, KernelOperator] = {
            generation: simulated_operator(found, TARGET_OF_GENERATION[generation])
            for generation in self.recipe.generations
        }

    def trials(self, cases: Iterable[Case], say: Say, *, slack: float = 1.0) -> Iterator[Trial]:
        """Every case in every dtype on every generation.

        Args:
            slack: multiplies the limits. Cases that are made up here have DRAWN_SLACK, as the grader's hidden ones.
        """
        runs = [(case, dtype) for case in cases for dtype in self.recipe.dtypes]
        for number, (case, dtype) in enumerate(runs):
            say(f"{number + 1} of {len(runs)}: {case.name}, {dtype}")
            for generation, operator in self.operators.items():
                yield self.trial(case, dtype, generation, operator, slack)

    def trial(self, case: Case, dtype: str, generation: str, operator: KernelOperator, slack: float) -> Trial:
        """One case; a kernel that the simulator refuses is wrong there."""
        try:
            comparisons, refused = run_case(
                self.recipe, self.found.reference, operator, case, TORCH_DTYPES[dtype]
            )
        except Exception as error:  # the recipe's own code may raise anything: it is wrong there, and said so
            detail = failure_text(error, self.found)
            return Trial(case=case, dtype=dtype, generation=generation, detail=detail)
        wrong = [comparison.detail for comparison in comparisons if not within(comparison, slack)]
        return Trial(
            case=case,
            dtype=dtype,
            generation=generation,
            detail=wrong[0] if wrong else "",
            refused=sum(not comparison.passed for comparison in refused.values()),
            accepted=tuple(name for name, comparison in refused.items() if comparison.passed),
        )

    def usable(self, case: Case) -> bool:
        """Whether the reference takes these sizes, and is finite there in every dtype: else there is no truth."""
        try:
            inputs = case_inputs(self.recipe, case)
            for dtype in self.recipe.dtypes:
                cast = [
                    tensor.to(TORCH_DTYPES[dtype])
                    if tensor is not None and tensor.is_floating_point()
                    else tensor
                    for tensor in inputs
                ]
                with torch.no_grad():
                    result = self.found.reference(*cast, **case.attributes)
                outputs = result if isinstance(result, tuple) else (result,)
                if not all(bool(torch.isfinite(output).all()) for output in outputs):
                    return False
        except Exception:  # sizes that do not go together: whatever the recipe's own functions raise
            return False
        return True


def failure_text(error: Exception, found: RegisteredRecipe) -> str:
    """What a recipe's code failed with: the simulator's words, or the Python error with file and line."""
    if isinstance(error, SimulatorError):
        return f"the simulator refused the kernel: {error}"
    files = {f"{found.name}/{name}" for name in ("kernel.py", "reference.py", "recipe.py")}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/".join(Path(frame.filename).parts[-2:]) in files
    ]
    place = f"{Path(frames[-1].filename).name} line {frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {error}"


def within(comparison: Comparison, slack: float) -> bool:
    """Whether the figures are within `slack` times their limits; a wrong form never is."""
    if comparison.passed or not comparison.metrics:
        return comparison.passed
    return all(comparison.metrics[name] <= slack * limit for name, limit in comparison.limits.items())


def check_parity(bench: Bench, say: Say) -> tuple[Check, list[Trial]]:
    """The kernel agrees with its reference on each of its cases, and wrong answers in its place are refused."""
    trials = list(bench.trials(bench.recipe.cases, say))
    problems = [f"{trial.title}: {trial.detail}" for trial in trials if trial.detail]
    return judged("parity", "", problems, tried=_summary(trials, "its own cases", bench)), trials


def check_sweep(bench: Bench, say: Say) -> Check:
    """The kernel is right on sizes beyond its cases: 1, primes, around a tile, the largest affordable."""
    cases = list(swept_cases(bench.recipe))
    usable = [case for case in cases if bench.usable(case)]
    trials = list(bench.trials(usable, say, slack=DRAWN_SLACK))
    problems = [f"{trial.title}: {trial.detail}" for trial in trials if trial.detail]
    if not usable:
        problems.append(
            "no size beyond the cases could be tried: widen `sizes`, or check what `inputs` makes of them"
        )
    summary = _summary(trials, f"{len(usable)} sizes beyond its cases", bench)
    left_out = [case.name for case in cases if case not in usable]
    if left_out:
        summary += f"; the reference does not take {', '.join(left_out)}"
    facts = {"sizes": [dict(case.sizes) for case in usable]}
    return judged("sweep", "", problems, facts, tried=summary)


def check_stress(bench: Bench, say: Say) -> Check:
    """The kernel is right where values are not normal: every style of `Style`, tiny and large ones."""
    base = roomy_case(bench.recipe)
    cases = [replace(base, name=style, kind="stress", style=style) for style in STYLES if style != "normal"]
    cases += [replace(base, name=name, kind="stress", scale=scale) for name, scale in SCALES]
    usable = [case for case in cases if bench.usable(case)]
    trials = list(bench.trials(usable, say, slack=DRAWN_SLACK))
    problems = [f"{trial.title}: {trial.detail}" for trial in trials if trial.detail]
    summary = _summary(trials, ", ".join(case.name for case in usable), bench)
    left_out = [case.name for case in cases if case not in usable]
    if left_out:
        summary += f"; the reference is not finite on {', '.join(left_out)}"
    return judged("stress", "", problems, tried=summary)


def _summary(trials: list[Trial], what: str, bench: Bench) -> str:
    right = sum(not trial.detail for trial in trials)
    where = " and ".join(bench.recipe.generations)
    return f"{right} of {len(trials)} right on {what}; {' and '.join(bench.recipe.dtypes)}, {where}"
