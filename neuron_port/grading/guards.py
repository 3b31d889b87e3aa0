"""Guards beyond right values: a kernel that gives the right answer in a way that will not last is refused by name."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuron_port.execution import to_numpy
from neuron_port.grading.judge import Judgement
from neuron_port.grading.oracle import CaseTruth, Oracle
from neuron_port.sandbox.job import CallOutcome
from neuron_port.simulator.parsing import parse_python

FULL_PRECISION = frozenset({"float32", "int32", "uint32"})
LEAST_DIGITS = 4  # significant ones; fewer are everywhere
MOST_VALUES = 4096  # of one tensor: nobody writes a larger one into a kernel
WRITTEN_OUT = 12  # digits from which a literal must be a float32 value exactly: log2(e) to 17 digits is none
CHANCE = 1e-4  # of as many coincidences, below which literals are taken to be copied


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a kernel is refused although its values are right."""

    guard: str
    message: str
    hint: str
    line: int | None = None


def moves_only(oracle: Oracle) -> bool:
    """Whether the task computes nothing: every value of every output is a value of an input, in all cases."""
    return all(computed_values(truth) == 0 for truth in oracle.truths)


def computed_values(truth: CaseTruth) -> int:
    """How many different values of the outputs are no input's, nor zero: at least as many must be computed."""
    outputs = [np.unique(to_numpy(baseline).astype(np.float64)) for baseline in truth.baselines]
    inputs = [np.unique(array.astype(np.float64)) for array in truth.given.values()]
    known = np.concatenate([*inputs, [0.0]])
    return sum(int((~np.isin(values, known)).sum()) for values in outputs)


def refuse_idle(judged: Sequence[Judgement]) -> Refusal | None:
    """A kernel whose instructions compute fewer elements than the output has values of its own."""
    for one in judged:
        if one.facts is None or one.facts.computed_elements is None:
            continue
        computed, needed = one.facts.computed_elements, computed_values(one.truth)
        if computed < needed:
            return Refusal(
                guard="no work",
                message=(
                    f"case `{one.truth.case.name}`: the instructions computed {computed} elements; the output has "
                    f"{needed} values that no input has"
                ),
                hint="Compute the result with nki.isa instructions from what was loaded.",
            )
    return None


def refuse_low_precision(judged: Sequence[Judgement]) -> Refusal | None:
    """A float32 contract whose products are taken in fewer bits."""
    for one in judged:
        dtypes = one.facts.matmul_dtypes if one.facts else ()
        low = sorted(set(dtypes) - FULL_PRECISION)
        if one.truth.dtype == "float32" and low:
            return Refusal(
                guard="precision",
                message=f"case `{one.truth.case.name}` is float32, and nc_matmul was given operands in {', '.join(low)}",
                hint="Keep operands of nc_matmul in the dtype of the inputs.",
            )
    return None


def refuse_literals(source: str, truths: Sequence[CaseTruth]) -> Refusal | None:
    """Numbers in the source that are values of the public cases, more of them than chance explains."""
    literals = list(_literals(parse_python(source)))
    if not literals:
        return None
    values = np.unique(
        np.concatenate([part for truth in truths for part in _small_values(truth)] or [np.zeros(0)])
    )
    values = values[values != 0]
    found = [(number, digits, line) for number, digits, line in literals if _occurs(number, digits, values)]
    expected = sum(len(values) * _precision(digits) for _, digits, _ in literals)
    if not found or _tail(len(found), expected) > CHANCE:
        return None
    number, _, line = found[0]
    return Refusal(
        guard="literals",
        message=f"{len(found)} numbers in the source are values of the public cases, the first is {number!r}",
        hint="Compute every value from the inputs.",
        line=line,
    )


def _literals(tree: ast.Module) -> Iterator[tuple[float, int, int]]:
    """(number, significant digits, line) of every float literal of at least four digits."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float) and math.isfinite(node.value):
            mantissa = repr(abs(node.value)).partition("e")[0]
            digits = len(mantissa.replace(".", "").strip("0"))
            if digits >= LEAST_DIGITS:
                yield node.value, digits, node.lineno


def _small_values(truth: CaseTruth) -> Iterator[np.ndarray]:
    """Values of the small tensors of a case; large ones nobody copies, and they hold every number."""
    if truth.dtype != "float32":  # 16 bits know so few numbers that any literal is among them
        return
    for array in (*truth.given.values(), *(to_numpy(baseline) for baseline in truth.baselines)):
        if array.dtype.kind == "f" and array.size <= MOST_VALUES:
            finite = np.abs(array[np.isfinite(array)].astype(np.float64).ravel())
            yield finite


def _occurs(number: float, digits: int, values: np.ndarray) -> bool:
    if not len(values):
        return False
    near = values[np.abs(values - abs(number)).argmin()]
    return bool(abs(near - abs(number)) <= abs(number) * _precision(digits) / 2)


def _precision(digits: int) -> float:
    """The relative width of what a literal of so many digits may stand for; float32 has no more than nine."""
    return 10.0 ** (1 - digits) if digits < WRITTEN_OUT else 10.0 ** (1 - WRITTEN_OUT)


def _tail(count: int, expected: float) -> float:
    """The probability of at least `count` coincidences where `expected` are to be expected (Poisson)."""
    # In logarithms: a source may hold thousands of literals.
    below = sum(math.exp(k * math.log(expected) - expected - math.lgamma(k + 1)) for k in range(count))
    return max(0.0, 1.0 - below)


def refuse_difference(first: CallOutcome, second: CallOutcome, where: str) -> Refusal | None:
    """The same inputs twice must give the same bits."""
    if first.failure:
        return None
    if second.failure:
        return Refusal(
            guard="determinism",
            message=f"inputs that were answered before fail {where}: {second.failure.message}",
            hint="Keep nothing between calls.",
            line=second.failure.line,
        )
    same = len(first.outputs) == len(second.outputs) and all(
        one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
        for one, other in zip(first.outputs, second.outputs, strict=True)
    )
    if same:
        return None
    return Refusal(
        guard="determinism",
        message=f"the same inputs gave other bits {where}",
        hint="Keep nothing between calls, and use no random numbers.",
    )
