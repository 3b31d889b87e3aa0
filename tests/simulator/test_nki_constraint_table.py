"""The constraint table, row by row: a good kernel passes, and the kernel with one bad line is refused by name.

Each row of constraints/*.toml is one rule of the hardware or of the API reference, as kernel lines: those before, the
good one and the bad one, and the words that the refusal must say: the operand and its value. Where a rule is about
generations or cores, the same line is good on `target` and bad on `bad_target`.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from neuron_port.simulator import KernelRun, SimulatorError, load_kernel_source, run_kernel

X = np.arange(128 * 512, dtype=np.float32).reshape(128, 512) / 65536.0
TABLES = Path(__file__).parent / "constraints"
# A message without a hint says the cure itself: what the value must be.
CURE = re.compile(r"\bmust\b|\bat most\b|\bstart at\b|\bwithout\b")

KERNEL = """
import nki
import nki.isa as nisa
import nki.language as nl

INTEGERS = (nl.int8, nl.int16, nl.int32, nl.uint8, nl.uint16, nl.uint32)


def filled(shape, dtype=nl.float32, buffer=nl.sbuf):
    tile = nl.ndarray(shape, dtype, buffer)
    nisa.memset(tile, 1 if dtype in INTEGERS else 1.0)
    return tile


def new(shape, dtype=nl.float32, buffer=nl.sbuf):
    return nl.ndarray(shape, dtype, buffer)


@nki.jit
def kernel(x):
    sbuf, psum = nl.sbuf, nl.psum
{body}
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(out, x)
    return out
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One rule. `names` are words of the message."""

    rule: str
    good: str
    bad: str
    names: list[str]
    before: str = ""
    target: str = "trn2"
    bad_target: str = ""
    lnc: int = 1
    bad_lnc: int = 0

    def run_good(self) -> KernelRun:
        """Run the kernel that keeps the rule."""
        return self.run(self.good, self.target, self.lnc)

    def run_bad(self) -> KernelRun:
        """Run the kernel that breaks it."""
        return self.run(self.bad, self.bad_target or self.target, self.bad_lnc or self.lnc)

    def run(self, lines: str, target: str, lnc: int) -> KernelRun:
        """Run the kernel with these lines."""
        body = textwrap.indent(f"{self.before.strip()}\n{lines.strip()}", "    ")
        kernel = load_kernel_source(KERNEL.format(body=body), "kernel")
        return run_kernel(kernel, X, target=target, lnc=lnc)


def rows(path: Path) -> list[Row]:
    """The rows of one table."""
    return [Row(**row) for row in tomllib.loads(path.read_text(encoding="utf-8"))["row"]]


WARNED = rows(TABLES / "warnings.toml")
REFUSED = [row for path in sorted(TABLES.glob("*.toml")) if path.stem != "warnings" for row in rows(path)]


def test_the_table_is_read() -> None:
    """Every rule has one row, and the table is as long as it was when it was written, or longer."""
    rules = [row.rule for row in REFUSED + WARNED]
    assert len(rules) == len(set(rules))
    assert len(rules) >= 190


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.rule)
def test_the_good_kernel_passes(row: Row) -> None:
    """The kernel that keeps the rule runs and returns its input."""
    assert np.array_equal(row.run_good().outputs[0], X)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.rule)
def test_the_bad_kernel_is_refused_by_name(row: Row) -> None:
    """The kernel with the bad line is refused at its line; the message names operand and value, and there is a cure."""
    with pytest.raises(SimulatorError) as caught:
        row.run_bad()
    error = caught.value
    for name in row.names:
        assert name.lower() in error.message.lower(), error.message
    assert error.hint or CURE.search(error.message), error.message
    assert error.location, error.message


@pytest.mark.parametrize("row", WARNED, ids=lambda row: row.rule)
def test_the_doubtful_kernel_is_warned_of(row: Row) -> None:
    """Both kernels run; the doubtful one alone is warned of, with its line, operand and value."""
    assert not [text for text in row.run_good().warnings if row.names[0] in text]
    warnings = row.run_bad().warnings
    assert any(all(name.lower() in text.lower() for name in row.names) for text in warnings), warnings
    assert all(text.startswith("<kernel>:") for text in warnings)
