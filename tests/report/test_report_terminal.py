"""The terminal's side: the plan table, the closing summary, the JSON summary and the live view."""

import contextlib
import io
import json
import os
import pty
import sys
import threading

import made_up_conversion as made_up
import pytest
from rich.console import Console

from neuron_port.report import LiveView, StageRecord, json_summary, plan_table, summary


class Clock:
    """Time that passes only when told."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def printed(renderable, width, **options):
    file = io.StringIO()
    Console(file=file, width=width, **options).print(renderable)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_plan_table_fits(width):
    """The plan fits 80 and 120 columns without cutting a class, a recipe, a share or a reason."""
    fields = made_up.conversion()
    text = printed(plan_table(fields["graphs"], fields["plan"]), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "…" not in text
    for words in ("LlamaRMSNorm", "gated_mlp", "71.9 %", "residual_add_draft_3", "compiler", "[1,1,49152]"):
        assert words in text
    assert text.count("agrees with") == 14


def test_summary_uses_the_width():
    """At 80 columns the findings of a proof stand below its claim, in lines nearly as wide as the terminal."""
    lines = [line.rstrip() for line in printed(summary(**made_up.sequences()), 80).splitlines()]
    start = lines.index("2 graph = model [simulator] passed")
    assert lines[start + 1].startswith("  float32: all outputs within 1.00e-5 of transformers")
    assert len(lines[start + 1]) > 70
    assert "  bfloat16: R-ratio at most 1.05 over all prompts (limit 1.81)." in lines


@pytest.mark.parametrize("width", [80, 120])
def test_summary_fits(width):
    """The summary fits; it holds the verdict, each proof with its tier, what is open, and the bundle."""
    text = printed(summary(**made_up.conversion()), width)
    assert max(map(len, text.splitlines())) <= width
    joined = " ".join(text.split())
    for words in (
        "All three proofs hold. No device has run it.", "1 kernel = layer [simulator] passed", "[xla-cpu]",
        "3 ported model = model", "332 of 333", "No device has run this model", "unchanged and reused: fetch",
        "out/smollm2-135m-instruct.trn2.neuron",
    ):  # fmt: skip
        assert words in joined


def test_summary_names_the_failure_without_colour():
    """A failed proof reads FAILED in capitals, with the case, its value and its seed, also without colour."""
    reports = list(made_up.conversion()["kernel_reports"])
    reports[0] = made_up.failing(reports[0], 1, metrics={"relative_l2": 0.25})
    text = " ".join(printed(summary(**made_up.conversion(kernel_reports=reports)), 120).split())
    assert "FAILED" in text
    assert "relative_l2 0.250 of 2.00e-6" in text
    assert "seed 101" in text
    assert "Failed rms_norm, ordinary, float32 [1,128,576], relative_l2 0.250, limit 2.00e-6" in text
    assert "FAILED" not in printed(summary(**made_up.conversion()), 120)


def test_names_are_not_markup():
    """Square brackets in a model's name are printed, not obeyed."""
    text = printed(summary(**made_up.conversion(checkpoint=made_up.checkpoint(name="[red]model[/red]"))), 80)
    assert "[red]model[/red]" in text


def test_json_summary_is_json_and_complete():
    """The summary survives a strict JSON writer, and agrees with the records."""
    found = json.loads(json.dumps(json_summary(**made_up.conversion()), allow_nan=False))
    assert found["verdict"]["state"] == "passed"
    assert [proof["state"] for proof in found["proofs"]] == ["passed"] * 3
    assert sum(row["count"] for row in found["phases"][0]["plan"]) == 333
    assert sum(found["phases"][1]["bytes_share"].values()) == pytest.approx(1)
    assert found["stages"][0] == {
        "name": "fetch", "seconds": 0.04, "reused": True, "detail": "269 MB, revision 9f3c1d2ab4e87701",
    }  # fmt: skip
    assert found["failures"] == []


def test_json_summary_spells_what_json_cannot():
    """NaN and infinity are text, and the failing case is listed."""
    reports = list(made_up.conversion()["kernel_reports"])
    reports[0] = made_up.failing(reports[0], 0, metrics={"relative_l2": float("nan")}, detail="NaN in row 3")
    found = json_summary(**made_up.conversion(kernel_reports=reports))
    json.dumps(found, allow_nan=False)
    assert found["proofs"][0]["worst"]["share_of_limit"] == "inf"
    assert found["failures"][0]["detail"] == "NaN in row 3"


def run_stages(view, clock):
    view.skip("fetch", "unchanged since 9f3c")
    with view.stage("verify") as stage:
        view.update("rms_norm", 1, 3)
        clock.seconds += 1
        view.update("linear", 2, 3)
        clock.seconds += 6
        view.update("rope", 3, 3)
        stage.detail = "3 kernels"
    view.note("one draft was refused")


