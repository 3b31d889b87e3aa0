"""Every rule of the lint: its id, severity, what it says and the document it comes from.

Ids follow their subject: E refused by the compiler, H accepted by the compiler's or simulator's front and failing
on hardware, W deprecated, unproven or probably wrong. docs/lint.md is generated from this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from neuron_port.simulator.linting.findings import Severity

GUIDE = "NKI language guide"
MIGRATION_02 = "NKI migration guide, 0.1 to 0.2"
MIGRATION_03 = "NKI migration guide, 0.2 to 0.3"
MIGRATION_04 = "NKI migration guide, 0.3 to 0.4"
MIGRATION_05 = "NKI migration guide, 0.4 to 0.5"
MIGRATION_06 = "NKI migration guide, 0.5 to 0.6"
REFERENCE = "NKI 0.6 API reference"
RELEASE_04 = "NKI 0.4 release notes, known issues"
LIBRARY = "not used by any kernel of nki-library; the language guide does not list it"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule; `title` finishes the sentence "reports ..."."""

    id: str
    severity: Severity
    title: str
    source: str


def _rule(id: str, title: str, source: str) -> Rule:
    severities: dict[str, Severity] = {"E": "error", "H": "hardware", "W": "warning"}
    return Rule(id=id, severity=severities[id[0]], title=title, source=source)


_TABLE = [
    _rule("E00", "a file that is no Python", "Python grammar"),
    _rule("E01", "an import of `neuronxcc.nki`", MIGRATION_04),
    _rule("E03", "keyword-only parameters of a kernel", MIGRATION_03),
    _rule("E05", "a list as kernel argument or as its default", MIGRATION_03),
    _rule("E06", "a dict key that is no string", GUIDE),
    _rule("E07", "a class that does not derive from `NKIObject` alone, or from `Enum`", GUIDE),
    _rule("E08", "a buffer named by a string", MIGRATION_03),
    _rule("E09", "an integer where an enum member belongs", MIGRATION_03),
    _rule("E10", "an instruction without dst, with mask= or dtype=, or used for its result", MIGRATION_02),
    _rule("E11", "index grids and block dimensions", MIGRATION_02),
    _rule("E12", "an output that is not in shared HBM, or that nothing writes", MIGRATION_03),
    _rule("E13", "removed options of `nki.jit`", MIGRATION_03),
    _rule("E14", "a memset value of another class than the tile's dtype", MIGRATION_03),
    _rule("E15", "a DMA of PSUM, of two dtypes under hwdge, or with read-modify-write", MIGRATION_03),
    _rule("E16", "an argument that the function does not have, or lacks", REFERENCE),
    _rule("E17", "`tensor_copy_dynamic_src` and `tensor_copy_dynamic_dst`", MIGRATION_04),
    _rule("E18", "a loop body that returns the wrong thing, or writes its loop variable", MIGRATION_06),
    _rule("E20", "a view of another element count or another partition dimension", MIGRATION_05),
    _rule("E21", "a `dma_transpose` of ranks or axes that do not fit", MIGRATION_04),
    _rule("E23", "a register used as a Python number", GUIDE),
    _rule("E24", "a name that `nki` 0.6 does not have", REFERENCE),
    _rule("E25", "a value that is none of NKI's", GUIDE),
    _rule("E26", "an instruction on a buffer that its engine cannot reach", REFERENCE),
    _rule("H05", "`nl` functions that do not compile for hardware", RELEASE_04),
    _rule("H06", "an elementwise `nl` function of two shapes", RELEASE_04),
    _rule("H07", "`nl.matmul` without `transpose_x=True`", RELEASE_04),
    _rule("H08", "a synchronisation that only one of two cores reaches", "LNC overview"),
    _rule("W01", "a Python construct outside of NKI's subset", LIBRARY),
    _rule("W02", "`print`, which speaks while tracing only", GUIDE),
    _rule("W03", "a deprecated name", REFERENCE),
    _rule("W04", "`is` and `is not`", MIGRATION_03 + "; AWS's own kernels use them"),
    _rule("W05", "a Python builtin that a kernel may not have", LIBRARY),
    _rule("W06", "a module other than `nki` and `math` used in kernel code", GUIDE),
    _rule("W07", "state from outside, which the kernel cache does not see", GUIDE),
    _rule("W08", "a deprecated dynamic loop", MIGRATION_06),
    _rule(
        "W09", "a call of an `@nki.jit` kernel inside a kernel", MIGRATION_02 + "; AWS's own kernels do it"
    ),
]

RULES = {rule.id: rule for rule in _TABLE}
