"""Cases that a candidate has not been shown: other sizes, other values, other attributes, from one seed.

A kernel that knows the public sizes, leaves out the maximum of its softmax or forgets epsilon meets its end here. The
seed is part of the verdict, so that a verdict can be had again; nothing else about these cases leaves the grader.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from neuron_port.grading.oracle import DRAWN_SLACK, CaseTruth, TaskError, case_truth, one_torch_thread
from neuron_port.grading.work import input_elements, reference_work
from neuron_port.recipe import Case, Size, Style
from neuron_port.task import KernelTask

TILE = 128  # partitions: sizes that are no multiple of it reach partial tiles
ATTEMPTS = 12  # draws of one case before its task is taken to have no other
MOST_ELEMENTS = 1_500_000  # of inputs and outputs: what the simulator does well within a second
LEAST_ELEMENTS = 40_000  # affordable however small the public cases are
LEAST_WORK, MOST_WORK = (
    1_000_000,
    30_000_000,
)  # elements that the reference makes on its way (`grading/work.py`)
NOISIEST = 0.2  # relative error of the reference itself, beyond which a case tells nothing
# Values that a kernel may meet: what it is called, the factor, the style.
STRESS: tuple[tuple[str, float, Style], ...] = (
    ("tiny values", 1e-3, "normal"),
    ("large values", 6.0, "normal"),
    ("huge values", 30.0, "normal"),
    ("outliers", 1.0, "outliers"),
    ("constant rows", 1.0, "constant rows"),
    ("one-hot maxima", 1.0, "one hot"),
    ("clustered values", 1.0, "clustered"),
    ("a long tail of values", 1.0, "long tail"),
    ("signed zeros and subnormals", 1.0, "signed zeros"),
)
# Float attributes that may take any value near their own, by parts of their names.
FREE_ATTRIBUTES = ("eps", "scale", "scaling", "slope", "alpha", "softcap", "temperature")


@dataclass(frozen=True, kw_only=True)
class HiddenTruths:
    """The hidden cases of one seed. `left_out`: those that tell nothing, by kind and dtype."""

    truths: tuple[CaseTruth, ...]
    left_out: tuple[str, ...]


def hidden_truths(task: KernelTask, seed: int) -> HiddenTruths:
    """The hidden cases of a task in all its dtypes, for a seed; a case that the task does not survive is left out.

    A case survives when the reference takes it and is finite on it, zeros would not pass, and the reference's own
    rounding does not drown everything.

    Raises:
        TaskError: none survives.
    """
    truths: list[CaseTruth] = []
    left_out: list[str] = []
    with one_torch_thread():
        for case in hidden_cases(task, seed):
            for dtype in task.dtypes:
                truth = _surviving(task, case, dtype, seed)
                if truth is None:
                    left_out.append(f"{case.name} ({dtype})")
                else:
                    truths.append(truth)
    if not truths:
        raise TaskError(
            f"Task `{task.name}`: its reference gives no usable answer on any hidden case",
            hint="Give `sizes` for which the reference works.",
        )
    return HiddenTruths(truths=tuple(truths), left_out=tuple(left_out))


def hidden_cases(task: KernelTask, seed: int) -> Iterator[Case]:
    """Cases of other sizes, then stress on small ones. `name` says the kind of case and no value."""
    generator = random.Random(f"{task.key}/{seed}")
    limits = _Limits.of_public(task)
    seen: list[Mapping[str, int]] = [case.sizes for case in task.cases]
    for name, choose in (
        ("sizes that are not multiples of 128", _uneven),
        ("a size at its least", _least),
        ("a size beyond the public ones", _beyond),
        ("sizes that were not shown", _unseen),
    ):
        found = _draw_sizes(task, limits, generator, choose, seen)
        if found is not None:
            base, sizes = found
            seen.append(sizes)
            yield _case(f"hidden: {name}", base, sizes, generator, task)
    for name, scale, style in STRESS:
        found = _draw_sizes(task, limits.for_stress(), generator, _near, seen)
        base, sizes = found or _smallest(task)
        drawn = _case(f"hidden: {name}", base, sizes, generator, task)
        yield replace(drawn, scale=scale, style=style)


class _Limits:
    """How large a hidden case may be: what the public ones take, and at most what a second allows."""

    def __init__(self, task: KernelTask, elements: int, work: int) -> None:
        self.task = task
        self.elements = max(LEAST_ELEMENTS, min(MOST_ELEMENTS, elements))
        self.work = max(LEAST_WORK, min(MOST_WORK, work))

    @classmethod
    def of_public(cls, task: KernelTask) -> _Limits:
        elements = max(input_elements(task, case.sizes) for case in task.cases)
        work = max(reference_work(task, case.sizes, case.attributes) for case in task.cases)
        return cls(task, elements, work)

    def for_stress(self) -> _Limits:
        """Values are what matters there: a fifth is enough."""
        return _Limits(self.task, self.elements // 5, self.work // 5)

    def allow(self, sizes: Mapping[str, int], base: Case) -> bool:
        """Whether inputs of these sizes are small enough, and the reference has little enough to do."""
        if input_elements(self.task, sizes) > self.elements:
            return False
        try:
            return reference_work(self.task, sizes, base.attributes) <= self.work
        except Exception:
            # The reference does not take these sizes: computing the truth will say so, and the case is counted.
            return True


def _draw_sizes(
    task: KernelTask, limits: _Limits, generator: random.Random, choose: Any, seen: list[Mapping[str, int]]
) -> tuple[Case, dict[str, int]] | None:
    """Sizes of a case near a public one, equal to no other case's, within the limits; None if there are none."""
    bases = [case for case in task.cases if set(task.sizes) & set(case.sizes)]
    if choose is _near:  # tails are often of one row or one column, on which no value is special
        bases = [case for case in bases if case.kind in ("ordinary", "stress")]
    if not bases:
        return None
    for _ in range(ATTEMPTS):
        base = generator.choice(bases)
        free = {name: task.sizes[name] for name in base.sizes if name in task.sizes}
        sizes = {**base.sizes, **choose(free, base, task, generator)}
        kept = {name for name in free if choose is _beyond and sizes[name] > _shown(name, task)}
        while not limits.allow(sizes, base) and (sizes := _smaller(sizes, free, kept)):
            pass
        if sizes and sizes not in seen:
            return base, sizes
    return None