def test_plain_lines_without_a_terminal():
    """Without a terminal each event is one plain line, and quick progress is not repeated."""
    file, clock = io.StringIO(), Clock()
    with LiveView(Console(file=file), clock=clock) as view:
        run_stages(view, clock)
    assert file.getvalue().splitlines() == [
        "fetch: skipped, unchanged since 9f3c",
        "verify: started",
        "verify: rms_norm (1/3)",
        "verify: rope (3/3)",
        "verify: done after 7.0 s, 3 kernels",
        "one draft was refused",
    ]
    assert view.records == (
        StageRecord(name="fetch", seconds=0.0, reused=True, detail="unchanged since 9f3c"),
        StageRecord(name="verify", seconds=7.0, reused=False, detail="3 kernels"),
    )


def read_stages(view, clock, reused):
    with view.stage("plan") as stage:
        view.update("prefill", 0, 2)
        clock.seconds += 0.02
        if reused:
            stage.skip("unchanged")


@pytest.mark.parametrize(
    ("reused", "lines"),
    [
        (True, ["plan: skipped, unchanged"]),
        (False, ["plan: started", "plan: prefill (0/2)", "plan: done after 20 ms"]),
    ],
)
def test_reused_stage_is_one_line(reused, lines):
    """A stage that finds its stored result says so in one line; one that works says when it began and ended."""
    file, clock = io.StringIO(), Clock()
    with LiveView(Console(file=file), clock=clock) as view:
        read_stages(view, clock, reused)
    assert file.getvalue().splitlines() == lines
    (record,) = view.records
    assert (record.name, record.reused, record.detail) == ("plan", reused, "unchanged" if reused else "")
    assert record.seconds == pytest.approx(0.02)


def test_long_stage_is_told_while_it_runs():
    """Lines are held back for a moment only: a stage that goes on is seen before it ends."""
    written = threading.Event()

    class File(io.StringIO):
        def flush(self):
            written.set()

    file = File()
    with LiveView(Console(file=file), patience_seconds=0.0) as view, view.stage("plan"):
        assert written.wait(30)
        assert file.getvalue() == "plan: started\n"


def test_reused_stage_is_drawn_as_skipped():
    """The drawn view shows a reused stage as skipped with its reason, and no time beside it."""
    clock = Clock()
    view = LiveView(Console(file=io.StringIO()), clock=clock)
    read_stages(view, clock, reused=True)
    assert printed(view, 80).split() == ["plan", "skipped", "unchanged"]


def test_disabled_view_keeps_standard_output_clean(capsys):
    """With --json or --quiet the lines go to standard error, even from a console on standard output."""
    clock = Clock()
    with LiveView(Console(file=sys.stdout, force_terminal=True), enabled=False, clock=clock) as view:
        run_stages(view, clock)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "verify: started" in captured.err
    assert "\x1b" not in captured.err


@pytest.mark.parametrize(
    ("error", "word"), [(ValueError("no"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_failure_is_shown_and_goes_on(error, word):
    """An exception passes through; its stage reads failed, or interrupted, and leaves no record."""
    file, clock = io.StringIO(), Clock()
    view = LiveView(Console(file=file), clock=clock)
    with pytest.raises(type(error)), view, view.stage("lower"):
        raise error
    assert file.getvalue().splitlines()[-1] == f"lower: {word} after 0 ms"
    assert view.records == ()


def test_update_outside_of_a_stage_is_refused():
    """Progress belongs to a stage."""
    with pytest.raises(AssertionError, match="outside of a stage"):
        LiveView(Console(file=io.StringIO())).update("x")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_picture_shows_every_state(width):
    """The drawn view shows waiting, running, skipped and failed stages, with counts, in the width."""
    clock = Clock()
    view = LiveView(Console(file=io.StringIO()), stages=("fetch", "walk", "verify", "lower"), clock=clock)
    view.skip("fetch", "unchanged")
    with pytest.raises(ValueError, match="no"), view.stage("walk"):
        raise ValueError("no")
    with view.stage("verify"):
        view.update("model.layers.17.self_attn#attention", 17, 30)
        clock.seconds += 65
        text = printed(view, width)
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert {name: lines[name].split()[1] for name in lines} == {
        "fetch": "skipped", "walk": "failed", "verify": "running", "lower": "waiting",
    }  # fmt: skip
    assert "17/30" in lines["verify"]
    assert "1 min 05 s" in lines["verify"]
    assert max(map(len, text.splitlines())) <= width


def everything(leader):
    """All that was written to the other end of a terminal that is closed by now."""
    chunks = []
    with contextlib.suppress(OSError):  # Linux answers EIO at the end
        while chunk := os.read(leader, 100_000):
            chunks.append(chunk)
    os.close(leader)
    return b"".join(chunks)


def interrupt(view):
    with view, view.stage("verify"):
        view.update("rms_norm", 1, 3)
        raise KeyboardInterrupt


def test_terminal_is_restored_after_interruption():
    """In a real terminal the cursor is hidden while drawing and shown again after Ctrl-C."""
    leader, follower = pty.openpty()
    with open(follower, "w", encoding="utf-8") as file:  # noqa: PTH123 a file descriptor
        console = Console(file=file, force_terminal=True, width=80, height=24, _environ={"TERM": "xterm"})
        with pytest.raises(KeyboardInterrupt):
            interrupt(LiveView(console))
    shown = everything(leader).decode()
    assert "\x1b[?25l" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "interrupted" in shown
