"""`neuron-port bench`: what it prints and writes, and how it refuses what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuron_port.bench.results import SCRIPTED_NOTE
from neuron_port.cli import main
from tests.bench.small_suite import write_line
from tests.llm.scripted_server import ScriptedServer


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has an empty home and stands in a folder of its own."""
    monkeypatch.setenv("NEURON_PORT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NEURON_PORT_LLM", raising=False)
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `neuron-port bench`."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.out, printed.err


SMALL = ("--scripted", "--suite", "./tasks", "--arms", "one-shot,repair", "--k", "1", "--repairs", "1")


def test_scripted_replies_are_named_in_every_output(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Table, JSON and page say that no model is measured; a second run has the same figures and the same cases."""
    write_line(tmp_path / "tasks")
    code, out, err = run(capsys, *SMALL)
    assert code == 0, err
    assert SCRIPTED_NOTE in out.lower()
    assert "0 calls on a re-run from the caches, the same results" in out
    assert "tier       simulator, NKI 0.6, trn2" in out
    written = json.loads((tmp_path / "benchmark" / "results.json").read_text())
    assert [arm["admitted"] for arm in written["arms"]] == [0, 1]
    assert SCRIPTED_NOTE in written["notes"][0].lower()
    page = (tmp_path / "benchmark" / "bench.html").read_text()
    assert SCRIPTED_NOTE in page.lower()
    assert "<script" not in page
    assert "default-src 'none'" in page

    code, out, err = run(capsys, *SMALL, "--json", "--quiet")
    assert code == 0, err
    again = json.loads(out)
    assert err == ""
    assert {**again, "conditions": {**again["conditions"], "date": ""}} == {
        **written,
        "conditions": {**written["conditions"], "date": ""},
    }


def test_an_endpoint_is_measured_live_and_had_again_from_its_replies(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The price and the origin of replies stand in the results; with --replay nothing is asked of the endpoint."""
    write_line(tmp_path / "tasks")
    golden = (tmp_path / "tasks" / "line" / "golden.py").read_text()
    with ScriptedServer(lambda call: f"```python\n{golden}```") as server:
        model = ("--llm", f"{server.url}#scripted", "--llm-price", "1,2", "--quiet", "--json")
        arguments = ("--suite", "./tasks", "--arms", "one-shot", "--k", "1", "--no-plan", *model)
        code, out, err = run(capsys, *arguments)
        assert code == 0, err
        asked = len(server.calls)
        live = json.loads(out)
        code, out, err = run(capsys, *arguments, "--replay")
        assert code == 0, err
        assert len(server.calls) == asked
    assert live["conditions"]["replies"] == "live"
    assert json.loads(out)["conditions"]["replies"] == "recorded"
    assert json.loads(out)["arms"] == live["arms"]
    (arm,) = live["arms"]
    assert arm["admitted"] == 1
    assert arm["median_cost_usd"] == arm["cost_per_kernel_usd"] > 0
    assert not any("says nothing about any model" in note for note in live["notes"])


def test_a_dry_run_prints_the_worst_case_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Planned calls are those of all runs, and no folder appears."""
    write_line(tmp_path / "tasks")
    code, out, err = run(capsys, *SMALL, "--dry-run")
    assert code == 0, err
    assert (
        "2 runs, nothing was asked" in out
    )  # one draft, which is the arm one-shot as well, and the arm repair
    assert not (tmp_path / "benchmark").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--scripted", "--suite", "sofmax"), "Unknown benchmark task: `sofmax`"),
        (("--scripted", "--suite", "./nowhere"), "No folder of tasks at: `./nowhere`"),
        (("--scripted", "--arms", "repare"), "Unknown arm: `repare`"),
        (("--scripted", "--k", "ten"), "Not a list of k: `ten`"),
        (("--scripted", "--k", "0,4"), "Not a list of k in ascending order from 1: `0,4`"),
        (("--scripted", "--k", "4,1"), "Not a list of k in ascending order from 1: `4,1`"),
        (("--scripted", "--target", "trn9"), "trn9"),
        (("--scripted", "--llm", "openai:some"), "--scripted and --llm exclude each other"),
        (("--scripted", "--memory", "none.sqlite"), "File not found: `none.sqlite`"),
        (("--llm", "magic:model"), "magic"),
        ((), "language model"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    """The value is named, on stderr, and nothing is on stdout."""
    code, out, err = run(capsys, *arguments)
    assert code in (1, 2)
    assert out == ""
    assert sentence in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
