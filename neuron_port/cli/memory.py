"""`neuron-port memory`: what earlier drafting runs learnt, for people to read and to delete."""

from __future__ import annotations

from typing import Any

import click

from neuron_port.cli.opening import home_folder


def _open() -> Any:
    from neuron_port.drafting.memory.lessons import Memory
    from neuron_port.recipe import NKI_VERSION
    from neuron_port.task import VERIFIER_VERSION

    return Memory(home_folder() / "memory.sqlite", dialect=NKI_VERSION, verifier_version=VERIFIER_VERSION)


@click.group()
def memory() -> None:
    """Memory: kernels, corrections, levers and dead ends that later prompts draw on."""


@memory.command("list")
def list_lessons() -> None:
    """List every lesson: id, kind, how often it helped, and what it says."""
    with _open() as opened:
        rows = opened.rows()
    for lesson in rows:
        state = lesson.stale or ("provisional" if lesson.provisional else "proven")
        helped = f"helped {lesson.successes} of {lesson.trials}"
        about = f"{lesson.error_class}: " if lesson.error_class else ""
        click.echo(f"{lesson.id:>4}  {lesson.kind:<9} {helped:<15} {state:<12} {about}{lesson.note[:100]}")
    if not rows:
        click.echo("Nothing was learnt yet; admitted drafts are what is learnt from.", err=True)


@memory.command()
@click.argument("lesson", type=int)
def forget(lesson: int) -> None:
    """Delete the lesson of that id, with its history."""
    with _open() as opened:
        opened.forget(lesson)
    click.echo(f"forgotten: {lesson}")
