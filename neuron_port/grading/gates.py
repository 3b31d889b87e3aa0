"""What is refused without running anything, in milliseconds.

No Python, a forbidden construct, a lint error, or a kernel that loads, computes or stores nothing. The last check is
deliberately generous: it refuses only what certainly does nothing, and leaves the rest to the simulator, which sees
every instruction.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from neuron_port.grading.verdict import Verdict
from neuron_port.sandbox.gate import inspect_source
from neuron_port.simulator.linting import lint_source
from neuron_port.simulator.parsing import parse_python

# What the gate refuses and anybody may write by mistake; the rest of its classes only a cheat has a use for.
MISTAKES = frozenset({"syntax", "entry point", "missing entry point", "unknown name"})
# Functions by what they may do; those of nki.isa under their own names, those of nki.language after "nl.".
LOADS = frozenset({"dma_copy", "dma_transpose", "dma_compute", "nl.load", "nl.load_transpose2d"})
STORES = frozenset({"dma_copy", "dma_transpose", "dma_compute", "nl.store"})
MOVES = (LOADS | STORES) - {"dma_compute"}
IDLE = frozenset(
    {"memset", "iota", "core_barrier", "register_load", "register_store", "rng", "get_nc_version"}
)
IDLE_LANGUAGE = frozenset(
    f"nl.{name}"
    for name in (
        "ndarray", "empty_like", "zeros", "zeros_like", "ones", "full", "affine_range", "sequential_range",
        "static_range", "dynamic_range", "ds", "device_print", "program_id", "num_programs", "no_reorder", "is_hbm",
        "is_on_chip", "is_psum", "is_sbuf", "expand_dims", "store", "load", "shared_constant", "assert_",
    )
)  # fmt: skip
ON_CHIP = ("sbuf", "psum")


def check_source_cheaply(source: str, entry_point: str, *, moves_only: bool = False) -> Verdict | None:
    """The verdict on a source that is refused without being run, or None.

    Args:
        moves_only: the task computes nothing (an embedding, a transpose), so a kernel need not either.
    """
    refused = _forbidden(source, entry_point) or _linted(source)
    return refused or _idle(source, entry_point, moves_only)


def _forbidden(source: str, entry_point: str) -> Verdict | None:
    refused = inspect_source(source, entry_point)
    if refused is None:
        return None
    return Verdict(
        passed=False,
        stage="nothing",
        error_class=refused.error_class,
        message=refused.message,
        hint=refused.hint or "",
        line=refused.line,
        guard="" if refused.error_class in MISTAKES else "allow-list",
    )


def _linted(source: str) -> Verdict | None:
    findings = lint_source(source, "kernel.py")
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return None
    first = errors[0]
    return Verdict(
        passed=False,
        stage="parsed",
        error_class=f"lint {first.rule}",
        message=first.message,
        hint=first.cure,
        line=first.line,
        evidence=tuple(
            f"line {finding.line}: {finding.rule}: {finding.message} ({finding.cure})"
            for finding in errors[1:8]
        ),
    )


def _idle(source: str, entry_point: str, moves_only: bool) -> Verdict | None:
    """Refuse a kernel that certainly loads, computes or stores nothing."""
    code = _ReachableCode(parse_python(source), entry_point)
    if code.entry is None:
        return _refusal("no entry point", f"the source defines no function `{entry_point}`", None)
    line = code.entry.lineno
    if not code.may_load():
        return _refusal("no load", f"`{entry_point}` loads nothing from HBM: no dma_copy reaches SBUF", line)
    if not code.may_compute() and not moves_only:
        return _refusal("no compute", f"`{entry_point}` has no instruction that computes", line)
    if not code.may_store() or not code.returns_value:
        return _refusal("no store", f"`{entry_point}` stores nothing to HBM that it returns", line)
    return None


def _refusal(error_class: str, message: str, line: int | None) -> Verdict:
    return Verdict(
        passed=False,
        stage="parsed",
        error_class=error_class,
        message=message,
        hint="Load with nisa.dma_copy to SBUF, compute with nisa instructions, store with nisa.dma_copy to a tensor in "
        "nl.shared_hbm, and return that tensor.",
        line=line,
        guard="" if error_class == "no entry point" else "no work",
    )


class _ReachableCode:
    """The functions that the entry point may reach by name, and the calls of nki in them."""

    def __init__(self, tree: ast.Module, entry_point: str) -> None:
        self.modules = dict(_imported_names(tree))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        self.entry = functions.get(entry_point)
        self.instructions: list[tuple[str, ast.Call]] = []
        self.on_chip: dict[ast.Call, set[str]] = {}
        self.has_operators = False
        seen: set[str] = set()
        waiting = [entry_point] if self.entry else []
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            own_on_chip = _allocated_on_chip(functions[name])
            for node in ast.walk(functions[name]):
                if isinstance(node, ast.Name | ast.Attribute):
                    mentioned = node.id if isinstance(node, ast.Name) else node.attr
                    if mentioned in functions:
                        waiting.append(mentioned)
                self.has_operators |= isinstance(node, ast.BinOp | ast.UnaryOp)
                if isinstance(node, ast.Call) and (instruction := self._instruction(node.func)):
                    self.instructions.append((instruction, node))
                    self.on_chip[node] = own_on_chip
        self.returns_value = self.entry is not None and any(
            isinstance(node, ast.Return) and node.value is not None for node in ast.walk(self.entry)
        )

    def _instruction(self, function: ast.expr) -> str | None:
        """`dma_copy` of `nisa.dma_copy` or of a name imported from nki.isa; `nl.load` of nki.language's."""
        if not isinstance(function, ast.Name | ast.Attribute):
            return None
        head, _, rest = ast.unparse(function).partition(".")
        full = ".".join(filter(None, (self.modules.get(head, head), rest)))
        for module, prefix in (("nki.isa.", ""), ("nki.language.", "nl.")):
            if full.startswith(module):
                return prefix + full.removeprefix(module)
        return None

    def may_load(self) -> bool:
        """Whether something may read HBM."""
        return any(not self._is_on_chip(call, "src", 1) for name, call in self.instructions if name in LOADS)

    def may_compute(self) -> bool:
        """Whether something may compute; with nl.load, tensors have Python's operators too."""
        names = {name for name, _ in self.instructions}
        return bool(names - MOVES - IDLE - IDLE_LANGUAGE) or (
            self.has_operators and not names.isdisjoint({"nl.load", "nl.load_transpose2d"})
        )

    def may_store(self) -> bool:
        """Whether something may write HBM."""
        return any(not self._is_on_chip(call, "dst", 0) for name, call in self.instructions if name in STORES)

    def _is_on_chip(self, call: ast.Call, keyword: str, position: int) -> bool:
        """Whether an operand is certainly a tile that this function allocated on chip."""
        given = [argument.value for argument in call.keywords if argument.arg == keyword]
        operand = given[0] if given else (call.args[position] if len(call.args) > position else None)
        while isinstance(operand, ast.Subscript | ast.Attribute | ast.Call):
            operand = operand.func if isinstance(operand, ast.Call) else operand.value
        return isinstance(operand, ast.Name) and operand.id in self.on_chip[call]


def _imported_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local name -> full name, of everything imported from nki."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    alias.asname or alias.name.partition(".")[0],
                    alias.name if alias.asname else alias.name.partition(".")[0],
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _allocated_on_chip(function: ast.FunctionDef) -> set[str]:
    """Names that are bound only to nl.ndarray(..., buffer=nl.sbuf or nl.psum)."""
    bound: dict[str, list[bool]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                        bound.setdefault(name.id, []).append(_allocates_on_chip(node.value))
    return {name for name, values in bound.items() if all(values)}


def _allocates_on_chip(value: ast.expr) -> bool:
    if not isinstance(value, ast.Call):
        return False
    buffers = [argument.value for argument in value.keywords if argument.arg == "buffer"]
    return bool(buffers) and isinstance(buffers[0], ast.Attribute) and buffers[0].attr in ON_CHIP
