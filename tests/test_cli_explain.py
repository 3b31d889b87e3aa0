"""`neuron-port explain`: the tree of a run's candidates as text, JSON and a page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drafting.loop_program import (
    GOOD,
    HBM_OPERAND,
    NO_STORE,
    SUBTRACTS,
    TOO_WIDE,
    UNKNOWN_CALL,
    Author,
    fenced,
    in_turn,
)
from tests.drafting_commands import DRAFT, model_at, set_up
from tests.llm.scripted_server import ScriptedServer
from tests.pipeline.command import failed, run

STRANGE = SUBTRACTS.replace("A row of x", "A <script>alert(1)</script> & row of x")


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with one run: seven candidates, the last one admitted."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = set_up(tmp_path_factory.mktemp("drafted"), monkeypatch)
        steps = in_turn(*[fenced(code) for code in (TOO_WIDE, NO_STORE, UNKNOWN_CALL, HBM_OPERAND)])
        author = Author({
            "plan": "Let me think.", "reask": "Still thinking.", "draft": fenced(STRANGE), "repair": steps,
            "simplify": fenced(GOOD),
        })  # fmt: skip
        with ScriptedServer(author) as server:
            finished = run(*DRAFT, "--drafts", "1", *model_at(server))
        assert finished.code == 0, finished.stderr
        yield folder


def test_list_of_runs(drafted: Path) -> None:
    """Without a name, a line for each run: key, task, model, outcome, cost."""
    finished = run("explain")
    assert finished.code == 0
    (line,) = finished.stdout.splitlines()
    assert re.match(
        r"[0-9a-f]{16}  square_plus for trn2, http://127.0.0.1:\d+/v1#scripted: admitted; 9 calls, ", line
    )


def test_tree(drafted: Path) -> None:
    """The tree has every candidate under the one that it repairs, why it was refused, and which one was admitted."""
    finished = run("explain", "square_plus")
    assert finished.code == 0
    assert "plan 1: " in finished.stdout
    assert finished.stdout.count("refused") >= 5
    admitted = next(line for line in finished.stdout.splitlines() if "ADMITTED" in line)
    assert "└─ 1.5 simplify" in admitted
    depths = [line.index("─ 1.") for line in finished.stdout.splitlines() if "─ 1." in line]
    assert depths == sorted(set(depths))


def test_tree_as_json(drafted: Path) -> None:
    """--json holds the same: every candidate with its parent and verdict."""
    told = run("explain", "square_plus", "--json").json
    assert [one["parent"] for one in told["candidates"]] == [None, "1.0", "1.1", "1.2", "1.3", "1.4"]
    assert told["outcome"] == "admitted"
    assert told["errors"]["ConstraintError"] == 2


def test_source_of_a_candidate(drafted: Path) -> None:
    """--candidate prints that source and nothing else; an unknown one is answered with those that there are."""
    assert run("explain", "square_plus", "--candidate", "1.5").stdout == GOOD
    said = failed(run("explain", "square_plus", "--candidate", "9.9"), 2)
    assert "No candidate with code: `9.9`" in said
    assert "1.0, 1.1" in said


def test_near_names(drafted: Path) -> None:
    """A misspelt name is answered with the one that is near; a page in a folder that is not there by that."""
    assert "Did you mean `square_plus`?" in failed(run("explain", "sqare_plus"), 2)
    assert "No such folder: `nowhere`" in failed(run("explain", "square_plus", "--html", "nowhere/x.html"), 2)


def test_page(drafted: Path) -> None:
    """--html writes one file without scripts and without addresses, in which everything foreign is escaped."""
    finished = run("explain", "square_plus", "--html", "page.html")
    assert finished.code == 0
    page = (drafted / "page.html").read_text()
    assert "<script" not in page
    assert html.escape("<script>alert(1)</script>") in page
    assert not re.search(r"<[^>]+(?:src|href)=", page)
    assert "Content-Security-Policy" in page
    for candidate in ("1.0", "1.5"):
        assert f'<span class="id">{candidate}</span>' in page
    assert page.count('class="removed') > 0
    assert page.count("failing") > 1


def test_nothing_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first run, a sentence on stderr says how to start one."""
    monkeypatch.setenv("NEURON_PORT_HOME", str(tmp_path))
    finished = run("explain")
    assert (finished.code, finished.stdout) == (0, "")
    assert "neuron-port draft" in finished.stderr
    assert "Nothing was drafted yet" in failed(run("explain", "anything"), 2)
