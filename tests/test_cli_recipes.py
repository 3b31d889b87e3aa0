"""`neuron-port recipes` as a contributor types it: what it prints where, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neuron_port.registry import Registry, data_folder
from tests.contributing.conftest import edit, shortened
from tests.pipeline.command import run


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A new recipe in ./mine, without its large cases."""
    assert run("recipes", "new", "small_scale", "--into", "mine").code == 0
    return shortened(tmp_path / "mine" / "small_scale")


# list, show


def test_list_has_every_recipe_with_its_summary() -> None:
    """One line per recipe, to stdout, in the order of names."""
    finished = run("recipes", "list")
    assert finished.code == 0
    registry = Registry(data_folder("recipes"))
    assert [line.split()[0] for line in finished.stdout.splitlines()] == list(registry)
    for found in registry.values():
        assert found.recipe.summary in finished.stdout


def test_list_says_where_other_recipes_come_from(small: Path) -> None:
    """A recipe of --recipes stands beside ours with its folder, as text and as JSON."""
    line = next(
        line
        for line in run("recipes", "list", "--recipes", "mine").stdout.splitlines()
        if "small_scale" in line
    )
    assert str(small.parent) in line
    facts = {one["name"]: one for one in run("recipes", "list", "--recipes", "mine", "--json").json}
    assert facts["small_scale"]["folder"] == str(small)
    assert facts["rms_norm"]["operation"] == "module"


def test_listing_imports_no_torch() -> None:
    """Listing, showing and starting recipes stay light: torch is not imported."""
    code = (
        "import sys; from neuron_port.cli import commands\n"
        "for words in (['list'], ['show', 'rms_norm'], ['new', 'light_one', '--into', 'made']):\n"
        "    commands(['recipes', *words], standalone_mode=False)\n"
        "sys.exit(', '.join({'torch', 'transformers', 'triton'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_show_by_name_and_by_folder(small: Path) -> None:
    """A recipe is shown with its operator, limits and header, whether it is named or its folder is given."""
    by_folder = run("recipes", "show", small)
    assert by_folder.code == 0
    for words in (
        "small_scale(Tensor x, Tensor gain, float floor) -> Tensor",
        "T 1 to 32,768",
        "gen2, gen3",
        "Rectifier",
    ):
        assert words in by_folder.stdout
    assert run("recipes", "show", "small_scale", "--recipes", "mine").stdout == by_folder.stdout


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_misspelt_recipe_gets_its_neighbour(command: str) -> None:
    """An unknown recipe ends with 1, one sentence and the nearest name."""
    finished = run("recipes", command, "rms_nrom")
    assert finished.code == 1
    assert finished.errors == ["error: Unknown recipe: `rms_nrom`"]
    assert finished.hints == ["  hint: Did you mean `rms_norm`?"]


def test_a_broken_recipe_stops_the_listing(small: Path) -> None:
    """A recipe that does not load is one line with its file and line, and nothing is listed."""
    (small / "recipe.py").write_text("import math\n\nmath.nothing\n")
    finished = run("recipes", "list", "--recipes", "mine")
    assert finished.code == 1
    assert finished.stdout == ""
    assert finished.errors[0].startswith(f"error: {small / 'recipe.py'}:3: AttributeError")


def test_a_name_twice_is_an_error(small: Path) -> None:
    """Two folders with one name are both named."""
    (small.parents[1] / "other").mkdir()
    small.rename(small.parents[1] / "other" / "small_scale")
    run("recipes", "new", "small_scale", "--into", "mine")
    finished = run("recipes", "list", "--recipes", "mine", "--recipes", "other")
    assert finished.code == 1
    assert "`small_scale` exists twice" in finished.errors[0]


# new


def test_new_says_what_is_next(tmp_path: Path) -> None:
    """The folder is written, near recipes are mentioned, and the next command is spelt out."""
    finished = run("recipes", "new", "rms_norms", "--into", "mine")
    assert finished.code == 0
    assert (tmp_path / "mine" / "rms_norms" / "kernel.py").is_file()
    assert "neuron-port recipes show rms_norm" in finished.stdout
    assert "neuron-port recipes check rms_norms --recipes mine" in finished.stdout


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("rms_norm", 1, "`rms_norm` exists already"),
        ("RmsNorm", 2, "lower-case words"),
        ("nki", 2, "means something else"),
    ],
)
def test_new_refuses(tmp_path: Path, name: str, code: int, words: str) -> None:
    """An existing name ends with 1, an impossible one with 2; nothing is written."""
    finished = run("recipes", "new", name, "--into", "mine")
    assert finished.code == code
    assert words in finished.errors[0]
    assert not (tmp_path / "mine").exists()


# check


def test_check_passes_and_prints_one_table(small: Path) -> None:
    """A right recipe ends with 0: a row per check and the cost table on stdout, progress on stderr."""
    finished = run("recipes", "check", small)
    assert finished.code == 0, finished.stdout
    rows = [line.split()[0] for line in finished.stdout.splitlines() if " passed " in line]
    assert rows[:5] == ["recipe", "lint", "imports", "documents", "probe"]
    assert {"parity", "faults", "sweep", "stress", "cost"} <= set(rows)
    assert "| trn2 |" in finished.stdout
    assert finished.stdout.endswith("no Neuron device has run this kernel\n")
    assert "small_scale: parity" in finished.stderr
    assert "parity ..." not in finished.stdout


def test_check_fails_with_the_reason(small: Path) -> None:
    """A wrong kernel ends with 1; text and JSON name the check and the case; later checks are made nevertheless."""
    edit(small, "kernel.py", "op1=nl.multiply", "op1=nl.add")
    finished = run("recipes", "check", small)
    assert finished.code == 1
    assert "small_scale: failed: parity, sweep, stress; " in finished.stdout
    assert "`a prompt`, float32, gen2" in finished.stdout
    facts = run("recipes", "check", small, "--json")
    assert facts.code == 1
    assert facts.json["passed"] is False
    status = {check["name"]: check["status"] for check in facts.json["checks"]}
    assert (status["parity"], status["lint"], status["cost"]) == ("FAILED", "passed", "passed")
    assert facts.stderr == ""


# export


def test_export_says_what_was_not_run(small: Path, tmp_path: Path) -> None:
    """The files and what nobody has tried are printed; a second export to the same place is refused."""
    finished = run("recipes", "export", small, "--output", "out", "--repository", "team/small-scale-nki")
    assert finished.code == 0
    assert "no Neuron device has run it" in finished.stdout
    assert (tmp_path / "out" / "build.toml").is_file()
    again = run("recipes", "export", small, "--output", "out")
    assert again.code == 2
    assert "is not an empty folder" in again.errors[0]
