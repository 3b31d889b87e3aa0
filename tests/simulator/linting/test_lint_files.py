"""The lint over whole files: our recipes, broken files, habits reported once, and tables that follow the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from neuron_port.simulator.linting import lint_file, lint_source
from neuron_port.simulator.linting.catalogue import RULES
from neuron_port.simulator.linting.document import render_table
from neuron_port.simulator.linting.renames import DEPRECATED, REMOVED
from neuron_port.simulator.linting.signatures import known_names, signatures
from neuron_port.simulator.nki import isa, language

ROOT = Path(__file__).parents[3]
# The simulator's functions under AWS's full names; operator tokens are objects and have no signature to compare.
SIMULATED = {
    f"{name}.{function}": value
    for name, module in {"nki.isa": isa, "nki.language": language}.items()
    for function, value in vars(module).items()
    if inspect.isfunction(value)
}
RECIPES = sorted((ROOT / "recipes").glob("*/kernel.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_our_recipes_are_free_of_findings(path: Path) -> None:
    """No kernel that we ship has an error, a hardware finding or a warning."""
    assert lint_file(path) == []


def test_there_are_recipes() -> None:
    """The test above has something to look at."""
    assert len(RECIPES) >= 8


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("x = 1\ny = (\n", 2, "never closed"),
        ("def f():\n\treturn 1\n        return 2\n", 3, "tabs"),
        ("x = '\0'\n", 1, "null bytes"),
        ("x = " + "-" * 5000 + "1\n", 1, "nested"),
        ("x = " + "+".join(["1"] * 5000) + "\n", 1, "nested"),
    ],
)
def test_a_file_that_is_no_python_is_one_finding(text: str, line: int, says: str) -> None:
    """E00 gives Python's own line and reason, and nothing raises."""
    (finding,) = lint_source(text, "broken.py")
    assert (finding.rule, finding.severity, finding.line) == ("E00", "error", line)
    assert says in finding.message


def test_a_file_that_is_not_utf8_is_one_finding(tmp_path: Path) -> None:
    """A binary file is refused by E00 with the byte that is wrong."""
    path = tmp_path / "kernel.py"
    path.write_bytes(b"x = '\xff'\n")
    (finding,) = lint_file(path)
    assert finding.rule == "E00"
    assert "byte 5" in finding.message


def test_a_missing_file_raises() -> None:
    """A path that is not there is the caller's mistake, not a finding."""
    with pytest.raises(FileNotFoundError):
        lint_file("no/such/kernel.py")


def test_a_habit_is_reported_once() -> None:
    """Ten deprecated loops are one warning that names the other lines."""
    loops = "".join(f"    for i{n} in nl.affine_range(2):\n        pass\n" for n in range(10))
    source = f"import nki\nimport nki.language as nl\n\n@nki.jit\ndef kernel(x):\n{loops}    return x\n"
    (finding,) = lint_source(source)
    assert (finding.rule, finding.line) == ("W03", 6)
    assert "also 9 more in this file: line 8, 10, 12, 14, 16, ..." in finding.message


def test_findings_are_sorted_and_repeatable() -> None:
    """The same text gives the same findings, by line and column."""
    source = (
        "import neuronxcc.nki as nki\nimport neuronxcc.nki.language as nl\n\n@nki.jit\ndef kernel(x):\n"
        "    i, j = nl.mgrid[0:4, 0:4]\n    t = nl.load(x[i, j], mask=i < 3)\n    return t\n"
    )
    findings = lint_source(source)
    assert findings == lint_source(source)
    assert findings == sorted(findings)
    assert [(finding.rule, finding.line) for finding in findings] == [
        ("E01", 1),
        ("E01", 2),
        ("E11", 6),
        ("E10", 7),
    ]


def test_a_finding_prints_place_rule_and_cure() -> None:
    """The text of a finding is what editors and people can follow."""
    (finding,) = lint_source("import nki\n\n@nki.jit\ndef kernel(x, sizes=[1]):\n    return x\n", "k.py")
    assert str(finding) == (
        "k.py:4:21: error E05: the default of `sizes` of kernel `kernel` is a list\n  hint: a tuple: sizes=(1,)"
    )


def test_a_sub_kernel_may_return_a_tile(tmp_path: Path) -> None:
    """An SBUF result is an error at the kernel that the host calls, and none where a neighbour imports the function."""
    source = (
        "import nki\nimport nki.language as nl\n\n@nki.jit\ndef load(x):\n"
        "    tile = nl.ndarray((128, 4), nl.float32)\n    return tile\n"
    )
    (tmp_path / "loads.py").write_text(source)
    assert [finding.rule for finding in lint_file(tmp_path / "loads.py")] == ["E12"]
    (tmp_path / "uses.py").write_text("from .loads import (\n    load,\n)\n")
    assert [finding.rule for finding in lint_file(tmp_path / "loads.py")] == ["W09"]


@pytest.mark.parametrize("name", sorted(signatures().keys() & SIMULATED.keys()))
def test_signatures_are_those_of_the_simulator(name: str) -> None:
    """The lint's table and the simulator's functions have the same parameters in the same order."""
    parameters = inspect.signature(SIMULATED[name]).parameters
    assert tuple(parameters) == signatures()[name].parameters
    required = [one for one in parameters.values() if one.default is inspect.Parameter.empty]
    assert len(required) == signatures()[name].required


def test_the_simulator_has_most_signatures() -> None:
    """The comparison above is not empty: the simulator defines nearly every instruction."""
    instructions = {name for name in signatures() if name.startswith("nki.isa.")}
    assert len(instructions & SIMULATED.keys()) > 0.6 * len(instructions)


def test_the_version_tables_do_not_contradict_the_reference() -> None:
    """What is removed is not in 0.6, what is deprecated still is."""
    for name in REMOVED:
        module, _, member = name.rpartition(".")
        assert module not in ("nki.isa", "nki.language") or member not in known_names(module), name
    for name in DEPRECATED:
        module, member = name.split(".", 2)[:2], name.split(".")[2]
        assert member in known_names(".".join(module)), name


def test_the_document_has_every_rule() -> None:
    """docs/lint.md holds the table that the catalogue renders."""
    text = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    assert render_table() in text, "run: python -m neuron_port.simulator.linting.document"


def test_ids_tell_the_severity() -> None:
    """E is an error, H hardware, W a warning; a rule says it by its id."""
    for rule in RULES.values():
        assert re.fullmatch(r"[EHW]\d\d", rule.id)
        assert rule.severity == {"E": "error", "H": "hardware", "W": "warning"}[rule.id[0]]
