"""The arms on a tiny task with scripted replies: the real loop, grader and caches; offline and the same every time."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from neuron_port.bench.arms import Protocol, find_arms
from neuron_port.bench.held_out import freeze_memory, recipes_that_solve
from neuron_port.bench.results import SCRIPTED_NOTE
from neuron_port.bench.run import Benchmark, UnfinishedError
from neuron_port.bench.scripted_model import ScriptedModel
from neuron_port.bench.suite import BenchTask, load_suite
from neuron_port.drafting.memory.lessons import Memory
from neuron_port.drafting.memory.records import Exemplar
from neuron_port.drafting.spending.budget import BudgetLimits
from neuron_port.drafting.workshop import Workshop
from neuron_port.errors import UsageError
from neuron_port.grading.verdict import Verdict
from neuron_port.llm.messages import MayRetry, Message, OnText, Reply, Request
from neuron_port.recipe import NKI_VERSION
from neuron_port.task import VERIFIER_VERSION
from tests.bench.small_suite import line_tasks, write_echo, write_line

DAY = datetime.date(2026, 1, 2)


@dataclass
class Counted:
    """A scripted model that counts its calls, and is interrupted in the call of a number."""

    model: ScriptedModel
    stop_at: int | None = None
    asked: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def price(self) -> None:
        return None

    def complete(
        self, request: Request, *, on_text: OnText | None = None, may_retry: MayRetry | None = None
    ) -> Reply:
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(request.key(self.name))
        return self.model.complete(request, on_text=on_text)

    def probe(self) -> Reply:
        return self.model.probe()


def benchmark(tasks: tuple[BenchTask, ...], home: Path, **given: Any) -> Benchmark:
    """Two arms and two independent drafts, on hidden cases of a known seed."""
    arms = given.pop("arms", ("one-shot", "repair"))
    models = given.pop("models", {task.name: ScriptedModel(task) for task in tasks})
    protocol = Protocol(arms=find_arms(arms), ks=(1, 2), repairs=2, hidden_seed=7)
    return Benchmark(
        suite="small",
        tasks=tasks,
        protocol=given.pop("protocol", protocol),
        workshop=Workshop(home=home, model=models[tasks[0].name], limits=given.pop("limits", BudgetLimits())),
        model_of=lambda task: models[task.name],
        model_id="scripted",
        replies="scripted",
        today=DAY,
        **given,
    )


def test_arms_are_told_apart_and_a_rerun_asks_nothing(tmp_path: Path) -> None:
    """A script that is right at its second reply: one shot fails, repair admits; of two drafts one is right."""
    tasks = line_tasks(tmp_path / "tasks")
    model = Counted(ScriptedModel(tasks[0]))
    results = benchmark(tasks, tmp_path / "home", models={"line": model}).run()
    one_shot, repair = results.summaries
    assert (one_shot.admitted, repair.admitted) == (0, 1)
    assert one_shot.pass_at == repair.pass_at == {1: 0.5, 2: 1.0}
    assert repair.median_repair_rounds == 1
    assert repair.error_classes == {"wrong values": 4}
    assert results.rerun.calls == 0
    assert results.rerun.different == ()
    assert len(model.asked) == len(set(model.asked)), "a question was asked twice"
    assert (
        repair.tokens_per_kernel == results.of_arm("repair")[0].tokens > results.of_arm("one-shot")[0].tokens
    )


def test_results_carry_what_a_number_depends_on(tmp_path: Path) -> None:
    """Tier, NKI version, model, origin of replies, date, k, budget and suite stand beside the figures."""
    tasks = line_tasks(tmp_path / "tasks")
    limits = BudgetLimits(tokens=10_000_000)
    results = benchmark(tasks, tmp_path / "home", arms=("one-shot",), limits=limits).run()
    conditions = results.facts()["conditions"]
    expected = {
        "tier": "simulator", "nki_version": NKI_VERSION, "model": "scripted", "replies": "scripted",
        "date": "2026-01-02", "ks": [1, 2], "budget": {"tokens": 10_000_000}, "hidden_seed": 7,
    }  # fmt: skip
    assert {name: conditions[name] for name in expected} == expected
    assert SCRIPTED_NOTE.lower() in results.facts()["notes"][0].lower()
    (other,) = load_suite(folder=_changed_suite(tmp_path))
    changed = benchmark((other,), tmp_path / "home").conditions((other,))
    assert conditions["suite_digest"] != changed.suite_digest


def _changed_suite(folder: Path) -> Path:
    write_line(folder / "changed", factor=4.0)
    return folder / "changed"


def test_an_interrupted_benchmark_goes_on_to_the_same_results(tmp_path: Path) -> None:
    """Stopped in its first and in a later call, it ends with the results of one that was not, and asks nothing twice."""
    tasks = line_tasks(tmp_path / "tasks")
    whole = benchmark(tasks, tmp_path / "whole").run()
    asked: list[str] = []
    for stop_at in (0, 7):
        stopped = Counted(ScriptedModel(tasks[0]), stop_at=stop_at)
        with pytest.raises(KeyboardInterrupt):
            benchmark(tasks, tmp_path / "home", models={"line": stopped}).run()
        asked += stopped.asked
    going_on = Counted(ScriptedModel(tasks[0]))
    resumed = benchmark(tasks, tmp_path / "home", models={"line": going_on}).run()
    assert resumed.facts() == whole.facts()
    asked += going_on.asked
    assert len(asked) == len(set(asked))


def test_a_task_that_an_echo_solves_is_reported_and_left_out(tmp_path: Path) -> None:
    """The other task is measured, and the reason stands in the results."""
    write_echo(tmp_path / "tasks")
    write_line(tmp_path / "tasks")
    results = benchmark(load_suite(folder=tmp_path / "tasks"), tmp_path / "home", arms=("one-shot",)).run()
    assert "would pass" in results.rejected["echo"]
    assert {result.task for result in results.results} == {"line"}
    assert results.conditions.tasks == 1


def test_a_budget_that_ends_early_makes_no_figure(tmp_path: Path) -> None:
    """Numbers of a part of the suite are not published; the same benchmark with more goes on."""
    tasks = line_tasks(tmp_path / "tasks")
    stopped = Counted(ScriptedModel(tasks[0]))
    with pytest.raises(UnfinishedError, match="The budget ended the benchmark in run 1 of 3"):
        benchmark(tasks, tmp_path / "home", models={"line": stopped}, limits=BudgetLimits(calls=2)).run()
    going_on = Counted(ScriptedModel(tasks[0]))
    whole = benchmark(tasks, tmp_path / "home", models={"line": going_on}, arms=("one-shot",)).run()
    assert whole.summaries[0].pass_at[2] == 1.0
    assert stopped.asked
    assert not set(stopped.asked) & set(going_on.asked), "what was paid for is asked again"


def test_a_missing_reply_on_the_rerun_is_counted(tmp_path: Path) -> None:
    """A cache that lost a reply between the run and its re-run shows as a call."""
    tasks = line_tasks(tmp_path / "tasks")
    measured = benchmark(tasks, tmp_path / "home", arms=("one-shot",))
    results = list(measured._measure(tasks[0]))
    for file in (tmp_path / "home" / "replies").glob("*/*.json"):
        file.unlink()
    rerun = measured._rerun(tasks, results)
    assert rerun.calls > 0
    assert rerun.different == ("line, all arms",)


def test_arms_add_one_thing_each() -> None:
    """From arm to arm drafts, repairs, memory and source come in, and repeats are runs of their own."""
    protocol = Protocol(hidden_seed=1, frozen_memory="lessons")
    options = [protocol.arm_options(arm, 0, ("rms_norm",)) for arm in protocol.arms]
    assert [one.drafts for one in options] == [1, 4, 4, 4, 4]
    assert [one.repairs for one in options] == [0, 0, 6, 6, 6]
    assert [one.frozen_memory for one in options] == ["", "", "", "lessons", "lessons"]
    assert [one.show_source for one in options] == [False, False, False, False, True]
    assert all(one.exclude == ("rms_norm",) for one in options)
    assert protocol.arm_options(protocol.arms[0], 1, ()) == protocol.sample_options(protocol.arms[1], 1, ())
    assert len({replace(one, repeat=1) for one in options} | set(options)) == 10


@pytest.mark.parametrize(
    ("names", "sentence"), [(("one-shoot",), "Unknown arm: `one-shoot`"), ((), "No arm is named")]
)
def test_unknown_arms_are_refused(names: tuple[str, ...], sentence: str) -> None:
    """A misspelt arm is named."""
    with pytest.raises(UsageError, match=sentence):
        find_arms(names)


def test_the_recipe_that_solves_a_task_is_found_by_what_it_computes() -> None:
    """A matrix product hides the recipes of linear layers and of products; a softmax its own, and no other."""
    matmul, softmax, rms_norm = load_suite(["matmul", "softmax", "rms_norm"])
    assert recipes_that_solve(matmul.task) == ("linear", "matmul")
    assert recipes_that_solve(softmax.task) == ("softmax",)
    assert recipes_that_solve(rms_norm.task) == ("rms_norm",)


def test_memory_is_frozen_without_the_kernels_of_the_tasks(tmp_path: Path) -> None:
    """Lessons on a task, or on a function of its name, are not shown; others are; the user's own memory is untouched."""
    (task,) = line_tasks(tmp_path / "tasks")
    file = tmp_path / "memory.sqlite"
    verdict = Verdict(passed=True, stage="admitted")
    with Memory(file, dialect=NKI_VERSION, verifier_version=VERIFIER_VERSION) as memory:
        for key, name in ((task.task.key, "mine"), ("another", "line"), ("another", "square")):
            about: dict[str, Any] = {"family": "", "primitives": ("tensor_scalar",), "verdict": verdict}
            source = f"def {name}(x):\n    return x\n"
            memory.remember(Exemplar(**about, task=key, target="trn2", source=source, summary=name))
        frozen = freeze_memory(file, tmp_path / "out", [task.task])
        assert [lesson.note for lesson in frozen.memory.rows()] == ["square"]
        assert frozen.lessons == 1
        assert len(memory.rows()) == 3
        memory.forget(3)
    again = freeze_memory(file, tmp_path / "out", [task.task])
    assert again.digest == frozen.digest, "a resumed benchmark has another memory"


def test_scripted_replies_depend_on_the_request_alone(tmp_path: Path) -> None:
    """Asked in any order, a repair gets what follows the kernel that it quotes, and another repeat starts further on."""
    (task,) = line_tasks(tmp_path)
    model = ScriptedModel(task)

    def ask(purpose: str, text: str, sample: int = 0) -> str:
        message = Message(role="user", content=text)
        request = Request(messages=(message,), max_output_tokens=100, purpose=purpose, sample=sample)
        return model.complete(request).text

    first = ask("draft", "a task")
    wrong = first.partition("```python\n")[2].partition("```")[0]
    right = ask("repair", f"This is wrong:\n{wrong}\nCorrect it.")
    assert right != first
    assert task.golden.strip() in right
    assert ask("draft", "a task") == first
    assert ask("draft", "a task", sample=1_000_000) == right
