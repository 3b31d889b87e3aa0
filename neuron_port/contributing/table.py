"""The table of all recipes in docs/recipes.md; `python -m` of this module writes it there."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from neuron_port.registry import RegisteredRecipe, Registry, data_folder

BEGIN, END = "<!-- recipes: generated -->", "<!-- end of recipes -->"
DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def render_table(recipes: Iterable[RegisteredRecipe]) -> str:
    """Name, summary, operation, dtypes and generations of each recipe, as a Markdown table."""
    rows = [
        f"| [{found.name}](../recipes/{found.name}/README.md) | {found.recipe.summary} | {found.recipe.operation} "
        f"| {' '.join(DTYPE_NAMES.get(dtype, dtype) for dtype in found.recipe.dtypes)} "
        f"| {' '.join(found.recipe.generations)} |"
        for found in recipes
    ]
    return "\n".join(
        ["| Recipe | Computes | Operation | Dtypes | Generations |", "| --- | --- | --- | --- | --- |", *rows]
    )


def update(path: Path) -> None:
    """Replace the table between the two marks of the file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    table = render_table(Registry(data_folder("recipes")).values())
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    update(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/recipes.md"))
