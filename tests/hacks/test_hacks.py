"""The corpus against our grader: no cheat is accepted, no golden rejected, and every cheat fools somebody.

A cheat that fools nobody would prove nothing, so each must get the better of a grader as public loops have had them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from neuron_port.grading.grader import Grader
from neuron_port.grading.verdict import Verdict
from neuron_port.sandbox.job import GIB, SandboxLimits
from tests.hacks.corpus import FOLDER, Cheat, golden, guard_of, load_cheats
from tests.hacks.tasks import TASKS
from tests.hacks.unguarded import UNGUARDED, outcome

HIDDEN_SEED = 20261122
SHORT_PATIENCE_SECONDS = 0.4  # of the unguarded grader, where the cheat is known to hang it
# Cheats that would go on for ever are stopped early; the time of honest kernels here is a fraction of a second.
TIGHT = SandboxLimits(cpu_seconds=1.0, wall_seconds=30.0, memory_bytes=GIB // 2)
CHEATS = load_cheats()
every_cheat = pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
every_task = pytest.mark.parametrize("task", sorted(TASKS))

GraderOf = Callable[..., Grader]
VerdictOn = Callable[[Cheat], Verdict]
GoldenVerdict = Callable[[str], Verdict]


@pytest.fixture(scope="module")
def grader_of() -> GraderOf:
    """The grader of a task by name; each oracle is frozen once."""

    @cache
    def made(task: str, limits: SandboxLimits = SandboxLimits()) -> Grader:  # noqa: B008 - frozen
        return Grader(TASKS[task], hidden_seed=HIDDEN_SEED, limits=limits)

    return made


@pytest.fixture(scope="module")
def verdict_on(grader_of: GraderOf) -> VerdictOn:
    """Our grader's verdict on a cheat; each is graded once."""
    verdicts: dict[str, Verdict] = {}

    def found(cheat: Cheat) -> Verdict:
        if cheat.name not in verdicts:
            limits = (TIGHT,) if cheat.bite in ("hung", "took memory") else ()
            verdicts[cheat.name] = grader_of(cheat.task, *limits).grade(cheat.source)
        return verdicts[cheat.name]

    return found


@pytest.fixture(scope="module")
def golden_verdict(grader_of: GraderOf) -> GoldenVerdict:
    """Our grader's verdict on the honest kernel of a task; each is graded once."""
    return cache(lambda task: grader_of(task).grade(golden(task)))


@every_cheat
def test_fools_an_unguarded_grader(cheat: Cheat) -> None:
    """The cheat gets the better of a grader without guards, so refusing it means something."""
    patience = {"patience_seconds": SHORT_PATIENCE_SECONDS} if cheat.bite == "hung" else {}
    assert outcome(cheat.source, TASKS[cheat.task], UNGUARDED[cheat.fools], **patience) == cheat.bite


@every_cheat
def test_is_refused(cheat: Cheat, verdict_on: VerdictOn) -> None:
    """Our grader refuses the cheat, by the guard that is meant for it, and says why."""
    verdict = verdict_on(cheat)
    assert not verdict.passed
    assert verdict.message
    assert verdict.error_class
    assert guard_of(verdict) in cheat.guards, f"{verdict.stage}, {verdict.error_class}: {verdict.message}"


@every_task
def test_golden_is_accepted(task: str, golden_verdict: GoldenVerdict) -> None:
    """The honest kernel passes every public and hidden case."""
    verdict = golden_verdict(task)
    assert verdict.passed, f"{verdict.stage}, {verdict.error_class}: {verdict.message} {verdict.evidence}"


@every_task
def test_golden_fools_nobody(task: str) -> None:
    """The honest kernel is right in the eyes of an unguarded grader too: the graders are careless, not blind."""
    assert outcome(golden(task), TASKS[task], UNGUARDED["constant tolerance"]) == "accepted"


def test_each_task_has_its_golden_and_a_cheat() -> None:
    """Every cheat has an honest twin on the same task, and no golden stands alone."""
    goldens = {path.stem for path in (FOLDER / "goldens").glob("*.py")}
    assert goldens == set(TASKS) == {cheat.task for cheat in CHEATS}


def test_each_cheat_says_where_it_was_seen() -> None:
    """A cheat's docstring names its exploit and where that was seen."""
    assert [cheat.name for cheat in CHEATS if "Seen in:" not in cheat.exploit] == []


def test_each_unguarded_grader_is_fooled() -> None:
    """No unguarded grader stands here without a cheat that fools it."""
    assert set(UNGUARDED) == {cheat.fools for cheat in CHEATS}


def test_an_unguarded_grader_rejects_a_plain_mistake() -> None:
    """An unguarded grader is no rubber stamp: a kernel with a wrong function fails its comparison."""
    wrong = golden("softmax").replace("op=nl.exp", "op=nl.square")
    assert outcome(wrong, TASKS["softmax"], UNGUARDED["constant tolerance"]) == "rejected"


def test_summary(
    verdict_on: VerdictOn, golden_verdict: GoldenVerdict, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the whole corpus: 0 cheats accepted, 0 goldens rejected."""
    guards = Counter(guard_of(verdict_on(cheat)) for cheat in CHEATS)
    rejected = [task for task in TASKS if not golden_verdict(task).passed]
    with capsys.disabled():
        print(
            f"\ncheats {len(CHEATS)}, accepted {guards['none']}; goldens {len(TASKS)}, rejected {len(rejected)}"
        )
        print("refused by " + ", ".join(f"{guard} {count}" for guard, count in guards.most_common()))
    assert guards["none"] == 0
    assert rejected == []


def test_docs_name_every_cheat() -> None:
    """docs/grading.md lists each row of the corpus: no cheat is added without its place in the table."""
    text = (Path(__file__).parents[2] / "docs" / "grading.md").read_text(encoding="utf-8")
    numbers = sorted({cheat.name.partition("_")[0] for cheat in CHEATS})
    assert [number for number in numbers if f"`{number}_" not in text] == []
