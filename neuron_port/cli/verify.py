"""`neuron-port verify`: is this kernel what the specification says? The verdict is the grader's, as for any draft."""

from __future__ import annotations

import json
import secrets
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuron_port.cli.model_options import executor_options, task_options
from neuron_port.cli.opening import quiet, say
from neuron_port.errors import NeuronPortError, UsageError

if TYPE_CHECKING:
    from neuron_port.grading.verdict import Verdict

REFUSED = 1


@click.command()
@click.argument("kernel", metavar="KERNEL.py[:FUNCTION]")
@click.option("--spec", required=True, metavar="SPEC",
              help="What it must compute: a recipe's name, a folder of one, or FILE.py:NAME with --input.")  # fmt: skip
@task_options
@executor_options
@click.option(
    "--seed", type=int, help="Of the hidden cases, to have an earlier verdict again.  [default: drawn]"
)
@click.option(
    "--admit", is_flag=True, help="Also what an accepted draft must pass: repeated calls, a second process."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.option("--quiet", "silent", is_flag=True, help="No progress.")
def verify(
    kernel: str,
    spec: str,
    target: str,
    executor: str,
    workers: int | None,
    seed: int | None,
    admit: bool,
    as_json: bool,
    silent: bool,
    **described: Any,
) -> None:
    """Judge KERNEL on public, hidden and stress cases, in a sandbox, with every guard against cheating.

    Ends with 0 when it is accepted, 1 when it is refused, 2 when it cannot be judged.

    \b
    neuron-port verify my_kernel.py --spec rms_norm
    neuron-port verify my_kernel.py --spec layer.py:my_norm -i x=TxH -i gamma=H --size T=1..300 --size H=512
    """
    from neuron_port.cli.task_of import task_of
    from neuron_port.grading.grader import Grader
    from neuron_port.sandbox.executor import make_executor

    told = quiet if silent else say
    drawn = secrets.randbits(48) if seed is None else seed
    with closing(make_executor(executor, workers)) as running:
        try:
            task = task_of(spec, **described)
            source = read_kernel(kernel, task.name)
            told(f"{task.name}: freezing the oracle ...")
            grader = Grader(task, target=target, hidden_seed=drawn, executor=running)
            told(f"{task.name}: trying the kernel on {target} ...")
            verdict = grader.admit(source, seed=drawn) if admit else grader.grade(source)
        except NeuronPortError as error:  # refused is what kernels are; this is that none can be judged
            raise UsageError(error.message, hint=error.hint) from error
    if as_json:
        from neuron_port.types import to_json

        click.echo(json.dumps(to_json(verdict), indent=2))
    else:
        _print(task.name, kernel, target, verdict)
    if not verdict.passed:
        raise click.exceptions.Exit(REFUSED)


def read_kernel(place: str, entry_point: str) -> str:
    """The source of `KERNEL.py[:FUNCTION]`; FUNCTION, when it is given, must be the task's entry point.

    Raises:
        UsageError: no such file, not text, or another function.
    """
    file, colon, function = place.rpartition(":")
    if not colon or not function.isidentifier():
        file, function = place, entry_point
    if function != entry_point:
        raise UsageError(
            f"The kernel's function is `{function}`, the specification's is `{entry_point}`",
            hint="The entry point must have the specification's name.",
        )
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"File not found: `{file}`", hint="Write KERNEL.py, or KERNEL.py:FUNCTION.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"`{file}` is not UTF-8 text", hint="A kernel is one Python file.") from error


def _print(name: str, kernel: str, target: str, verdict: Verdict) -> None:
    passed = sum(case.passed for case in verdict.cases)
    click.echo(f"{'kernel':<12}{kernel} as {name} on {target}")
    click.echo(
        f"{'verdict':<12}{'ACCEPTED' if verdict.passed else 'REFUSED'}, tier {verdict.tier}, stage {verdict.stage}"
    )
    if verdict.cases:
        click.echo(f"{'cases':<12}{passed} of {len(verdict.cases)} pass")
    if verdict.latency_ns is not None:
        click.echo(f"{'latency':<12}{verdict.latency_ns / 1e3:.2f} µs predicted, largest ordinary case")
    if not verdict.passed:
        place = "" if verdict.line is None else f" (line {verdict.line})"
        click.echo(f"{'why':<12}{verdict.error_class}{place}: {verdict.message}")
        if verdict.guard:
            click.echo(f"{'guard':<12}{verdict.guard}")
        if verdict.hint:
            click.echo(f"{'cure':<12}{verdict.hint}")
        for number, line in enumerate(verdict.evidence):
            click.echo(f"{'evidence' if number == 0 else '':<12}{line}")
    if verdict.hidden_seed is not None:
        click.echo(f"{'hidden':<12}--seed {verdict.hidden_seed} draws the same hidden cases")
        if verdict.hidden_left_out:
            told = f"{len(verdict.hidden_left_out)} left out, on which the reference itself tells nothing: "
            click.echo(f"{'':<12}{told}{', '.join(verdict.hidden_left_out)}")
    click.echo(
        f"{'sandbox':<12}{', '.join(verdict.isolation) or 'nothing was run'}; {verdict.cpu_seconds:.1f} CPU s"
    )
