"""The benchmark of the zoo's coverage: rows, how they are kept, and what is added up over them."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))  # where the zoo's package and its benchmark's stand

from coverage_support.measure import Settings, last_words, measure, worst_float32  # noqa: E402
from coverage_support.record import Converted, GraphCover, Left, Row, keep, kept  # noqa: E402
from coverage_support.run import Run  # noqa: E402
from coverage_support.tables import coverage_table, left_over, left_table, matrix, totals  # noqa: E402
from zoo import ZOO  # noqa: E402

SETTINGS = Settings(tokens=16, dtype="bfloat16", target="trn2")


def left(layer: str, *, count: int, kind: str = "Odd", reason: str = "near computes something else: 1e-1"):
    return Left(
        phase="prefill", kind=kind, layer=layer, count=count, inputs="[1,16,64] bfloat16", flops=0, hbm_bytes=1,
        reason=reason, cure="Widen `near`.",
    )  # fmt: skip


def row(name: str, kernel_layers: int = 10, kernel_flops: int = 100, **changes) -> Row:
    graph = GraphCover(
        phase="prefill", layers=10, glue=0, kernel_layers=kernel_layers, flops=100, kernel_flops=kernel_flops,
        between_flops=0, hbm_bytes=1000, kernel_bytes=1000,
    )  # fmt: skip
    return replace(
        Row(name=name, family="dense", graphs=(graph,), recipes={"linear": kernel_layers}), **changes
    )


def shown(*renderables) -> str:
    file = io.StringIO()
    console = Console(file=file, width=150, markup=False)
    for renderable in renderables:
        console.print(renderable)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_an_architecture_is_measured():
    """BERT's one graph: every layer is in a kernel or left, and the recipes' counts add up to the kernels'."""
    found = measure(ZOO["bert"], SETTINGS)
    (graph,) = found.graphs
    assert graph.phase == "forward"
    assert graph.kernel_layers == sum(found.recipes.values())
    assert graph.layers == graph.kernel_layers + sum(item.count for item in found.left)
    assert 0 < graph.kernel_flops <= graph.flops
    assert graph.between_flops == 0
    assert found.recipes["attention"] == 2  # one for each of its layers


@pytest.mark.parametrize(("changes", "words"), [({}, None), ({"failure": "it broke"}, "again")])
def test_rows_are_kept_unless_they_failed(tmp_path, changes, words):
    """A row comes back under its own key; one of other code is measured again unless asked for, a failed one always."""
    keep(tmp_path, "now", row("one", **changes))
    assert kept(tmp_path, "now", "one") == (None if words else row("one"))
    assert kept(tmp_path, None, "one") == (None if words else row("one"))
    assert kept(tmp_path, "other code", "one") is None
    assert kept(tmp_path, "now", "two") is None


def test_rows_of_failed_conversions_are_measured_again(tmp_path):
    """A conversion that failed is tried again; one that holds is kept."""
    good = row("one", converted=Converted(state="passed", seconds=1.0))
    keep(tmp_path, "now", good)
    assert kept(tmp_path, "now", "one") == good
    keep(tmp_path, "now", replace(good, converted=Converted(state="failed", seconds=1.0, failure="no")))
    assert kept(tmp_path, "now", "one") is None


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("import os; os.abort()", "ended by signal 6"),
        ("raise ValueError('too small')", "ValueError: too small"),
    ],
)
def test_a_crash_is_a_row(tmp_path, capsys, code, failure):
    """A process that dies, by a signal or by an exception, gives a row that says so, and is written down."""
    run = Run(command=(sys.executable, "-c", code), settings=SETTINGS, results=tmp_path)
    found = run.row(ZOO["bert"])
    assert (found.name, found.failure) == ("bert", failure)
    assert (tmp_path / "plans" / "bert.json").is_file()
    assert f"bert: failed: {failure}" in capsys.readouterr().err


def test_last_words_are_the_error():
    """Of what a command prints before it fails, the error is told and not its hint; of nothing, the status."""
    assert last_words("plan: started\nerror: No layer\n  hint: Try\n", 1) == "No layer"
    assert last_words("", 3) == "exit status 3, without a word"


def test_worst_error_is_of_the_whole_model_in_float32():
    """Kernels' cases and those in bfloat16 do not count; without any comparison there is no number."""

    def case(dtype, value):
        return {"dtype": dtype, "metrics": {"relative_max": value}}

    reports = {
        "kernels": [{"cases": [case("float32", 1.0)]}],
        "graphs": [{"cases": [case("float32", 1e-7), case("bfloat16", 0.1)]}],
        "model": [{"cases": [case("float32", 3e-7), {"dtype": "float32", "metrics": {"max_abs": 9.0}}]}],
    }
    assert worst_float32(reports) == 3e-7
    assert worst_float32({"kernels": reports["kernels"]}) is None


def test_totals_weigh_every_architecture_the_same():
    """Layers are added up, shares of FLOPs averaged; failed and partly covered architectures are not fully covered."""
    rows = [
        row("whole"),
        row("half", kernel_layers=5, kernel_flops=50),
        row("unread", unused_parameters=("w",)),
        Row(name="broken", family="dense", failure="no"),
    ]
    text = "\n".join(totals(rows))
    assert "3 of 4 architectures measured" in text
    assert "Layers in kernels: 25 of 30, 83.3 %" in text
    assert "FLOPs in kernels: 83.3 % as the mean" in text
    assert "Fully covered: 1 of 4 architectures" in text
    assert "Conversions" not in text


def test_totals_tell_proofs_and_the_worst_error():
    """Conversions whose proofs hold are counted, and the largest error over all of them is told."""
    proven = Converted(state="passed", proofs=("passed",) * 3, worst_float32=2e-6, seconds=1.0)
    broken = Converted(state="failed", failure="no", seconds=1.0)
    text = "\n".join(totals([row("one", converted=proven), row("two", converted=broken)]))
    assert "three proofs hold: 1 of 2; worst error of a whole model in float32: 2.00e-6" in text


def test_left_layers_are_put_together():
    """Equal kinds with equal reasons are one line whatever the figures, most frequent first."""
    rows = [
        row("one", left=(left("a", count=1, kind="Rare"), left("b", count=2))),
        row("two", left=(left("c", count=3, reason="near computes something else: 2e-2"),)),
    ]
    found = left_over(rows)
    assert [(one.layers[0][1].kind, one.count, one.architectures) for one in found] == [
        ("Odd", 5, ["one", "two"]),
        ("Rare", 1, ["one"]),
    ]
    text = shown(left_table(rows))
    assert "one, two" in text
    assert "Widen `near`." in text


def test_tables_show_every_architecture():
    """The matrix has a column for each recipe in use and one for the compiler; failed rows stay in the summary."""
    rows = [row("whole"), row("half", kernel_layers=5), Row(name="broken", family="dense", failure="no")]
    text = shown(*matrix(rows))
    assert [line.split() for line in text.splitlines() if line.split()[:1] in (["whole"], ["half"])] == [
        ["whole", "10"],
        ["half", "5", "5"],
    ]
    assert "| broken " in shown(coverage_table(rows))
