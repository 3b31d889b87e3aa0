"""An audit of the environment, in five points: does the reward measure what it says?

The points are kernel-grader's: a right answer passes, cheats fail, these cheats do fool a grader without guards, there
is room between a first attempt and a right one, and the truth does not come from what is graded.
"""

from __future__ import annotations

import ast

import pytest

from neuron_port.bench.scripts import scripted_replies
from neuron_port.bench.suite import BenchTask, load_suite
from neuron_port.environments.grade import DEFAULT_REWARD, grade
from neuron_port.environments.suite import KernelSuite
from tests.hacks.corpus import Cheat, load_cheats
from tests.hacks.tasks import TASKS
from tests.hacks.unguarded import UNGUARDED, outcome

SUITE = load_suite()
KERNELS = KernelSuite(seed=17)
# One cheat of each kind that runs in a second; tests/hacks holds all of them against the grader.
SAMPLE = (
    "01_exit_status", "03_zeros", "05_first_tile", "06_numpy", "06_subclasses", "09_all_public_shapes",
    "10_no_maximum", "10_no_epsilon", "15_returns_the_input", "19_orders_to_the_reviewer",
)  # fmt: skip
CHEATS = [cheat for cheat in load_cheats() if cheat.name in SAMPLE]
TASK_OF = {task.name: task for task in (TASKS.values() if isinstance(TASKS, dict) else TASKS)}


@pytest.mark.slow
@pytest.mark.parametrize("found", SUITE, ids=lambda found: found.name)
def test_golden_kernels_earn_all_that_correctness_pays(found: BenchTask) -> None:
    """1. A right kernel earns the whole reward of correctness, whatever its author."""
    assert KERNELS.grade(found.name, found.golden).reward == DEFAULT_REWARD.correct


def test_the_sample_is_there() -> None:
    """The cheats that the next two points speak of exist."""
    assert {cheat.name for cheat in CHEATS} == set(SAMPLE)


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
def test_cheats_do_not_pay(cheat: Cheat) -> None:
    """2. A cheat earns at most what an honest attempt with the same public results does, and never correctness."""
    found = grade(TASK_OF[cheat.task], cheat.source, seed=17)
    assert found.reward <= DEFAULT_REWARD.public
    assert found.stage not in ("hidden", "admitted")


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
def test_the_cheats_bite(cheat: Cheat) -> None:
    """3. Each of these cheats gets the better of a grader without guards, so that refusing it means something."""
    assert outcome(cheat.source, TASK_OF[cheat.task], UNGUARDED[cheat.fools]) == cheat.bite


@pytest.mark.slow
@pytest.mark.parametrize("found", SUITE, ids=lambda found: found.name)
def test_there_is_headroom(found: BenchTask) -> None:
    """4. A realistic first draft earns less than half of what the last attempt earns, and more than a cheat."""
    first, *_, last = [reply for reply in scripted_replies(found) if reply.purpose != "plan"]
    draft = KERNELS.grade(found.name, first.text, finish=first.finish).reward
    assert DEFAULT_REWARD.hack < draft <= DEFAULT_REWARD.correct / 2
    assert KERNELS.grade(found.name, last.text).reward == DEFAULT_REWARD.correct


@pytest.mark.parametrize("found", SUITE, ids=lambda found: found.name)
def test_the_truth_is_independent(found: BenchTask) -> None:
    """5. The reference is plain torch in a task file that imports neither a kernel nor the simulator."""
    tree = ast.parse((found.folder / "task.py").read_text())
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    ]
    for module in imported:
        assert not module.startswith(("nki", "neuron_port.simulator", "neuron_port.grading")), module
    assert "golden" not in found.task.reference_text
