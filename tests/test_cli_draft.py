"""`neuron-port draft` as a user meets it: real HTTP, scripted replies, every way in which an endpoint fails."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.drafting.loop_program import GOOD, SUBTRACTS, Author, fenced, purpose_of
from tests.drafting_commands import DRAFT, SHAPES, model_at, nothing_listens, start, workplace  # noqa: F401
from tests.llm.scripted_server import (
    Answer,
    Call,
    ScriptedServer,
    failure,
    html_page,
    no_such_model,
    out_of_quota,
    rate_limited,
    without_choices,
    wrong_key,
)
from tests.pipeline.command import failed, run

pytestmark = pytest.mark.usefixtures("workplace")
AUTHOR = {"draft": fenced(SUBTRACTS), "repair": fenced(GOOD)}
ONE = ("--drafts", "1")


def test_draft_of_a_function(workplace: Path) -> None:  # noqa: F811
    """A function in a file becomes a verified kernel in a recipe folder, with a page; only the result is on stdout."""
    with ScriptedServer(Author(AUTHOR)) as server:
        finished = run(*DRAFT, *ONE, *model_at(server), "--llm-price", "1,5")
        assert finished.code == 0, finished.stderr
        first, *_ = finished.stdout.splitlines()
        assert first.split() == ["square_plus", "admitted"]
        assert f"{len(server.calls)} calls, " in finished.stdout  # the probe is one of them
        assert "planning" in finished.stderr
        assert (workplace / "drafts" / "square_plus" / "kernel.py").is_file()
        calls = len(server.calls)
        again = run(*DRAFT, *ONE, *model_at(server), "--llm-price", "1,5", "--json", "--quiet")
        assert len(server.calls) == calls
    (told,) = again.json
    assert again.stderr == ""
    assert told["outcome"] == "admitted"
    assert told["calls"] == calls
    assert told["cost_usd"] > 0
    assert Path(told["page"]).is_file()

    adopted = run("recipes", "adopt", "drafts/square_plus", "--into", "recipes")
    assert adopted.code == 0, adopted.stderr
    assert "adopted     recipes/square_plus" in adopted.stdout
    assert "review" in adopted.stdout
    listed = run("recipes", "list", "--recipes", "recipes").stdout
    assert "square_plus" in listed


def test_no_kernel(workplace: Path) -> None:  # noqa: F811
    """A model that never writes code ends with 1, says so in a line, and points to the page; nothing is on the shelf."""
    with ScriptedServer(Author({"draft": "I cannot.", "reask": "No."})) as server:
        finished = run(*DRAFT, *ONE, "--repairs", "0", "--no-plan", *model_at(server))
    assert finished.code == 1
    assert "no kernel: none of 1 replies held a kernel" in finished.stdout
    assert "explain.html: every candidate" in finished.stdout
    assert not (workplace / "drafts").exists()


def test_dry_run_asks_nothing() -> None:
    """--dry-run prints the worst case of every purpose and what the budget holds it to, and asks nothing."""
    with ScriptedServer(Author()) as server:
        finished = run(*DRAFT, *model_at(server), "--llm-price", "1,5", "--budget-usd", "2.5", "--dry-run")
        assert not server.calls
    assert finished.code == 0, finished.stderr
    rows = {line.split()[0]: line.split() for line in finished.stdout.splitlines()}
    assert rows["draft"][1] == "8"  # four, and each once more
    assert rows["repair"][1] == "48"
    assert "at worst" in finished.stdout
    assert "2.5" in finished.stdout.splitlines()[-1]


SERVER_FAILURES = {
    "wrong key": (wrong_key(), "does not accept the key"),
    "unknown model": (no_such_model("scripted"), "has no model `scripted`"),
    "no quota": (out_of_quota(), "has no quota left"),
    "rate limit": (rate_limited(retry_after="0"), "limits the rate of requests"),
    "web page": (html_page(), "did not answer with a chat completion but with a web page"),
    "other JSON": (without_choices(), "JSON without choices"),
    "cut stream": (Answer(text="abcdefgh", cut_after=2), "broke off after 4 characters"),
    "broken": (failure(500, "boom", headers={"Retry-After": "0"}), "failed with HTTP 500 (boom)"),
}


@pytest.mark.parametrize("name", SERVER_FAILURES)
def test_endpoint_failures(name: str) -> None:
    """Whatever an endpoint does, the user reads one sentence and what to do; stdout stays clean."""
    answer, words = SERVER_FAILURES[name]
    with ScriptedServer(lambda call: answer) as server:
        finished = run(*DRAFT, *model_at(server))
    said = failed(finished, 1)
    assert words in said
    assert finished.hints
    assert "Did you mean `scripted`" not in said


def test_nothing_listens() -> None:
    """An address at which nothing listens is one sentence after a few tries."""
    with nothing_listens() as url:
        said = failed(run(*DRAFT, "--llm", f"{url}#scripted"), 1)
    assert "cannot be reached" in said


def test_quota_that_ends_in_mid_run() -> None:
    """An endpoint that fails after the draft: one sentence, exit 1; the same command then pays for the rest only."""
    failing = [True]

    def repair(call: Call) -> str | Answer:
        return out_of_quota() if failing[0] else fenced(GOOD)

    with ScriptedServer(Author({**AUTHOR, "repair": repair})) as server:
        command = (*DRAFT, *ONE, *model_at(server))
        said = failed(run(*command), 1)
        assert "everything paid for is kept" in said
        failing[0] = False
        assert run(*command).code == 0
        assert [purpose_of(call) for call in server.calls] == ["probe", "plan", "draft", "repair", "repair"]


def test_budget_that_is_too_small() -> None:
    """A budget that allows nothing ends with 1, and names the limit and the option that raises it."""
    with ScriptedServer(Author()) as server:
        finished = run(*DRAFT, *model_at(server), "--budget-tokens", "500")
    assert finished.code == 1
    assert "500 tokens" in finished.stdout
    assert "Raise --budget-tokens" in finished.stdout


def test_interrupted_draft_goes_on(workplace: Path) -> None:  # noqa: F811
    """Ctrl-C during the drafts: exit 130, one sentence, no traceback; the same command goes on and pays nothing twice."""
    slow = [True]

    def draft(call: Call) -> Answer:
        return Answer(text=fenced(GOOD), delay_seconds=1.0 if slow[0] else 0.0)

    with ScriptedServer(Author({"draft": draft})) as server:
        command = [str(part) for part in (*DRAFT, *ONE, *model_at(server))]
        process = start(*command)
        assert process.stderr is not None
        heard = [next(line for line in process.stderr if "drafting: 1 kernel" in line)]
        while not any(purpose_of(call) == "draft" for call in list(server.calls)):
            pass
        os.killpg(process.pid, signal.SIGINT)
        out, rest = process.communicate(timeout=60)
        assert process.returncode == 130, (heard, rest)
        assert out == ""
        assert "Traceback" not in rest
        assert rest.count("error: Interrupted.") == 1
        assert "Run the same command again to go on." in rest
        slow[0] = False
        assert run(*command).code == 0
    assert [purpose_of(call) for call in server.calls] == ["probe", "plan", "draft"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("draft", "layer.py", *SHAPES), "layer.py:NAME"),
        (("draft", "layer.py:square_pls", *SHAPES), "Did you mean `square_plus`?"),
        (("draft", "nowhere.py:f", *SHAPES), "nowhere.py"),
        (("draft", "layer.py:square_plus"), "needs `x`"),
        ((*DRAFT, "--layer", "a.b"), "--layer and --random-weights describe a model"),
        ((*DRAFT, "--llm-price", "cheap"), "`cheap` is not a price"),
        ((*DRAFT, "--llm-price", "nan,1"), "`nan,1` is not a price"),
        ((*DRAFT, "--target", "trn9"), "trn9"),
        (("draft", "layer.py:square_plus", "-i", "x=TxH", "-i", "bias=H"), "--size"),
        (("draft", "nothing-here", "-i", "x=T"), "describe FILE.py:NAME, not a model"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], words: str) -> None:
    """What cannot be drafted is named in one sentence with exit code 2, and nothing is asked."""
    with ScriptedServer(Author()) as server:
        said = failed(run(*arguments, *model_at(server)), 2)
        assert not server.calls
    assert words in said


def test_no_model_is_named() -> None:
    """Without --llm and without a configuration, the forms in which a model is named are listed."""
    said = failed(run(*DRAFT), 2)
    assert "openai:" in said


def test_replay_without_a_run() -> None:
    """--replay of what was never drafted is one sentence, and no call."""
    with ScriptedServer(Author()) as server:
        said = failed(run(*DRAFT, *model_at(server), "--replay"), 1)
        assert not server.calls
    assert "No reply is kept" in said
