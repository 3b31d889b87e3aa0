"""Rules about versions: what earlier NKI had and 0.6 has not, and what 0.6 will not have much longer."""

from __future__ import annotations

import ast
import difflib

from neuron_port.simulator.linting.reachability import jit_decorator
from neuron_port.simulator.linting.renames import DEPRECATED, REMOVED
from neuron_port.simulator.linting.report import Report
from neuron_port.simulator.linting.signatures import UNDOCUMENTED, known_names
from neuron_port.simulator.linting.source import FunctionCode

_MODULES = ("nki.isa", "nki.language", "nki.collectives")
_SHORT = {"nki.isa": "nisa", "nki.language": "nl", "nki.collectives": "nki.collectives"}


def check(report: Report) -> None:
    """Imports, decorators and names of other versions."""
    if report.kernel.functions:
        _check_imports(report)
    for code in report.source.functions:
        _check_decorator(report, code)
    for code in report.kernel.functions:
        names: list[ast.Attribute | ast.Name] = [*code.of(ast.Attribute), *code.of(ast.Name)]
        for node in names:
            if not isinstance(code.parents.get(node), ast.Attribute):
                _check_name(report, node, code)


def _check_imports(report: Report) -> None:
    used = {name.id for code in report.kernel.functions for name in code.of(ast.Name)}
    for node in report.source.import_nodes:
        for alias in node.names:
            module = alias.name if isinstance(node, ast.Import) else node.module or ""
            if module != "neuronxcc.nki" and not module.startswith("neuronxcc.nki."):
                full = f"{module}.{alias.name}"
                if not (isinstance(node, ast.ImportFrom) and full == "neuronxcc.nki"):
                    _check_imported_name(report, node, alias)
                    continue
            decorates = any(
                jit_decorator(report.source, code) is not None for code in report.source.functions
            )
            local = alias.asname or alias.name.partition(".")[0]
            in_kernels = local in used or (local in ("nki", "jit") and decorates)
            report.add(
                "E01",
                node,
                f"`{module}` is the namespace of NKI 0.1; in kernels it is a compile error since 0.4",
                f"import {_new_home(module)} instead; the functions take dst first now",
                severity=None if in_kernels else "warning",
            )


def _new_home(module: str) -> str:
    new = module.removeprefix("neuronxcc.")
    return {"nki.isa": "nki.isa as nisa", "nki.language": "nki.language as nl"}.get(new, new)


def _check_imported_name(report: Report, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> None:
    if isinstance(node, ast.ImportFrom) and node.module in _MODULES and node.level == 0:
        _check_member(report, node, node.module, alias.name)


def _check_decorator(report: Report, code: FunctionCode) -> None:
    decorator = jit_decorator(report.source, code)
    if not isinstance(decorator, ast.Call):
        return
    for keyword in decorator.keywords:
        if keyword.arg == "platform_target":
            report.add(
                "E13",
                keyword.value,
                f"nki.jit of `{code.name}` has platform_target=, which raises since 0.3",
                "drop it and set the environment variable NEURON_PLATFORM_TARGET_OVERRIDE=trn2",
            )
        elif keyword.arg == "mode":
            report.add(
                "E13",
                keyword.value,
                f"nki.jit of `{code.name}` has mode=, which is ignored since 0.3: the framework follows the "
                "arguments",
                "write @nki.jit",
                severity="warning",
            )


def _check_name(report: Report, node: ast.Attribute | ast.Name, code: FunctionCode) -> None:
    name = report.name(node, code)
    if name is None or not name.startswith("nki."):
        return
    while name not in REMOVED and name.count(".") > 2 and name not in DEPRECATED:
        parent = name.rpartition(".")[0]
        if parent in _MODULES:
            break
        name = parent
    if name in REMOVED:
        rule, cure = REMOVED[name]
        report.add(rule, node, f"`{_shorten(name)}` no longer exists", cure)
    elif name in DEPRECATED:
        report.add_once("W03", node, f"`{_shorten(name)}` is deprecated", f"write `{DEPRECATED[name]}`")
    else:
        module, _, member = name.rpartition(".")
        if module in _MODULES:
            _check_member(report, node, module, member)


def _check_member(report: Report, node: ast.expr | ast.stmt, module: str, member: str) -> None:
    name = f"{module}.{member}"
    if member in known_names(module) or name in UNDOCUMENTED or member == "*":
        return
    if name in REMOVED:
        rule, cure = REMOVED[name]
        report.add(rule, node, f"`{_shorten(name)}` no longer exists", cure)
        return
    close = difflib.get_close_matches(member, known_names(module), n=1)
    elsewhere = [other for other in _MODULES if other != module and member in known_names(other)]
    if elsewhere:
        cure = f"it is in {elsewhere[0]}: write `{_SHORT[elsewhere[0]]}.{member}`"
    else:
        cure = f"did you mean `{_SHORT[module]}.{close[0]}`?" if close else "see the API reference of NKI 0.6"
    report.add("E24", node, f"`{module}` has no `{member}`", cure)


def _shorten(name: str) -> str:
    module, _, member = name.rpartition(".")
    return f"{_SHORT[module]}.{member}" if module in _SHORT else name
