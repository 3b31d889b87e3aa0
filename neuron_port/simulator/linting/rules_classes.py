"""Rules about classes that kernel code makes or uses: only NKIObject and Enum are known to the compiler."""

from __future__ import annotations

import ast

from neuron_port.simulator.linting.report import Report
from neuron_port.simulator.linting.source import ClassCode

_ENUM_BASES = frozenset({"enum.Enum"})


def check(report: Report) -> None:
    """Every class that kernel code mentions."""
    for code in report.kernel.classes:
        _check_bases(report, code)


def _check_bases(report: Report, code: ClassCode) -> None:
    node = code.node
    names = [report.name(base, code.parent) or ast.unparse(base) for base in node.bases]
    if len(names) > 1:
        report.add(
            "E07",
            node,
            f"class `{node.name}` derives from {', '.join(names)}: kernel classes have one base",
            f"class {node.name}(nl.NKIObject), with the other bases' fields written out",
        )
        return
    base = names[0] if names else "object"
    if _is_kernel_base(base) or _derives(report, code, set()):
        return
    report.add(
        "E07",
        node,
        f"class `{node.name}` is used in kernel code and derives from `{base}`, not from NKIObject",
        f"class {node.name}(nl.NKIObject)",
    )


def _is_kernel_base(name: str) -> bool:
    return name in _ENUM_BASES or name == "nki.language.NKIObject" or name.startswith("nki.")


def _derives(report: Report, code: ClassCode, seen: set[ClassCode]) -> bool:
    """Whether the single base leads to NKIObject, or out of the file where nothing is known."""
    if code in seen or not code.node.bases:
        return False
    base = code.node.bases[0]
    name = report.name(base, code.parent)
    if name is not None:
        return _is_kernel_base(name) or name.startswith(".") or not _is_standard(name)
    if isinstance(base, ast.Name):
        owner = code.parent.scope_of(base.id)
        if owner is not None and base.id in owner.classes:
            return _derives(report, owner.classes[base.id], seen | {code})
    return False


def _is_standard(name: str) -> bool:
    """Whether the base is a known foreign class rather than one imported from a neighbour file."""
    return name.partition(".")[0] in ("typing", "abc", "collections", "torch", "enum", "builtins", "numpy")
