"""Collects findings: the rules say where and what, the catalogue adds severity and source."""

from __future__ import annotations

import ast
from collections import defaultdict

from neuron_port.simulator.linting.catalogue import RULES
from neuron_port.simulator.linting.facts import Facts
from neuron_port.simulator.linting.findings import Finding, Severity
from neuron_port.simulator.linting.reachability import KernelCode
from neuron_port.simulator.linting.source import FunctionCode, SourceFile


class Report:
    """What the rules read (file, kernel code, facts) and where they write."""

    def __init__(self, source: SourceFile, kernel: KernelCode) -> None:
        self.source = source
        self.kernel = kernel
        self.facts = Facts(source)
        # Calls whose arguments do not fit: what stands where is unknown, so other rules pass them by.
        self.malformed: set[ast.Call] = set()
        self._findings: dict[tuple[int, int, str], Finding] = {}
        self._repeated: dict[tuple[str, str, str], list[ast.expr | ast.stmt]] = defaultdict(list)

    def add(
        self,
        rule: str,
        node: ast.expr | ast.stmt | ast.arg | ast.keyword,
        message: str,
        cure: str,
        *,
        severity: Severity | None = None,
    ) -> None:
        """One finding at `node`; of two with the same rule and place the first stays."""
        entry = RULES[rule]
        finding = Finding(
            path=self.source.path,
            line=node.lineno,
            column=node.col_offset + 1,
            rule=rule,
            severity=severity or entry.severity,
            message=message,
            cure=cure,
            source=entry.source,
        )
        self._findings.setdefault((finding.line, finding.column, rule), finding)

    def add_once(self, rule: str, node: ast.expr | ast.stmt, message: str, cure: str) -> None:
        """A matter of habit: the file's places are reported as one finding, at the first of them."""
        self._repeated[rule, message, cure].append(node)

    def name(self, node: ast.AST, code: FunctionCode) -> str | None:
        """Full name of an imported thing, as `nki.isa.dma_copy`."""
        return self.source.full_name(node, code)

    def findings(self) -> list[Finding]:
        """Everything reported, by line and column."""
        for (rule, message, cure), nodes in self._repeated.items():
            nodes.sort(key=lambda node: (node.lineno, node.col_offset))
            first, *others = nodes
            if others:
                lines = sorted({node.lineno for node in others})
                shown = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
                message = f"{message} (also {len(others)} more in this file: line {shown})"
            self.add(rule, first, message, cure)
        return sorted(self._findings.values())
