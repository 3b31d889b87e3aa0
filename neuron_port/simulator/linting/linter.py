"""Entry of the lint."""

from __future__ import annotations

from pathlib import Path

from neuron_port.simulator.linting.findings import Finding


def lint_source(text: str, path: str | Path = "<kernel>") -> list[Finding]:
    """Findings of a kernel file given as text, in order of line."""
    compile(text, str(path), "exec", dont_inherit=True)
    return []


def lint_file(path: str | Path) -> list[Finding]:
    """Findings of the kernel file at `path`, in order of line."""
    return lint_source(Path(path).read_text(encoding="utf-8"), path)
