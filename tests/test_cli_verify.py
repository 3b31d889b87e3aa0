"""`neuron-port verify`: 0 accepted, 1 refused, 2 when nothing can be judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drafting.loop_program import GOOD, SUBTRACTS, TOO_WIDE
from tests.drafting_commands import SHAPES, workplace  # noqa: F401
from tests.pipeline.command import failed, run

SPEC = ("--spec", "layer.py:square_plus", *SHAPES)


@pytest.fixture(autouse=True)
def _kernels(workplace: Path) -> None:  # noqa: F811
    """Kernels in files."""
    for name, text in (
        ("good", GOOD),
        ("wrong", SUBTRACTS),
        ("wide", TOO_WIDE),
        ("broken", "def square_plus(x, bias):\n    retrun x y\n"),
    ):
        (workplace / f"{name}.py").write_text(text)


def test_accepted() -> None:
    """A right kernel is accepted with 0; the verdict names its tier, its cases, the sandbox and the hidden seed."""
    finished = run("verify", "good.py", *SPEC, "--seed", "7", "--admit")
    assert finished.code == 0, finished.stderr
    assert "ACCEPTED, tier simulator, stage admitted" in finished.stdout
    assert "--seed 7" in finished.stdout
    assert "predicted" in finished.stdout
    assert "freezing the oracle" in finished.stderr


def test_refused() -> None:
    """A wrong kernel is refused with 1, with the class of its error, where, and evidence."""
    finished = run("verify", "wrong.py:square_plus", *SPEC, "--quiet")
    assert finished.code == 1
    assert finished.stderr == ""
    assert "REFUSED, tier simulator, stage ran" in finished.stdout
    assert "wrong values: case" in finished.stdout
    assert "evidence" in finished.stdout


def test_refused_with_a_line() -> None:
    """A kernel that breaks a rule of the chip is refused with the line; broken Python too."""
    assert "ConstraintError (line 17)" in run("verify", "wide.py", *SPEC).stdout
    finished = run("verify", "broken.py", *SPEC)
    assert finished.code == 1
    assert "syntax (line 2)" in finished.stdout


def test_as_json() -> None:
    """--json prints the verdict and nothing else on stdout."""
    finished = run("verify", "wrong.py", *SPEC, "--json", "--seed", "3")
    assert finished.code == 1
    assert finished.json["error_class"] == "wrong values"
    assert finished.json["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.py", *SPEC), "File not found: `nowhere.py`"),
        (("good.py:other", *SPEC), "The kernel's function is `other`"),
        (("good.py", "--spec", "rms_nrm"), "Did you mean `rms_norm`?"),
        (("good.py", "--spec", "layer.py:square_pls", *SHAPES), "Did you mean `square_plus`?"),
        (("good.py", "--spec", "layer.py:square_plus", "-i", "x=TxH"), "names the size `T`, which nobody gave"),
        (("good.py", "--spec", "layer.py:square_plus", "-i", "x=8x8"), "needs `bias`"),
        (("good.py", "--spec", "layer.py:square_plus", "-i", "x=T", "-i", "bias=H", "--size", "T=0..9", "--size", "H=8"),
         "T=0..9"),
        (("good.py", "--spec", "rms_norm", "-i", "x=T"), "says itself what its inputs are"),
        (("good.py", *SPEC, "--target", "trn9"), "trn9"),
        (("good.py", "--spec", "empty"), "empty"),
    ],
)  # fmt: skip
def test_cannot_be_judged(arguments: tuple[str, ...], words: str, workplace: Path) -> None:  # noqa: F811
    """What cannot be judged ends with 2 and one sentence: no such file, no such specification, a broken one."""
    (workplace / "empty").mkdir()
    assert words in failed(run("verify", *arguments, "--quiet"), 2)


def test_reference_that_fails(workplace: Path) -> None:  # noqa: F811
    """An error in the user's own function is told with file and line, and ends with 2."""
    (workplace / "layer.py").write_text("def square_plus(x, bias):\n    return x @ x\n")
    assert "layer.py:2" in failed(run("verify", "good.py", *SPEC, "--quiet"), 2)
