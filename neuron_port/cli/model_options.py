"""The options of every command that asks a language model, or tries what it wrote; no import but click."""

from __future__ import annotations

from typing import Any

import click


def _with(function: Any, options: list[Any]) -> Any:
    for option in reversed(options):
        function = option(function)
    return function


def language_model_options(function: Any) -> Any:
    """Which language model is asked, and what it may cost."""
    return _with(function, [
        click.option("--llm", metavar="MODEL",
                     help="openai:NAME, http://HOST/v1#NAME, bedrock:ID or replay:FILE.  [default: the config file's]"),
        click.option("--llm-base-url", metavar="URL", help="Another address for openai:NAME."),
        click.option("--llm-price", metavar="IN,OUT", help="US dollars per million tokens, where they are not known."),
        click.option("--llm-concurrency", type=click.IntRange(1), default=8, show_default=True,
                     help="Calls at once."),
        click.option("--budget-usd", type=click.FloatRange(min=0), metavar="N", help="Stop before more is spent."),
        click.option("--budget-tokens", type=click.IntRange(1), metavar="N",
                     help="Tokens read and written.  [default: 2,000,000]"),
        click.option("--budget-calls", type=click.IntRange(1), metavar="N", help="Calls of the language model."),
        click.option("--budget-seconds", type=click.FloatRange(min=0, min_open=True), metavar="N",
                     help="Time on the clock."),
        click.option("--replay", is_flag=True, help="Use kept replies only; a missing one is an error, never a call."),
        click.option("--dry-run", is_flag=True, help="Print the plan and the worst-case cost; ask nothing."),
    ])  # fmt: skip


def executor_options(function: Any) -> Any:
    """Where candidate kernels are tried."""
    return _with(function, [
        click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                     help="Try kernels in processes here, or on a Ray cluster."),
        click.option("--workers", type=click.IntRange(1), help="Kernels tried at once.  [default: one per core]"),
    ])  # fmt: skip


def task_options(function: Any) -> Any:
    """What the kernel must compute, when a function in a file says it."""
    return _with(function, [
        click.option("--input", "-i", "inputs", multiple=True, metavar="NAME=SHAPE",
                     help="A tensor argument, its sizes by name or number: x=TxH, ids=T:index<50257. Repeatable."),
        click.option("--size", "sizes", multiple=True, metavar="NAME=N|A..B",
                     help="A size that the shapes name: H=512, or T=1..300 for one that varies. Repeatable."),
        click.option("--set", "-s", "settings", multiple=True, metavar="NAME=VALUE",
                     help="An argument that is no tensor. Repeatable."),
        click.option("--source", "sources", multiple=True, metavar="FILE",
                     type=click.Path(exists=True, dir_okay=False),
                     help="Triton or CUDA code that computes the same. Repeatable."),
        click.option("--allow-license", "allowed_licenses", multiple=True, metavar="SPDX",
                     help="Use a source under this licence although it is refused otherwise; recorded. Repeatable."),
        click.option("--target", type=click.Choice(["inf2", "trn1", "trn2"]), default="trn2", show_default=True,
                     help="Chip."),
    ])  # fmt: skip
