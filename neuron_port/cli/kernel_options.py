"""The argument and options that every kernel command shares; no import but click, so that help stays quick."""

from __future__ import annotations

from typing import Any

import click


def kernel_options(function: Any) -> Any:
    """The argument and the options that name a kernel, what it is called with, and how far it may go."""
    options = [
        click.argument("kernel", metavar="FILE:FUNCTION"),
        click.option("--input", "-i", "inputs", multiple=True, metavar="INPUT",
                     help="NAME=128x512:bfloat16[:normal|uniform|zeros|ones|arange[:NUMBER]], NAME=FILE.npy, or "
                          "FILE.npz with an array per argument. Repeatable."),
        click.option("--set", "-s", "settings", multiple=True, metavar="NAME=VALUE",
                     help="An argument that is no tensor: a literal, a name of the kernel's file, or a word. "
                          "Repeatable."),
        click.option("--mutable", multiple=True, metavar="NAME", help="An input that the kernel may write. Repeatable."),
        click.option("--seed", type=int, default=0, show_default=True,
                     help="Input number n is made from this seed plus n."),
        click.option("--target", default="trn2", show_default=True,
                     help="Chip or generation: trn1, inf2, trn2, trn3, gen2, gen3, gen4."),
        click.option("--lnc", type=click.IntRange(1, 2), default=1, show_default=True,
                     help="Physical cores of the logical NeuronCore."),
        click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True,
                     metavar="SECONDS", help="Stop a kernel that runs longer."),
        click.option("--instruction-limit", type=click.IntRange(1), default=5_000_000, show_default=True,
                     help="Stop a kernel that executes more instructions on one core."),
        click.option("--memory-limit", type=click.FloatRange(min=0, min_open=True), metavar="GIB",
                     help="Stop a kernel for which this process needs more.  [default: what the machine has]"),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("--traceback", "with_traceback", is_flag=True,
                     help="Also show where in Python a failing kernel was."),
        click.option("--quiet", is_flag=True, help="No progress."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function
