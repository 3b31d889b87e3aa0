"""`neuron-port optimize`: the faster kernel in a file, or why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drafting.loop_program import GOOD, SUBTRACTS, Author, fenced
from tests.drafting.test_optimize import ACCEPTED, blocked
from tests.drafting_commands import model_at, workplace  # noqa: F401
from tests.llm.scripted_server import ScriptedServer, out_of_quota
from tests.pipeline.command import failed, run

SPEC = (
    "--spec",
    "layer.py:square_plus",
    "-i",
    "x=TxH",
    "-i",
    "bias=H",
    "--size",
    "T=1..96",
    "--size",
    "H=64",
)
ONCE = ("--rounds", "1", "--directions", "1")


@pytest.fixture(autouse=True)
def _kernels(workplace: Path) -> None:  # noqa: F811
    """Kernels in files."""
    (workplace / "slow.py").write_text(blocked(2))
    (workplace / "wrong.py").write_text(SUBTRACTS)


def test_faster_kernel(workplace: Path) -> None:  # noqa: F811
    """A faster kernel is written beside the slow one, its gain is called predicted, and a second time costs nothing."""
    with ScriptedServer(Author({"optimize": fenced(GOOD), "review": ACCEPTED})) as server:
        command = ("optimize", "slow.py", *SPEC, *ONCE, *model_at(server))
        finished = run(*command)
        assert finished.code == 0, finished.stderr
        assert (workplace / "slow.optimized.py").read_text() == GOOD
        assert "predicted by the simulator's model" in finished.stdout
        assert "no device measured it" in finished.stdout
        calls = len(server.calls)
        again = run(*command, "--json", "--quiet", "--output", "other.py")
        assert len(server.calls) == calls
    assert again.stderr == ""
    assert again.json["predicted_speedup"] > 1.2
    assert again.json["tier"] == "simulator"
    assert (workplace / "other.py").read_text() == GOOD


def test_nothing_gained(workplace: Path) -> None:  # noqa: F811
    """When nothing helps it ends with 1, tells what was tried, and writes no file."""
    with ScriptedServer(Author({"optimize": "NO CHANGE: it is bound by latency."})) as server:
        finished = run("optimize", "slow.py", *SPEC, *ONCE, *model_at(server))
    assert finished.code == 1
    assert "the model sees no gain: it is bound by latency." in finished.stdout
    assert not (workplace / "slow.optimized.py").exists()


def test_dry_run() -> None:
    """--dry-run prints the worst case and asks nothing."""
    with ScriptedServer(Author()) as server:
        finished = run("optimize", "slow.py", *SPEC, *model_at(server), "--dry-run")
        assert not server.calls
    assert finished.code == 0
    assert "review" in finished.stdout


def test_failures() -> None:
    """A kernel that is wrong, a folder that is not there, and an endpoint without quota: one sentence each."""
    with ScriptedServer(lambda call: out_of_quota()) as server:
        model = model_at(server)
        assert "is not right" in failed(run("optimize", "wrong.py", *SPEC, *model), 1)
        assert "No such folder: `nowhere`" in failed(
            run("optimize", "slow.py", *SPEC, *model, "-o", "nowhere/k.py"), 2
        )
        assert not server.calls
        assert "no quota left" in failed(run("optimize", "slow.py", *SPEC, *model), 1)
