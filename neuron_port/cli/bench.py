"""`neuron-port bench`: how often a language model's drafts become kernels, on which arms, and at what cost."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuron_port.cli.model_options import executor_options, language_model_options
from neuron_port.cli.opening import home_folder, limits_of, open_workshop, quiet, say
from neuron_port.errors import UsageError

if TYPE_CHECKING:
    from neuron_port.bench.results import RepliesKind
    from neuron_port.bench.run import Benchmark
    from neuron_port.bench.suite import BenchTask
    from neuron_port.drafting.workshop import Workshop
    from neuron_port.llm.messages import LanguageModel

WHOLE_SUITE = "layers"
SEED_FILE = "hidden_seed"
ALL_ARMS = "one-shot,best-of-4,repair,memory,source"


@click.command()
@click.option("--suite", default=WHOLE_SUITE, show_default=True, metavar="layers|NAME[,NAME]|./FOLDER",
              help="All development tasks, some of them, or a folder of your own tasks.")  # fmt: skip
@click.option(
    "--arms", default=ALL_ARMS, show_default=True, metavar="ARM[,ARM]", help="What the loop is allowed."
)
@click.option("--k", "ks", default="1,4,10", show_default=True, metavar="K[,K]",
              help="Of pass@k; as many independent drafts are made as the largest says.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Runs of every arm.")
@click.option("--repairs", type=click.IntRange(0), default=6, show_default=True,
              help="Rounds of repair, on arms that repair.")  # fmt: skip
@click.option("--no-plan", is_flag=True, help="Draft without a plan first.")
@click.option(
    "--max-output-tokens", type=click.IntRange(256), default=12_000, show_default=True, help="Of one reply."
)
@click.option(
    "--target", type=click.Choice(["inf2", "trn1", "trn2"]), default="trn2", show_default=True, help="Chip."
)
@click.option("--memory", "memory_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Lessons that the arm shows, copied once.  [default: those of your own runs]")  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0), help="Of the hidden cases.  [default: drawn, and kept in --output]"
)
@language_model_options
@click.option("--scripted", is_flag=True,
              help="Instead of --llm: replies written by hand, which say nothing about any model.")  # fmt: skip
@executor_options
@click.option("--output", "-o", type=click.Path(file_okay=False, path_type=Path), default=Path("benchmark"),
              show_default=True, metavar="DIR", help="Where results.json and bench.html go.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option("--quiet", "silent", is_flag=True, help="No progress.")
def bench(
    suite: str,
    arms: str,
    ks: str,
    repeats: int,
    repairs: int,
    no_plan: bool,
    max_output_tokens: int,
    target: str,
    memory_file: Path | None,
    seed: int | None,
    scripted: bool,
    dry_run: bool,
    output: Path,
    as_json: bool,
    silent: bool,
    **opened: Any,
) -> None:
    """Measure the drafting loop on a suite of tasks: pass@k, admitted kernels, errors, tokens and dollars.

    Every arm runs on every task through the real loop, then everything once more from the caches, which must ask
    nothing. What is paid for is kept: the same command goes on after an interrupt. The budget holds for all of it.

    \b
    neuron-port bench --scripted --suite softmax,gelu --k 1,4
    neuron-port bench --llm openai:gpt-5-mini --arms one-shot,repair --k 1 --budget-usd 5
    """
    from neuron_port.bench.arms import Protocol, find_arms
    from neuron_port.bench.page import write_page
    from neuron_port.bench.results import write_results
    from neuron_port.bench.run import Benchmark
    from neuron_port.bench.table import results_text

    tasks = tasks_of(suite)
    protocol = Protocol(
        arms=find_arms(_names(arms)),
        ks=_numbers(ks),
        repeats=repeats,
        repairs=repairs,
        plan=not no_plan,
        target=target,
        max_output_tokens=max_output_tokens,
        hidden_seed=seed or 0,
    )
    told = quiet if silent else say
    with _open(tasks, scripted, silent=silent, **opened) as (workshop, model_of, model_id, replies):
        benchmark = Benchmark(
            suite=suite,
            tasks=tasks,
            protocol=protocol,
            workshop=workshop,
            model_of=model_of,
            model_id=model_id,
            replies=replies,
            progress=told,
        )
        if dry_run:
            from neuron_port.cli.draft import table_text

            planned = replace(workshop, model=model_of(tasks[0]))
            click.echo(table_text(benchmark.planned_calls(), planned, f"{benchmark.runs} runs"))
            return
        _open_output(output)
        benchmark.protocol = replace(protocol, hidden_seed=_seed(output) if seed is None else seed)
        _give_memory(benchmark, memory_file, output)
        results = benchmark.run()
    path, page = write_results(results, output), write_page(results, output)
    click.echo(json.dumps(results.facts(), indent=1) if as_json else results_text(results), nl=as_json)
    told(f"written: {path}, {page}")


def _give_memory(benchmark: Benchmark, file: Path | None, output: Path) -> None:
    """Copy the lessons that arms with a memory show: those of `file`, or of the user's own runs.

    Raises:
        UsageError: there is no such file.
    """
    from neuron_port.bench.held_out import freeze_memory

    if not any(arm.memory for arm in benchmark.protocol.arms):
        return
    if file is not None and not file.exists():
        raise UsageError(f"File not found: `{file}`")
    tasks = [task.task for task in benchmark.tasks]
    benchmark.memory = freeze_memory(file or home_folder() / "memory.sqlite", output, tasks)
    benchmark.protocol = replace(benchmark.protocol, frozen_memory=benchmark.memory.digest)


def tasks_of(suite: str) -> tuple[BenchTask, ...]:
    """The tasks that `--suite` names.

    Raises:
        UsageError: an unknown name, or a folder without tasks.
    """
    from neuron_port.bench.suite import load_suite

    if suite == WHOLE_SUITE:
        return load_suite()
    folder = Path(suite)
    if os.sep in suite:
        if not folder.is_dir():
            raise UsageError(f"No folder of tasks at: `{suite}`")
        found = load_suite(folder=folder)
        if not found:
            raise UsageError(f"No tasks in: `{suite}`", hint="A task is a folder with a task.py.")
        return found
    return load_suite(_names(suite))


@contextmanager
def _open(
    tasks: Sequence[BenchTask], scripted: bool, **options: Any
) -> Iterator[tuple[Workshop, Callable[[BenchTask], LanguageModel], str, RepliesKind]]:
    """The workshop, the model for a task, its name in print, and where its replies come from."""
    from neuron_port.llm.replay import ReplayModel

    if not scripted:
        with open_workshop(**options) as workshop:
            model = workshop.model
            if isinstance(model, ReplayModel):
                yield workshop, lambda _: model, model.recorded_model, model.exchanges
            else:
                yield workshop, lambda _: model, model.name, "recorded" if workshop.replay else "live"
        return
    from neuron_port.bench.scripted_model import NAME, ScriptedModel
    from neuron_port.drafting.workshop import Workshop
    from neuron_port.llm.throttle import Throttle
    from neuron_port.sandbox.executor import make_executor

    if options["llm"] is not None:
        raise UsageError("--scripted and --llm exclude each other", hint="Leave one of them out.")
    limits = limits_of(
        options["budget_usd"], options["budget_tokens"], options["budget_calls"], options["budget_seconds"]
    )
    with closing(make_executor(options["executor"], options["workers"])) as running:
        workshop = Workshop(
            home=home_folder(),
            model=ScriptedModel(tasks[0]),  # each task has its own
            limits=limits,
            executor=running,
            throttle=Throttle(concurrent_calls=options["llm_concurrency"]),
            replay=options["replay"],
            say=quiet if options["silent"] else say,
        )
        yield workshop, ScriptedModel, NAME, "scripted"


def _open_output(folder: Path) -> None:
    from neuron_port.drafting.keeping.files import make_folder
    from neuron_port.store import Store

    with Store(folder).writing(folder):
        make_folder(folder)


def _seed(output: Path) -> int:
    """The seed of the benchmark in this folder: drawn the first time, so that a resumed one has the same cases."""
    from neuron_port.drafting.keeping.files import replace_file

    file = output / SEED_FILE
    if not file.exists():
        replace_file(file, f"{secrets.randbits(48)}\n".encode())
    return int(file.read_text())


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"Not a list of k: `{text}`", hint="For example --k 1,4,10.") from None
