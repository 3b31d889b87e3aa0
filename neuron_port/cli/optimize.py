"""`neuron-port optimize`: a faster kernel in place of a verified one, by predicted latency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuron_port.cli.model_options import executor_options, language_model_options, task_options
from neuron_port.cli.opening import cost_words, open_workshop, quiet, require_folder, say

if TYPE_CHECKING:
    from neuron_port.drafting.optimize import OptimizeResult

NOTHING_GAINED = 1


@click.command()
@click.argument("kernel", metavar="KERNEL.py[:FUNCTION]")
@click.option("--spec", required=True, metavar="SPEC",
              help="What it must compute: a recipe's name, a folder of one, or FILE.py:NAME with --input.")  # fmt: skip
@task_options
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds of attempts.")
@click.option("--directions", type=click.IntRange(1), default=3, show_default=True,
              help="Attempts side by side in a round.")  # fmt: skip
@click.option(
    "--beam", type=click.IntRange(1), default=4, show_default=True, help="Kernels kept from round to round."
)
@click.option("--margin", type=click.FloatRange(0, 1), default=0.05, show_default=True,
              help="The part by which a kernel must be predicted faster to count.")  # fmt: skip
@language_model_options
@executor_options
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.py",
              help="Where the faster kernel goes.  [default: KERNEL.optimized.py]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", "silent", is_flag=True, help="No progress.")
def optimize(
    kernel: str,
    spec: str,
    target: str,
    rounds: int,
    directions: int,
    beam: int,
    margin: float,
    dry_run: bool,
    output: Path | None,
    as_json: bool,
    silent: bool,
    inputs: tuple[str, ...],
    sizes: tuple[str, ...],
    settings: tuple[str, ...],
    sources: tuple[str, ...],
    allowed_licenses: tuple[str, ...],
    **opened: Any,
) -> None:
    """Let a language model make a verified KERNEL faster; every step stays as right as before.

    Latencies are predictions of the simulator's model, not measurements. Ends with 1 when nothing was gained.

    \b
    neuron-port optimize recipes/rms_norm/kernel.py --spec rms_norm --llm openai:gpt-5 --budget-usd 2
    """
    from neuron_port.cli.task_of import task_of
    from neuron_port.cli.verify import read_kernel
    from neuron_port.drafting.optimize import OptimizeOptions
    from neuron_port.drafting.optimize import optimize as run

    task = task_of(
        spec,
        inputs=inputs,
        sizes=sizes,
        settings=settings,
        sources=sources,
        allowed_licenses=allowed_licenses,
    )
    source = read_kernel(kernel, task.name)
    place = output or Path(kernel.removesuffix(f":{task.name}")).with_suffix(".optimized.py")
    require_folder(place)
    options = OptimizeOptions(rounds=rounds, directions=directions, beam=beam, margin=margin, target=target)
    told = quiet if silent else say
    with open_workshop(silent=silent, **opened) as workshop:
        if dry_run:
            click.echo(_worst_case(options, workshop))
            return
        result = run(task, source, workshop, options, progress=lambda text: told(f"{task.name}: {text}"))
    faster = result.after is not result.before
    if faster:
        place.write_text(result.after.source, encoding="utf-8")
    if as_json:
        click.echo(json.dumps(_facts(result, place if faster else None), indent=2))
    else:
        _print(result, place if faster else None)
    if not faster:
        raise click.exceptions.Exit(NOTHING_GAINED)


def _worst_case(options: Any, workshop: Any) -> str:
    from neuron_port.cli.draft import table_text
    from neuron_port.drafting.options import MAX_OUTPUT_TOKENS, PROMPT_CHARACTERS, REVIEW_OUTPUT_TOKENS
    from neuron_port.drafting.spending.cost import PlannedCalls, estimate_tokens

    attempts = options.rounds * options.directions
    prompt = estimate_tokens("x" * PROMPT_CHARACTERS)
    planned = [
        PlannedCalls(
            purpose="optimize", calls=attempts, input_tokens=prompt, output_tokens=MAX_OUTPUT_TOKENS
        ),
        PlannedCalls(
            purpose="review", calls=attempts, input_tokens=prompt, output_tokens=REVIEW_OUTPUT_TOKENS
        ),
    ]
    return table_text(planned, workshop, "1 kernel")


def _facts(result: OptimizeResult, place: Path | None) -> dict[str, Any]:
    return {
        "task": result.task.name,
        "run": result.run,
        "outcome": result.outcome,
        "tier": "simulator",
        "predicted_latency_before_ns": result.before.measured.latency_ns,
        "predicted_latency_after_ns": result.after.measured.latency_ns,
        "predicted_speedup": result.speedup,
        "case": result.before.measured.case,
        "ledger": list(result.ledger),
        "calls": result.spent.calls,
        "tokens": result.spent.tokens,
        "cost_usd": result.spent.usd,
        "file": str(place) if place else None,
    }


def _print(result: OptimizeResult, place: Path | None) -> None:
    before, after = result.before.measured, result.after.measured
    click.echo(f"{'kernel':<12}{result.task.name} on {result.folder.name}")
    click.echo(
        f"{'latency':<12}{before.latency_ns / 1e3:.2f} -> {after.latency_ns / 1e3:.2f} µs "
        f"({result.speedup:.2f}x), predicted by the simulator's model on {before.case}; no device measured it"
    )
    click.echo(f"{'roofline':<12}{before.roofline_fraction:.0%} -> {after.roofline_fraction:.0%}")
    for number, line in enumerate(result.ledger):
        click.echo(f"{'attempts' if number == 0 else '':<12}{line}")
    click.echo(f"{'ended':<12}{result.outcome}")
    if result.notice:
        click.echo(f"{'':<12}{result.notice}")
    click.echo(f"{'cost':<12}{cost_words(result.spent)}")
    if place is not None:
        click.echo(f"{'written':<12}{place}")
