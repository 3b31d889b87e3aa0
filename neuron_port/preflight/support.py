"""The support matrix: what AWS's and Hugging Face's documents say of a chip and an architecture, from support.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

from neuron_port.preflight.records import Support

TABLE = Path(__file__).with_name("support.toml")


def support_of(target: str, model_type: str) -> tuple[Support, ...]:
    """One row for each framework: its state on the target, and whether its documents list the model's type."""
    with TABLE.open("rb") as file:
        document = tomllib.load(file)
    return tuple(
        Support(
            framework=row["name"],
            chip=row[target],
            architecture=_architecture(row.get("architectures"), model_type),
            source=row["source"],
        )
        for row in document["framework"]
    )


def _architecture(listed: list[str] | None, model_type: str) -> str:
    if listed is None:
        return "any that exports"
    return f"lists `{model_type}`" if model_type in listed else f"does not list `{model_type}`"
