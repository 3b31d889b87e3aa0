"""What the lint reports: one finding is one place in a kernel file that breaks one rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "hardware"]


@dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """One place that breaks one rule. Findings sort by file, line and column.

    Attributes:
        path: the file as it was given.
        line: counted from 1.
        column: counted from 1.
        rule: the rule's id, `E05`; docs/lint.md has the table.
        severity: "error": the NKI compiler refuses it. "hardware": it compiles or simulates, and is wrong or
            refused on a device. "warning": probably wrong, slow or deprecated, or refused by some versions.
        message: what is wrong, with the names and values of this place.
        cure: what to write instead, in NKI 0.6 terms.
        source: the public document that states the rule.
    """

    path: str
    line: int
    column: int
    rule: str
    severity: Severity
    message: str
    cure: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.severity} {self.rule}: {self.message}\n  hint: {self.cure}"