def _smaller(sizes: dict[str, int], free: Mapping[str, Size], kept: set[str]) -> dict[str, int]:
    """The sizes with the one that is furthest above its least cut by a third; {} when all are at their least.

    Those in `kept` are cut when nothing else can be.
    """
    reduced = {name: _fit(sizes[name] * 2 // 3, size) for name, size in free.items()}
    can = [name for name in free if reduced[name] < sizes[name]]
    first = [name for name in can if name not in kept] or can
    if not first:
        return {}
    name = max(first, key=lambda name: sizes[name] / free[name].least)
    return {**sizes, name: reduced[name]}


def _fit(value: int, size: Size) -> int:
    """The nearest legal value at or below `value`, else the least."""
    least = -(-size.least // size.multiple) * size.multiple
    return max(least, min(value, size.most) // size.multiple * size.multiple)


def _publicly(name: str, task: KernelTask) -> list[int]:
    return sorted({case.sizes[name] for case in task.cases if name in case.sizes})


def _shown(name: str, task: KernelTask) -> int:
    return _publicly(name, task)[-1]


def _fresh(name: str, size: Size, most: int, task: KernelTask, generator: random.Random) -> int:
    """A value up to `most` that no public case has, where there is one; small and large ones alike are likely."""
    known = _publicly(name, task)
    least = _fit(size.least, size)
    value = least
    for _ in range(ATTEMPTS):
        exponent = generator.random()
        value = _fit(round(least * (max(most, least) / least) ** exponent), size)
        if value not in known:
            break
    return value


def _unseen(
    free: Mapping[str, Size], base: Case, task: KernelTask, generator: random.Random
) -> dict[str, int]:
    """Every size anew, up to one and a half times the base's."""
    return {
        name: _fresh(name, size, max(8, base.sizes[name] * 3 // 2), task, generator)
        for name, size in free.items()
    }


def _near(free: Mapping[str, Size], base: Case, task: KernelTask, generator: random.Random) -> dict[str, int]:
    """Every size between a half of the base's and a little more than it."""
    return {
        name: _fit(round(base.sizes[name] * generator.uniform(0.5, 1.2)), size) for name, size in free.items()
    }


def _uneven(
    free: Mapping[str, Size], base: Case, task: KernelTask, generator: random.Random
) -> dict[str, int]:
    """No size a multiple of a tile, and those that may be are larger than one, one of them surely."""
    chosen = {}
    above = generator.choice(sorted(name for name, size in free.items() if size.most > TILE) or sorted(free))
    for name, size in free.items():
        around = max(base.sizes[name], 2 * TILE) if name == above else base.sizes[name]
        value = _fit(round(around * generator.uniform(0.6, 1.3)), size)
        if value % TILE == 0:
            value = _fit(value + size.multiple * generator.choice((1, 3)), size)
        if value % TILE == 0 and value - size.multiple in size:
            value -= size.multiple
        chosen[name] = value
    return chosen


def _least(
    free: Mapping[str, Size], base: Case, task: KernelTask, generator: random.Random
) -> dict[str, int]:
    """One size at the edge of its range, the others anew."""
    chosen = _unseen(free, base, task, generator)
    name = generator.choice(sorted(free))
    chosen[name] = _fit(free[name].least, free[name])
    return chosen


def _beyond(
    free: Mapping[str, Size], base: Case, task: KernelTask, generator: random.Random
) -> dict[str, int]:
    """One size above all that were shown, where that is legal; the others small."""
    chosen = {
        name: _fresh(name, size, max(8, base.sizes[name] // 4), task, generator)
        for name, size in free.items()
    }
    wider = [
        name
        for name, size in free.items()
        if _fit(_shown(name, task) + size.multiple, size) > _shown(name, task)
    ]
    if wider:
        name = generator.choice(sorted(wider))
        largest = _shown(name, task)
        reach = max(largest + free[name].multiple, round(largest * generator.uniform(1.05, 1.4)))
        chosen[name] = _fit(reach, free[name])
    return chosen


def _smallest(task: KernelTask) -> tuple[Case, dict[str, int]]:
    """The ordinary case with the smallest inputs: for tasks whose sizes cannot be varied."""
    ordinary = [case for case in task.cases if case.kind == "ordinary"]
    case = min(ordinary, key=lambda case: input_elements(task, case.sizes))
    return case, dict(case.sizes)


def _case(
    name: str, base: Case, sizes: Mapping[str, int], generator: random.Random, task: KernelTask
) -> Case:
    return Case(
        name=name,
        kind="stress",
        sizes=dict(sizes),
        attributes={key: _varied(key, value, task, generator) for key, value in base.attributes.items()},
        scale=1.0,
    )


def _varied(name: str, value: Any, task: KernelTask, generator: random.Random) -> Any:
    """A float attribute that is free is moved by up to a factor of two; everything else stays.

    It is free when its name says so (eps, scale ...), or when the public cases do not agree on it.
    """
    if not isinstance(value, float):
        return value
    values = {case.attributes.get(name) for case in task.cases}
    if len(values) == 1 and not any(part in name.lower() for part in FREE_ATTRIBUTES):
        return value
    return value * 2 ** generator.uniform(-1, 1)


def _surviving(task: KernelTask, case: Case, dtype: str, seed: int) -> CaseTruth | None:
    """The case in a dtype, if it can tell right from wrong there."""
    try:
        truth = case_truth(task, case, dtype, seed, DRAWN_SLACK)
    except TaskError:  # the reference does not take these sizes or values
        return None
    return truth if all(_tells(truth, number) for number in range(len(truth.truths))) else None


def _tells(truth: CaseTruth, number: int) -> bool:
    right, baseline = truth.truths[number], truth.baselines[number]
    if not bool(torch.isfinite(right).all() and torch.isfinite(baseline).all()):
        return False
    comparison = truth.compare(number, torch.zeros_like(baseline))
    return not comparison.passed and comparison.metrics.get("legal_l2", 0.0) <= NOISIEST
