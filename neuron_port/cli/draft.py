"""`neuron-port draft`: a kernel for a function in a file, or for the layers of a model that no recipe serves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuron_port.cli.model_options import executor_options, language_model_options, task_options
from neuron_port.cli.opening import cost_words, open_workshop, quiet, say

if TYPE_CHECKING:
    from neuron_port.drafting.drafts import Drafted, Shelf
    from neuron_port.drafting.folder import Subject
    from neuron_port.drafting.options import DraftOptions
    from neuron_port.drafting.spending.cost import PlannedCalls
    from neuron_port.drafting.workshop import Workshop

NO_KERNEL = 1


def loop_options(function: Any) -> Any:
    """How hard one kernel is tried."""
    options = [
        click.option("--drafts", type=click.IntRange(1), default=4, show_default=True,
                     help="Independent drafts of each kernel."),
        click.option("--repairs", type=click.IntRange(0), default=6, show_default=True,
                     help="Rounds of repair for each draft."),
        click.option("--no-plan", is_flag=True, help="Draft without a plan first."),
        click.option("--max-output-tokens", type=click.IntRange(256), default=12_000, show_default=True,
                     help="Of one reply."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def draft_options(
    target: str, drafts: int, repairs: int, no_plan: bool, max_output_tokens: int
) -> DraftOptions:
    from neuron_port.drafting.options import DraftOptions

    return DraftOptions(
        drafts=drafts, repairs=repairs, plan=not no_plan, max_output_tokens=max_output_tokens, target=target
    )


@click.command()
@click.argument("subject", metavar="FILE.py:NAME|MODEL")
@task_options
@click.option("--layer", "layers", multiple=True, metavar="NAME",
              help="Of MODEL: only this layer, whatever serves it now. Repeatable.")  # fmt: skip
@click.option("--random-weights", is_flag=True, help="Of MODEL: the configuration alone is enough.")
@loop_options
@language_model_options
@executor_options
@click.option("--output", "-o", type=click.Path(file_okay=False, path_type=Path), default=Path("drafts"),
              show_default=True, metavar="DIR", help="Where accepted kernels go, a recipe folder each.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", "silent", is_flag=True, help="No progress.")
def draft(
    subject: str,
    inputs: tuple[str, ...],
    sizes: tuple[str, ...],
    settings: tuple[str, ...],
    sources: tuple[str, ...],
    allowed_licenses: tuple[str, ...],
    target: str,
    layers: tuple[str, ...],
    random_weights: bool,
    drafts: int,
    repairs: int,
    no_plan: bool,
    max_output_tokens: int,
    dry_run: bool,
    output: Path,
    as_json: bool,
    silent: bool,
    **opened: Any,
) -> None:
    """Let a language model draft an NKI kernel, try it on the simulator, and repair it until it is right.

    The function is plain PyTorch and says what is right; a model's layers are their own reference. What is paid for is
    kept: the same command goes on after an interrupt, and a finished one costs nothing.

    \b
    neuron-port draft layer.py:my_norm -i x=TxH -i gamma=H --size T=1..300 --size H=512 --llm openai:gpt-5
    neuron-port draft gpt2-tiny --llm http://localhost:8000/v1 --budget-usd 2
    """
    from neuron_port.cli.draft_model import draft_model
    from neuron_port.cli.task_of import is_function, subject_of
    from neuron_port.drafting.drafts import Shelf

    of_function = is_function(subject)
    _check_words(
        subject, of_function, bool(inputs or sizes or settings or sources), bool(layers or random_weights)
    )
    options = draft_options(target, drafts, repairs, no_plan, max_output_tokens)
    shelf = Shelf(folder=output, say=quiet if silent else say)
    with open_workshop(silent=silent, **opened) as workshop:
        if of_function:
            wanted = subject_of(subject, inputs, sizes, settings, sources, allowed_licenses)
            done = _draft_function(wanted, workshop, options, shelf, dry_run=dry_run)
        else:
            done = draft_model(
                subject,
                layers,
                workshop,
                options,
                shelf,
                random_weights=random_weights,
                allowed_licenses=allowed_licenses,
                dry_run=dry_run,
                silent=silent,
            )
    if done is None:
        return
    show(done, as_json)
    if any(one.result is not None and not one.admitted for one in done):
        raise click.exceptions.Exit(NO_KERNEL)


def _check_words(subject: str, of_function: bool, describes_function: bool, describes_model: bool) -> None:
    """Refuse options that do not go with the subject.

    Raises:
        click.UsageError: they describe the other kind of subject, or the subject is a file without a name.
    """
    if of_function and describes_model:
        raise click.UsageError("--layer and --random-weights describe a model, not FILE.py:NAME")
    if not of_function and subject.endswith(".py"):
        raise click.UsageError(f"Which function of the file? Write {subject}:NAME")
    if not of_function and describes_function:
        raise click.UsageError("--input, --size, --set and --source describe FILE.py:NAME, not a model")


def _draft_function(
    wanted: Subject, workshop: Workshop, options: DraftOptions, shelf: Shelf, *, dry_run: bool
) -> list[Drafted] | None:
    """What became of the function; None after a dry run, which prints the worst case instead."""
    from neuron_port.drafting.drafts import draft_one

    if dry_run:
        click.echo(cost_table(options, workshop, 1))
        return None
    return [draft_one(wanted, workshop, options, shelf)]


def cost_table(options: DraftOptions, workshop: Workshop, tasks: int) -> str:
    """The worst case of `tasks` runs, as text."""
    planned = [replace(line, calls=line.calls * tasks) for line in options.planned_calls()]
    return table_text(planned, workshop, f"{tasks} kernel{'' if tasks == 1 else 's'}")


def table_text(planned: Sequence[PlannedCalls], workshop: Workshop, what: str) -> str:
    """Planned calls with their worst case, and what the budget allows of it."""
    from neuron_port.drafting.spending.cost import plan_cost

    rows = plan_cost(planned, workshop.model.price).table()
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    limits = workshop.limits
    named = {"usd": limits.usd, "tokens": limits.tokens, "calls": limits.calls, "seconds": limits.seconds}
    held = ", ".join(f"{value:,} {name}" for name, value in named.items() if value is not None)
    return "\n".join(
        [f"{workshop.model.name}: {what}, nothing was asked", *lines, f"The budget stops it before {held}."]
    )


def show(done: list[Drafted], as_json: bool) -> None:
    """The result of every task: where its kernel is, or why there is none."""
    if as_json:
        click.echo(json.dumps([one.facts() for one in done], indent=2))
        return
    for one in done:
        click.echo(f"{one.name:<28}{one.outcome}")
        if one.layers:
            more = f" and {len(one.layers) - 1} more" if len(one.layers) > 1 else ""
            click.echo(f"{'':<28}serves {one.layers[0]}{more}")
        if one.result is not None:
            click.echo(f"{'':<28}{cost_words(one.result.spent)}; hidden seed {one.result.hidden_seed}")
            if one.result.notice:
                click.echo(f"{'':<28}{one.result.notice}")
        if one.folder is not None:
            click.echo(f"{'':<28}{one.folder}")
        if one.page is not None:
            click.echo(f"{'':<28}{one.page}: every candidate and why it was refused")
