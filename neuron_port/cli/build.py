"""`neuron-port build`: finishes a bundle by the program that it carries itself, here or on AWS."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from neuron_port.build.finishing.files import (
    COMPILATION,
    ENVIRONMENT,
    INTERRUPTED,
    MANIFEST,
    OK,
    PARITY,
    USAGE,
)
from neuron_port.build.finishing.options import ENGINES
from neuron_port.build.finishing.tables import TARGETS
from neuron_port.cli.deploy import show
from neuron_port.cli.remote_options import (
    UNCONFIRMED,
    build_options,
    ended_like_ctrl_c,
    remote_options,
    say,
)
from neuron_port.errors import NeuronPortError, StorageError, UsageError

# Options that finish.py has under the same name. With --remote those of the first list go along.
_TRAVEL = ("kernels", "retry_kernels", "jobs", "graphs", "graph_timeout_minutes")
_STAY = ("engine", "cache", "work", "weights", "nki_python", "nrtpy_python", "torch_python", "device_nodes")
_ENDS = {
    ENVIRONMENT: ("cannot be finished here", "The sentence above says what is missing or damaged."),
    COMPILATION: ("is not compiled whole", "Each graph's cause and cure stand above; the others are kept."),
    PARITY: ("is compiled, and the device did not confirm it", "The outputs that differ stand above."),
}


def _finish_options(function: Any) -> Any:
    """What finish.py can be told."""
    options = [
        click.option("--engine", type=click.Choice(list(ENGINES)), default="hlo", show_default=True,
                     help="HLO to NEFF by neuronx-cc, or torch_neuronx.trace of SDK 2.31."),
        click.option("--kernels", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
                     help="NKI kernels; auto: on trn2 where nki is, and what fails is left to the compiler."),
        click.option("--retry-kernels", is_flag=True, help="Try kernels again that an earlier run was refused."),
        click.option("--jobs", type=click.IntRange(min=1),
                     help="Compilations at once.  [default: by processors and memory]"),
        click.option("--graphs", metavar="ID,..", help="Only these graphs."),
        click.option("--graph-timeout-minutes", type=click.FloatRange(min=0, min_open=True), metavar="MINUTES",
                     help="End a compilation that takes longer."),
        click.option("--dry-run", is_flag=True, help="Print the commands, or with --remote the prices; make nothing."),
        click.option("--status", is_flag=True, help="What the bundle's state is, and what it rests on."),
        click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="NEFFs shared by bundles."),
        click.option("--work", type=click.Path(path_type=Path), metavar="DIR", help="Scratch.  [default: in the bundle]"),
        click.option("--weights", type=click.Path(path_type=Path), metavar="DIR",
                     help="The checkpoint, when the bundle only refers to it."),
        click.option("--nki-python", metavar="PYTHON", help="Interpreter of the environment that has nki."),
        click.option("--nrtpy-python", metavar="PYTHON", help="Interpreter of the environment that has nrtpy."),
        click.option("--torch-python", metavar="PYTHON", help="Interpreter that has torch_neuronx (engine trace)."),
        click.option("--device-nodes", hidden=True),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(TARGETS), help="The chip.  [required, but for --status]")
@_finish_options
@click.option(
    "--remote", metavar="s3://BUCKET/PREFIX", help="Build on AWS, through this place on S3; with it go:"
)
@remote_options
@click.pass_context
def build(
    context: click.Context, /, bundle: Path, target: str | None, remote: str | None, **options: Any
) -> None:
    """Compile BUNDLE for a chip, and check it on a device when there is one.

    Runs the bundle's own build/finish.py, with this Python unless told otherwise; neuronx-cc must be on PATH.
    """
    check_bundle(bundle)
    ours = {name: options.pop(name) for name in (*_TRAVEL, *_STAY, "dry_run", "status")}
    if target is None and not ours["status"]:
        raise UsageError("--target is missing", hint=f"Name the chip: --target {', '.join(TARGETS)}.")
    given = {name for name in (*ours, *options) if _is_given(context, name)}
    if remote is None:
        if strangers := sorted(given & set(options)):
            cure = "Give --remote s3://bucket/prefix."
            if strangers == ["timeout_minutes"]:
                cure = "For compilations on this machine it is --graph-timeout-minutes."
            raise UsageError(f"--{_dashed(strangers[0])} goes with --remote", hint=cure)
        finish_here(bundle, target, {name: ours[name] for name in ours if name in given})
        return
    if strangers := sorted(given & {*_STAY, "status"}):
        raise UsageError(
            f"--{_dashed(strangers[0])} does not go with --remote",
            hint="It speaks of this machine; leave it out.",
        )
    travelling = finish_arguments({name: ours[name] for name in _TRAVEL if name in given})
    assert target is not None
    _remotely(bundle, build_options(target, remote, tuple(travelling), **options), ours["dry_run"])


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _dashed(name: str) -> str:
    return {"prices": "price"}.get(name, name).replace("_", "-")


def check_bundle(bundle: Path) -> None:
    """Refuse what is no bundle. A bundle of another schema is well: its own program knows it."""
    try:
        manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        manifest["schema_version"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(
            f"No neuron bundle at: `{bundle}`",
            hint=f"A bundle has a {MANIFEST}; `neuron-port convert` writes one.",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "Copy the bundle again, or convert the model again."
        raise StorageError(f"`{bundle / MANIFEST}` is damaged: {error}", hint=hint) from error
    if not (bundle / "build" / "finish.py").is_file():
        raise StorageError(f"`{bundle}` has no build/finish.py", hint="Convert the model again.")


def finish_arguments(given: dict[str, Any]) -> list[str]:
    """The options that were given, as finish.py takes them."""
    arguments: list[str] = []
    for name, value in given.items():
        flag = "--timeout-minutes" if name == "graph_timeout_minutes" else f"--{_dashed(name)}"
        if name in ("cache", "work", "weights"):
            value = Path(value).absolute()
        arguments += [flag] if value is True else [flag, str(value)]
    return arguments


def finish_here(bundle: Path, target: str | None, given: dict[str, Any]) -> None:
    """Run the bundle's finish.py; its output is ours.

    Raises: NeuronPortError when it does not end well; KeyboardInterrupt when it was interrupted.
    """
    command = [sys.executable, str(bundle / "build" / "finish.py")]
    command += ["--target", target] if target else []
    status = run_through([*command, *finish_arguments(given)])
    if status in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if status == USAGE:
        raise UsageError("finish.py refused what it was asked", hint="The sentence above says why.")
    if status == ENVIRONMENT and "status" in given:
        hint = "Finish it again: what is BROKEN is made anew."
        raise NeuronPortError(f"`{bundle}` is not what its manifest says", hint=hint)
    if status != OK:
        if status not in _ENDS:
            raise NeuronPortError(
                f"`{bundle}`: finish.py ended with {status}", hint="What it said stands above."
            )
        said, hint = _ENDS[status]
        raise NeuronPortError(f"`{bundle}` {said}", hint=f"{hint} The same command continues.")


def run_through(command: list[str]) -> int:
    """Run a program on our terminal and return its status. What is to end us ends it first, in its own way."""
    with subprocess.Popen(command) as process, _passed_on(process):
        return process.wait()


@contextlib.contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to the program and wait for it.

    Ctrl-C reaches it from the terminal as well; a second interrupt does it no harm.
    """

    def send(number: int, _frame: object) -> None:
        if process.poll() is None:
            os.kill(process.pid, number)

    before = {number: signal.signal(number, send) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _remotely(bundle: Path, asked: Any, dry_run: bool) -> None:
    if dry_run:
        from neuron_port.deploy.aws import Aws
        from neuron_port.deploy.build_plan import plan_build

        show(plan_build(Aws(), bundle, asked), False, None)
        return
    from neuron_port.deploy.remote_build import run

    say(UNCONFIRMED)
    with ended_like_ctrl_c():
        result = run(bundle, asked, say=say)
    reused = ", found finished on S3" if result.reused else f", at most ${result.usd:.2f}"
    click.echo(f"{bundle}: {result.state} (job {result.job}{reused})")
