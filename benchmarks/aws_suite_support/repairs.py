"""A temporary copy of nki-library in which its public snapshot imports: four small edits, none to a kernel's code.

The snapshot of April 2026 has a docstring whose tail is there twice (a syntax error), a test that uses a name that it
does not import, a test that imports from a folder that became another, and an attribute read that only compiling
sets. Each edit is skipped where it does not apply, so that later snapshots run as they are.
"""

from __future__ import annotations

import ast
import itertools
import shutil
from pathlib import Path

_SOURCE = "src/nkilib_src/nkilib"
_TESTS = "test/integration/nkilib"


def overlay(checkout: Path, folder: Path) -> list[str]:
    """Copy what the suite needs from `checkout` to `folder`, repair it, and say what was repaired."""
    for part in ("src", "test"):
        if not (checkout / part).is_dir():
            raise SystemExit(f"`{checkout}` is no checkout of nki-library: it has no folder `{part}`")
        shutil.copytree(
            checkout / part, folder / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(checkout / "pyproject.toml", folder)
    steps = (_duplicated_docstring_tail, _missing_import, _moved_module, _unset_attribute)
    return [said for step in steps if (said := step(folder))]


def _duplicated_docstring_tail(folder: Path) -> str:
    """core/mlp/mlp.py: drop the text between the end of a docstring and the stray end after it."""
    path = folder / _SOURCE / "core/mlp/mlp.py"
    lines = path.read_text().splitlines(keepends=True)
    if _parses("".join(lines)):
        return ""
    ends = [number for number, line in enumerate(lines) if line.strip() == '"""']
    for first, second in itertools.pairwise(ends):
        repaired = "".join(lines[: first + 1] + lines[second + 1 :])
        if _parses(repaired):
            path.write_text(repaired)
            return "core/mlp/mlp.py: the second copy of a docstring's tail is dropped (syntax error)"
    return ""


def _missing_import(folder: Path) -> str:
    path = folder / _TESTS / "core/qkv/test_qkv_tkg.py"
    text = path.read_text()
    anchor = "from test.utils.common_dataclasses import (\n"
    imported = text.partition(anchor)[2].partition(")")[0]
    if anchor not in text or "Platforms" in imported:
        return ""
    path.write_text(text.replace(anchor, f"{anchor}    Platforms,\n", 1))
    return "test_qkv_tkg.py: `Platforms` is imported"


def _moved_module(folder: Path) -> str:
    path = folder / _TESTS / "experimental/subkernels/test_topk_reduce.py"
    if (folder / _SOURCE / "experimental/subkernels/topk_reduce.py").exists() or not path.exists():
        return ""
    text = path.read_text()
    path.write_text(
        text.replace("experimental.subkernels.topk_reduce", "experimental.collectives.topk_reduce")
    )
    return "test_topk_reduce.py: topk_reduce is imported from experimental.collectives"


def _unset_attribute(folder: Path) -> str:
    path = folder / "test/utils/test_orchestrator.py"
    text = path.read_text()
    if "self._compiled_kernel = None" in text or "self._compiled_kernel" not in text:
        return ""
    anchor = "        self.trace_mode: TraceMode = trace_mode\n"
    path.write_text(text.replace(anchor, f"{anchor}        self._compiled_kernel = None\n", 1))
    return "test_orchestrator.py: `_compiled_kernel` is None before anything is compiled"


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True
