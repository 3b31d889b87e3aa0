"""A kernel named on the command line, its inputs, and one run of it: shared by `simulate` and `profile`.

A kernel file is a stranger's program. Whatever goes wrong in it, be it refused by the simulator or an exception of its
own, ends as one sentence with the kernel's file and line.
"""

from __future__ import annotations

import ast
import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
from threadpoolctl import threadpool_limits

from neuron_port.cli.kernel_inputs import Input, bind, read_inputs, read_settings
from neuron_port.errors import NeuronPortError, UsageError
from neuron_port.simulator import (
    HbmArray,
    KernelRun,
    LimitError,
    SimulatorError,
    load_kernel,
    run_kernel,
    to_hbm,
)
from neuron_port.simulator.errors import PACKAGE
from neuron_port.simulator.limits import Limits
from neuron_port.simulator.loader import MODULES, PLAIN_MODULES

GIB = 1024**3


class KernelError(NeuronPortError):
    """A kernel that the simulator refuses, or that fails by itself; the message opens with its file and line."""


class KernelInterruptedError(NeuronPortError):
    """Ctrl-C while a kernel ran."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """A loaded kernel with everything that it is called with."""

    name: str
    path: Path
    function: Callable[..., Any]  # what the file defines: a nki kernel, or a plain function
    inputs: tuple[Input, ...]
    settings: dict[str, Any]
    arguments: dict[str, Any]  # arrays and settings in the order of the kernel's signature
    target: str
    lnc: int
    limits: Limits


def prepare(
    kernel: str,
    *,
    inputs: tuple[str, ...],
    settings: tuple[str, ...],
    mutable: tuple[str, ...],
    seed: int,
    target: str,
    lnc: int,
    time_limit: float,
    instruction_limit: int,
    memory_limit: float | None,
) -> KernelCall:
    """Load the kernel and make its inputs.

    Raises:
        UsageError: no such file or function, or arguments that do not fit it.
        KernelError: the file fails when it is loaded.
    """
    path, name = split_place(kernel)
    with failures_named(name):
        function = load_kernel(path, name, imports=_imports(path))
        limits = Limits(
            seconds=time_limit,
            instructions=instruction_limit,
            host_bytes=None if memory_limit is None else int(memory_limit * GIB),
        )
    plain = getattr(function, "function", function)
    arrays = read_inputs(inputs, seed)
    chosen = read_settings(settings, getattr(plain, "__globals__", {}))
    arguments = bind(plain, arrays, chosen)
    for name_ in mutable:
        if name_ not in {one.name for one in arrays}:
            raise UsageError(f"--mutable {name_}: no input has this name", hint="Give it with --input.")
        arguments[name_] = to_hbm(arguments[name_], mutable=True)
    return KernelCall(
        name=name,
        path=path,
        function=function,
        inputs=arrays,
        settings=chosen,
        arguments=arguments,
        target=target,
        lnc=lnc,
        limits=limits,
    )


def _imports(path: Path) -> Literal["recipe", "any"]:
    """How to load the file: by itself if nki and a few standard modules are all it imports, else as its package's module.

    The first leaves the process as it was; the second makes the simulator the process's `nki`.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.level == 0 else ["."]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        if any(name not in MODULES and name.partition(".")[0] not in PLAIN_MODULES for name in names):
            return "any"
    return "recipe"


LIMIT_OPTIONS = "on the command line: --instruction-limit, --time-limit, --memory-limit"


def split_place(text: str) -> tuple[Path, str]:
    """The file and the function of FILE:FUNCTION.

    Raises:
        UsageError: another form, or no such file.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        raise UsageError(f"`{text}` is not FILE:FUNCTION", hint="For example kernel.py:rms_norm.")
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"File not found: `{file}`")
    return path, name


def execute(call: KernelCall, *, quiet: bool, with_traceback: bool) -> tuple[KernelRun, float]:
    """Run the kernel once: (the run, seconds that it took).

    Raises:
        KernelError: the kernel is refused or fails.
        KernelInterruptedError: Ctrl-C.
    """
    started = time.monotonic()
    # A tile's product takes a few hundred microseconds: threads cost it more than they give.
    with failures_named(call.name, with_traceback), threadpool_limits(limits=1, user_api="blas"):
        if not quiet:
            click.echo(f"{call.name}: simulating on {call.target} ...", err=True)
        run = run_kernel(
            call.function, target=call.target, lnc=call.lnc, limits=call.limits, **call.arguments
        )
    return run, time.monotonic() - started


@contextlib.contextmanager
def interruptible(name: str) -> Iterator[None]:
    """Ctrl-C ends the command with one sentence.

    Raises:
        KernelInterruptedError: instead of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise KernelInterruptedError(
            f"Interrupted while `{name}` ran", hint="What was not finished is not written."
        ) from error


@contextlib.contextmanager
def failures_named(name: str, with_traceback: bool = False) -> Iterator[None]:
    """Turn whatever a kernel raises into one sentence that names its line; what it prints goes to stderr.

    Raises:
        KernelError: instead of any exception of the kernel or of the simulator.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt as error:
        raise KernelInterruptedError(
            f"Interrupted while `{name}` ran", hint="What was not finished is not written."
        ) from error
    except NeuronPortError:
        raise
    except SimulatorError as error:
        if with_traceback:
            click.echo(traceback.format_exc(), err=True)
        where = f"{error.location}: " if error.location else ""
        hint = f"{error.hint} ({LIMIT_OPTIONS})" if isinstance(error, LimitError) else error.hint
        raise KernelError(f"{where}{error.message}", hint=hint) from error
    except Exception as error:  # the kernel is a stranger's program: any exception is its outcome
        if with_traceback:
            click.echo(traceback.format_exc(), err=True)
        raise KernelError(_sentence(name, error), hint=_hint(error)) from error


def _sentence(name: str, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    said = str(error) or "no message"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    where = f"{own[-1].filename}:{own[-1].lineno}: " if own else f"kernel `{name}`: "
    return f"{where}{type(error).__name__}: {said}"


def _hint(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename.startswith(PACKAGE):
        return "The simulator met something that it does not handle; --traceback shows where."
    return "The kernel itself failed there; --traceback shows how it came to that line."


def _is_ours(filename: str) -> bool:
    return filename.startswith((PACKAGE, str(Path(__file__).parent), "<frozen")) or "/numpy/" in filename


def changed_inputs(call: KernelCall) -> dict[str, HbmArray]:
    """The inputs given as --mutable, with what the kernel left in them."""
    return {name: value for name, value in call.arguments.items() if isinstance(value, HbmArray)}
