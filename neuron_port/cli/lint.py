"""`neuron-port lint`: what the NKI compiler's subset of Python refuses in kernel files, without running them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...",
                type=click.Path(exists=True, path_type=Path))  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True,
              help="How findings are printed.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def lint(files: tuple[Path, ...], form: str, as_json: bool) -> None:
    """Report what the NKI compiler refuses in kernel FILEs (or all .py files of a folder), with line and cure.

    Ends with 1 when there are errors; warnings and what only hardware refuses do not count as such.
    """
    from neuron_port.simulator.linting import lint_file

    findings = [finding for path in _python_files(files) for finding in lint_file(path)]
    counts: Counter[str] = Counter(finding.severity for finding in findings)
    if form == "json" or as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings, counts)
    if counts["error"]:
        raise click.exceptions.Exit(1)


def _python_files(given: Iterable[Path]) -> list[Path]:
    """The files, and all Python files below the folders."""
    files: list[Path] = []
    for path in given:
        files.extend(sorted(path.rglob("*.py")) if path.is_dir() else [path])
    return files


def _print(findings: list[Any], counts: Counter[str]) -> None:
    for finding in findings:
        place = f"{finding.path}:{finding.line}:{finding.column}"
        click.echo(f"{place}: {finding.severity} {finding.rule}: {finding.message}")
        click.echo(f"  cure:   {finding.cure}")
        click.echo(f"  source: {finding.source}")
    if not findings:
        click.echo("No findings.")
        return
    said = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in _named(counts))
    click.echo(said, err=True)


def _named(counts: Counter[str]) -> list[tuple[str, int]]:
    names = {"error": "error", "warning": "warning", "hardware": "hardware finding"}
    return [(word, counts[name]) for name, word in names.items() if counts[name]]
