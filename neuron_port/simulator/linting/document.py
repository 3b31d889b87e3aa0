"""Renders the table of docs/lint.md from the catalogue; `python -m` of this module writes it there."""

from __future__ import annotations

import sys
from pathlib import Path

from neuron_port.simulator.linting.catalogue import RULES

BEGIN, END = "<!-- rules: generated -->", "<!-- end of rules -->"


def render_table() -> str:
    """All rules as a Markdown table, in the order of the catalogue."""
    rows = [f"| {rule.id} | {rule.severity} | {rule.title} | {rule.source} |" for rule in RULES.values()]
    return "\n".join(["| Rule | Severity | Reports | Source |", "| --- | --- | --- | --- |", *rows])


def update(path: Path) -> None:
    """Replace the table between the two marks of the file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{render_table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    update(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/lint.md"))
