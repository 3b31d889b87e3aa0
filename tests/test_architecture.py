"""Rules of the house, held by tests: which way imports go, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "neuron_port"

# A module may import from its own place and from the rows below it; neighbours on a row do not know each other.
ROWS = [
    {"cli"},
    {"contributing"},
    {"pipeline", "environments", "serving", "preflight", "deploy"},
    {"bench"},
    {"drafting"},
    {"lower", "build", "report", "grading"},
    {"parity", "port"},
    {"match"},
    {"walk", "execution"},
    {"sandbox"},
    {"checkpoint", "profiling"},
    {"registry", "store", "simulator", "llm", "instances"},
    {"lockfile", "task"},
    {"recipe"},
    {"types"},
    {"errors"},
]
ROW_OF = {name: number for number, row in enumerate(ROWS) for name in row}


def imported_places(file: Path) -> set[str]:
    """Names directly below `neuron_port` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("neuron_port"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names} & set(ROW_OF)
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("neuron_port.")
            }
    return found


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_imports_go_one_way(file: Path) -> None:
    """A file imports from rows below its own only."""
    place = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if place in ("__init__", "__main__") or file.is_relative_to(PACKAGE / "build" / "finishing"):
        return
    assert place in ROW_OF, f"{place} stands in no row of ROWS"
    for other in imported_places(file) - {place}:
        assert other in ROW_OF, f"{file.name} imports {other}, which stands in no row"
        assert ROW_OF[other] > ROW_OF[place], f"{file.name} ({place}) must not import {other}"


@pytest.mark.parametrize(
    "statement",
    [
        "from neuron_port.registry import Registry; list(Registry())",
        "from neuron_port.checkpoint import list_presets; list_presets()",
        "import neuron_port.cli",
    ],
)
def test_listing_stays_light(statement: str) -> None:
    """Listing recipes or presets, and asking for help, import neither torch nor transformers."""
    check = f"import sys; {statement}; heavy = {{'torch', 'transformers', 'openai', 'boto3'}} & set(sys.modules); "
    done = subprocess.run(
        [sys.executable, "-c", check + "sys.exit(repr(heavy) if heavy else 0)"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_simulator_stands_alone() -> None:
    """The simulator imports the standard library, numpy, ml_dtypes and itself only."""
    allowed = set(sys.stdlib_module_names) | {"numpy", "ml_dtypes", "neuron_port"}
    for file in (PACKAGE / "simulator").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            for name in names:
                assert name.split(".")[0] in allowed, f"{file.name} imports {name}"
                assert not name.startswith("neuron_port") or name.startswith("neuron_port.simulator"), (
                    file,
                    name,
                )


def test_kernels_import_only_nki_and_math() -> None:
    """Kernels run unchanged where there is nothing but AWS's nki."""
    kernels = sorted((PACKAGE.parent / "recipes").glob("*/kernel.py"))
    assert kernels
    for file in kernels:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= {"nki", "math"}, file
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in {"nki", "math"}, file
