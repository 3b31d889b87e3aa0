"""Runs the command line inside this process and keeps what it printed."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neuron_port.cli import main

# Small graphs, and enough room for the three random prompts (6, 10 and 14 tokens) and what follows them.
SIZES = ("--buckets", "16", "--cache-length", "32", "--new-tokens", "4")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a command left: its exit code and its two streams."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("error:")]

    @property
    def hints(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("  hint:")]

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    def skipped(self) -> set[str]:
        """Names of the stages that were taken from the store."""
        return {
            line.partition(": skipped")[0]
            for line in self.stderr.splitlines()
            if ": skipped, unchanged" in line
        }


def run(*arguments: object) -> Finished:
    """Run `neuron-port` with these arguments. An exception other than its exit is a bug, and passes through."""
    out, err = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with streams[0], streams[1], interruptible(), pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return Finished(code=left.value.code, stdout=out.getvalue(), stderr=err.getvalue())


def convert(model: Path, output: Path, *arguments: object) -> Finished:
    """Convert with the small sizes; arguments that follow win over them."""
    return run("convert", model, *SIZES, "--output", output, *arguments)


def failed(finished: Finished, code: int) -> str:
    """The one sentence and the hint of a command that had to fail in the agreed form."""
    assert finished.code == code, finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    assert len(finished.errors) == 1, finished.stderr
    assert len(finished.hints) <= 1, finished.stderr
    assert finished.stderr.rstrip().endswith((*finished.errors, *finished.hints)[-1])
    return "\n".join((*finished.errors, *finished.hints))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the test runner was started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def manifest(bundle: Path) -> Any:
    return json.loads((bundle / "neuron_port.json").read_text())


def parity(bundle: Path) -> dict[str, list[Any]]:
    """The reports of the three proofs by side."""
    return dict(json.loads((bundle / "parity" / "report.json").read_text())["reports"])


def contents(bundle: Path) -> dict[str, Any]:
    """What is in every file of a bundle, but for how long things took: two honest conversions agree in it."""
    found: dict[str, Any] = {}
    for name, digest in manifest(bundle)["files"].items():
        if name == "parity/report.json" or name.endswith("/recipe.json"):
            found[name] = _without_seconds(json.loads((bundle / name).read_text()))
        elif name != "report.html":
            found[name] = digest
    return found


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [_without_seconds(item) for item in value] if isinstance(value, list) else value


def partial_folders(*roots: Path) -> list[Path]:
    """Half-written results that a run left behind."""
    return [path for root in roots for path in root.rglob("*") if ".partial" in path.name]
