"""Puts verified kernels into a bundle, each with its reference, the GPU source it replaces and its proof."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuron_port.build.storage import write_json
from neuron_port.errors import ParityError, RecipeError
from neuron_port.simulator.parsing import parse_python
from neuron_port.types import Kernel, MatchPlan, VerifiedKernel

RECIPE_FILES = ("reference.py", "source.py", "README.md")
TARGETS_OF_GENERATION = {"gen2": ("inf2", "trn1"), "gen3": ("trn2",)}
_DEFAULTS = {"version": "1", "generations": ("gen2", "gen3"), "license": "Apache-2.0"}


def write_kernels(
    folder: Path, kernels: Sequence[VerifiedKernel], recipe_folders: Mapping[str, Path], plan: MatchPlan
) -> list[dict[str, Any]]:
    """Write `folder` (the bundle's kernels/) and return the manifest's `kernels` entries, by name.

    Raises: ParityError when the plan uses a kernel that no report proves; RecipeError when a recipe's files
    are not those that were verified.
    """
    proven: dict[str, list[VerifiedKernel]] = {}
    for verified in kernels:
        proven.setdefault(verified.kernel.name, []).append(verified)
    unproven = sorted(
        {match.recipe for match in plan.matches if match.recipe and match.decision != "compiler"}
        - set(proven)
    )
    if unproven:
        raise ParityError(
            f"The plan uses kernels that nothing proves: {', '.join(unproven)}",
            hint="Verify them first; an unproven kernel is not shipped.",
        )
    return [_write_kernel(folder, name, proven[name], recipe_folders.get(name)) for name in sorted(proven)]


def _write_kernel(
    folder: Path, name: str, proven: Sequence[VerifiedKernel], recipe: Path | None
) -> dict[str, Any]:
    kernel = proven[0].kernel
    others = {verified.kernel.sha256 for verified in proven} - {kernel.sha256}
    if others:
        raise RecipeError(
            f"Kernel `{name}` was verified in two versions", hint="Verify all layers with one of them."
        )
    facts = recipe_facts(recipe) if recipe is not None else dict(_DEFAULTS)
    version = facts["version"] if kernel.origin == "recipe" else f"draft-{kernel.sha256[:8]}"
    entry = {
        "id": f"{name}@{version}",
        "name": name,
        "version": version,
        "path": f"kernels/{name}@{version}",
        "entry_point": kernel.entry_point,
        "sha256": kernel.sha256,
        "origin": kernel.origin,
        "nki_version": kernel.nki_version,
        "license": facts["license"],
        "targets": [
            chip for generation in facts["generations"] for chip in TARGETS_OF_GENERATION[generation]
        ],
        "tiers": sorted({case.tier for verified in proven for case in verified.report.cases}),
        "signatures": [verified.signature for verified in proven],
        "cases": sum(len(verified.report.cases) for verified in proven),
        "fallback": "compiler",
    }
    home = folder / f"{name}@{version}"
    home.mkdir(parents=True)
    (home / "kernel.py").write_text(kernel.source, encoding="utf-8", newline="")
    if recipe is not None:
        _copy_recipe_files(recipe, home, kernel)
    elif kernel.origin == "recipe":
        raise RecipeError(f"The folder of recipe `{name}` was not given")
    write_json(home / "recipe.json", entry | {"proof": [verified.report for verified in proven]})
    return entry


def _copy_recipe_files(recipe: Path, home: Path, kernel: Kernel) -> None:
    on_disk = recipe / "kernel.py"
    if on_disk.is_file() and on_disk.read_text(encoding="utf-8") != kernel.source:
        raise RecipeError(f"`{on_disk}` has changed since it was verified", hint="Verify the kernel again.")
    for name in RECIPE_FILES:
        if (recipe / name).is_file():
            shutil.copyfile(recipe / name, home / name)
        elif kernel.origin == "recipe":
            raise RecipeError(f"Recipe `{kernel.name}` has no {name}", hint=f"Add {recipe / name}")


def recipe_facts(folder: Path) -> dict[str, Any]:
    """Version, generations and license of a recipe: literals of its recipe.py, which is not run."""
    facts = dict(_DEFAULTS)
    path = folder / "recipe.py"
    if not path.is_file():
        return facts
    for node in ast.walk(parse_python(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Recipe":
            for keyword in node.keywords:
                if keyword.arg in facts:
                    try:
                        facts[keyword.arg] = ast.literal_eval(keyword.value)
                    except ValueError as error:
                        raise RecipeError(f"`{path}`: {keyword.arg} must be a literal") from error
    return facts
