"""The entry of the lint: reads a file, finds its kernel code, asks every rule, sorts what they say."""

from __future__ import annotations

from pathlib import Path

from neuron_port.simulator.linting import (
    rules_arguments,
    rules_classes,
    rules_kernels,
    rules_loops,
    rules_memory,
    rules_python,
    rules_versions,
)
from neuron_port.simulator.linting.catalogue import RULES
from neuron_port.simulator.linting.findings import Finding
from neuron_port.simulator.linting.reachability import kernel_code
from neuron_port.simulator.linting.report import Report
from neuron_port.simulator.linting.source import read_source

_THEMES = (
    rules_versions,
    rules_python,
    rules_classes,
    rules_kernels,
    rules_arguments,
    rules_memory,
    rules_loops,
)


def lint_source(text: str, path: str | Path = "<kernel>") -> list[Finding]:
    """Findings of a kernel file given as text, in order of line; `path` is what they show.

    Only kernel code is judged: what the NKI compiler would see when it compiles the file's kernels.
    """
    try:
        source = read_source(text, str(path))
    except SyntaxError as error:
        return [_not_python(str(path), error.msg, error.lineno or 1, error.offset or 1)]
    except RecursionError:
        return [_not_python(str(path), "its expressions are nested too deeply to be read")]
    except ValueError as error:  # null bytes
        return [_not_python(str(path), str(error))]
    report = Report(source, kernel_code(source))
    for theme in _THEMES:
        theme.check(report)
    return report.findings()


def lint_file(path: str | Path) -> list[Finding]:
    """Findings of the kernel file at `path`, in order of line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return [_not_python(str(path), f"it is not UTF-8 ({error.reason} at byte {error.start})")]
    return lint_source(text, path)


def _not_python(path: str, reason: str, line: int = 1, column: int = 1) -> Finding:
    return Finding(
        path=path,
        line=line,
        column=column,
        rule="E00",
        severity="error",
        message=f"the file is no Python: {reason}",
        cure="correct it; nothing else was checked",
        source=RULES["E00"].source,
    )
