"""Coverage in the report: what counts, what no kernel takes, and what is said to cover it."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import made_up_conversion as made_up
import pytest
from rich.console import Console

from neuron_port.report import coverage_text, json_summary
from neuron_port.report.coverage import coverage, plan_rows
from neuron_port.report.gaps import gaps
from neuron_port.report.html import render
from neuron_port.report.records import Conversion
from neuron_port.types import DIFFERENT, EXCLUDED, GLUE

ATTACK = "<script>alert(1)</script>"


def plan_with(**changes):
    """The made-up plan whose embedding, the one layer without a kernel, is changed."""
    plan = made_up.conversion()["plan"]
    matches = tuple(
        replace(match, **changes) if match.layers[0] == "model.embed_tokens" else match
        for match in plan.matches
    )
    return replace(plan, matches=matches)


def only_gap(**changes):
    (gap,) = gaps(plan_rows(made_up.graph("prefill"), plan_with(**changes)))
    return gap


def without_embedding(recipe):
    """The made-up plan in which the embedding has a kernel too."""
    return plan_with(decision="recipe", recipe=recipe, reason="agrees")


@pytest.mark.parametrize(
    ("changes", "cause", "words"),
    [
        ({}, "no recipe", "`neuron-port draft MODEL --layer model.embed_tokens`"),
        ({"refusals": {"norm": f"{DIFFERENT}: 1.0"}}, "different", "`neuron-port recipes new KIND`"),
        ({"refusals": {"norm": "takes one dtype"}}, "limit", "Widen `norm`; `neuron-port recipes show norm`"),
        ({"refusals": {"norm": EXCLUDED}}, "excluded", "Leave out `--compiler norm`."),
        ({"reason": GLUE}, "glue", "Nothing to gain"),
    ],
)
def test_cause_decides_what_would_cover_a_layer(changes, cause, words):
    """No recipe, a wrong one, a limit, the user's wish and mere movement of data have each their own cure."""
    gap = only_gap(**changes)
    assert gap.cause == cause
    assert words in gap.cure


def test_a_recipe_that_takes_the_same_kind_is_named():
    """A layer that no recipe looked at, of a kind of which others have a kernel, lies beyond that recipe's limits."""
    graph = made_up.graph("prefill")
    rows = plan_rows(graph, plan_with())
    linears = [row for row in rows if row.kind == "Linear"]
    rows[linears[0].number - 1] = replace(linears[0], decision="compiler", recipe=None, reason="no recipe")
    gap = next(gap for gap in gaps(rows) if gap.row.kind == "Linear")
    assert gap.cause == "beyond a limit"
    assert "Widen `linear`" in gap.cure


def test_layers_that_move_data_are_not_counted_but_their_bytes_are():
    """Glue is in no count of layers; its traffic still counts against the kernels' share."""
    graph = made_up.graph("prefill")
    counted, moved = (coverage(graph, plan_rows(graph, plan_with(reason=why))) for why in ("none", GLUE))
    assert (counted.layer_count, counted.glue) == (333, 0)
    assert (moved.layer_count, moved.glue) == (332, 1)
    assert moved.kernel_layer_count == counted.kernel_layer_count == 332
    assert moved.kernel_bytes_share == counted.kernel_bytes_share < 1


@pytest.mark.parametrize(("outside", "share"), [(0, 0.0), (1, 0.5)])
def test_products_between_layers_count_against_the_kernels(outside, share):
    """A step that multiplies as much outside of its layers as in them is half covered, and says so."""
    graph = made_up.graph("prefill")
    inside = sum(layer.flops for layer in graph.layers)
    graph = replace(graph, flops=inside * (1 + outside))
    cover = coverage(graph, plan_rows(graph, without_embedding("embedding")))
    assert cover.between_flops_share == pytest.approx(share)
    assert cover.kernel_flops_share == pytest.approx(1 - share)


@pytest.mark.parametrize("width", [80, 120])
def test_coverage_in_the_terminal(width):
    """`plan` ends with shares of each graph, what is not covered, why, what would cover it, and unused parameters."""
    plan = replace(plan_with(refusals={"norm": "takes one dtype"}), unused_parameters=("model.extra.weight",))
    file = io.StringIO()
    Console(file=file, width=width).print(coverage_text([made_up.graph("prefill")], plan))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    joined = " ".join(text.split())
    for words in ("332 of 333", "Not in kernels, prefill", "Embedding, 0 % of FLOPs", "Widen `norm`"):
        assert words in joined
    assert "Parameters that no layer reads: model.extra.weight" in joined
    assert ".. " not in joined


def test_full_coverage_says_nothing_of_gaps():
    """Where kernels take everything, neither the terminal nor the page has a list of what they do not."""
    plan = without_embedding("embedding")
    file = io.StringIO()
    Console(file=file, width=100).print(coverage_text([made_up.graph("prefill")], plan))
    assert "333 of 333" in file.getvalue()
    assert "Not in kernels" not in file.getvalue()
    assert "Not in kernels" not in render(Conversion(**made_up.conversion(plan=plan)))


def test_page_says_what_would_cover_a_layer_and_escapes_it():
    """The page has the list for each graph, commands set as code, and strangers' names as text."""
    page = render(Conversion(**made_up.conversion(plan=plan_with(refusals={ATTACK: "takes one dtype"}))))
    assert "Not in kernels, prefill" in page
    assert "Not in kernels, decode" in page
    assert "<code>neuron-port recipes show &lt;script&gt;" in page
    assert ATTACK not in page


def test_json_holds_what_is_not_covered():
    """`--json` gives cause and cure by signature, and FLOPs between layers."""
    found = json.loads(json.dumps(json_summary(**made_up.conversion(plan=plan_with(reason=GLUE)))))
    prefill = found["phases"][0]
    assert [gap["cause"] for gap in prefill["not_covered"]] == ["glue"]
    assert prefill["not_covered"][0]["signature"] in {row["signature"] for row in prefill["plan"]}
    assert prefill["glue_count"] == 1
    assert prefill["between_flops_share"] == 0
    assert found["unused_parameters"] == []
