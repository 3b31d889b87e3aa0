"""Models that answer in one pass, in the report: directions and rankings, samples instead of prompts, no texts."""

import json
import re
from dataclasses import replace

import made_up_conversion as made_up
import pytest
from test_report_html import Page

from neuron_port.report import Conversion, json_summary
from neuron_port.report.embeddings import cosine_text, embedding_tables, plain_detail
from neuron_port.report.html import render
from neuron_port.report.proofs import failures, proofs, verdict
from neuron_port.report.sequences import graph_rows, model_section
from neuron_port.types import CaseResult, ParityReport

TEXTS = ["a loaf of bread", "a <b>meal</b>", "a violin"]
REFERENCE = [0.8, 0.1, 0.3]  # pairs (0,1), (0,2), (1,2)
PORTED = [0.79, 0.11, 0.29]


def case(name, metrics, limits, **changes):
    passed = all(metrics[key] <= limit for key, limit in limits.items())
    fields = {"kind": "captured", "tier": "simulator", "dtype": "bfloat16", "shapes": ((1, 4),), "seed": None}
    return CaseResult(name=name, metrics=metrics, limits=limits, passed=passed, **{**fields, **changes})


def report(subject="bfloat16 outputs", swapped=0.0, distances=(2e-5, 3e-5, 4e-5)):
    """A sentence encoder's report in bfloat16: distances measured, directions and one order judged."""
    pictured = {"texts": TEXTS, "reference_similarities": REFERENCE, "ported_similarities": PORTED}
    cases = [case(f"sample {n + 1} · e", {"r_ratio": 0.9, "max_abs": 0.1}, {}) for n in range(3)]
    cases += [
        case(
            f"sample {n + 1} · e · cosine", {"cosine_distance": d}, {"cosine_distance": 1e-3}, detail=TEXTS[n]
        )
        for n, d in enumerate(distances)
    ]
    detail = f"3 pairs of 3 similarities: all keep their order\n{json.dumps(pictured)}"
    cases.append(case("all samples · e · ranking", {"swapped": swapped}, {"swapped": 0.0}, detail=detail))
    cases.append(case("all samples · e", {"r_ratio": 0.95}, {"r_ratio": 1.88}, detail="over 3 samples"))
    return ParityReport(subject=subject, oracle=made_up.ORACLE, cases=tuple(cases))


def found(**changes):
    graphs = [report(graph.subject) for graph in made_up.conversion()["graph_reports"]]
    return Conversion(
        **{**made_up.conversion(), "graph_reports": graphs, "model_reports": [report()], **changes}
    )


@pytest.mark.parametrize(
    ("distance", "text"),
    [
        (3.25e-5, "0.999967"),
        (3e-5, "0.999970"),
        (0.0, "1"),
        (1e-14, "0.999999999"),
        (0.5, "0.5"),
        (2.0, "-1"),
    ],
)
def test_cosines_have_as_many_nines_as_count(distance, text):
    """A cosine near one is cut, never rounded up, after the digits that tell it from one."""
    assert cosine_text(distance) == text


def test_each_sample_has_its_cosine_and_neighbour():
    """A row names its text, the text nearest to it, and how near transformers and the port find it."""
    (table,) = embedding_tables(report().cases)
    assert [row.text for row in table.rows] == TEXTS
    assert [row.neighbour for row in table.rows] == [TEXTS[1], TEXTS[0], TEXTS[1]]
    assert [row.ported_similarity for row in table.rows] == [0.79, 0.79, 0.29]
    titles = {(square.row, square.column): square.title for square in table.squares}
    assert titles[0, 2] == "port: samples 1 and 3, similarity 0.1100"
    assert titles[2, 0] == "transformers: samples 1 and 3, similarity 0.1000"


def test_essentials_speak_of_embeddings():
    """Cosine, order and ratio are told in words; nothing is said of logits, tokens or prompts."""
    (sentence,) = proofs(found())[2].essentials
    assert sentence == (
        "bfloat16: embeddings' cosine at least 0.999960 (limit 0.999), the order of their similarities unchanged, "
        "R-ratio at most 0.950 over all samples (limit 1.88)"
    )


def test_samples_are_counted_as_samples():
    """The row of a graph and the section of the model count samples, and distances keep their own table."""
    (row,) = graph_rows([report("forward_b1_s64")])
    assert (row.unit, row.prompts, row.pooled, row.worst.metric) == ("sample", 3, True, "r_ratio")
    section = model_section(report())
    assert (section.unit, section.prompts) == ("sample", 3)
    assert section.table.phases == (("", ("e",)),)
    assert [one.name for one in section.verdicts] == ["all samples · e"]


def test_the_page_reads_as_that_of_an_encoder():
    """Texts are shown and escaped, similarities are drawn, JSON is not printed, and no prompt is spoken of."""
    text = render(found())
    page = Page(text)
    assert "a &lt;b&gt;meal&lt;/b&gt;" in text
    assert len([item for item in page.all("svg") if item.get("class") == "similarities"]) == 1
    assert "reference_similarities" not in text
    assert "all 3 samples together" in text
    visible = re.sub(r"<[^>]*>", " ", text[text.index('id="outputs"') : text.index('id="graphs"')])
    for word in ("prompt", "greedy", "logits within"):
        assert word not in visible


def test_another_order_is_a_failure():
    """A ranking that does not hold fails the verdict, is told in words, and shows no JSON anywhere."""
    broken = found(model_reports=[report(swapped=2.0)])
    assert verdict(broken).state == "failed"
    ((_, failed),) = failures(broken)
    assert plain_detail(failed) == "3 pairs of 3 similarities: all keep their order"
    assert "2 pairs of their similarities in another order" in proofs(broken)[2].essentials[0]
    assert "reference_similarities" not in render(broken)
    summary = json_summary(**vars(replace(broken)))
    assert "reference_similarities" not in json.dumps(summary)


def test_a_wrong_direction_is_a_failure():
    """One vector that points elsewhere fails; its row is marked."""
    broken = found(model_reports=[report(distances=(2e-5, 0.02, 4e-5))])
    assert verdict(broken).state == "failed"
    assert [one.name for _, one in failures(broken)] == ["sample 2 · e · cosine"]
    assert "0.980" in proofs(broken)[2].essentials[0]


def test_without_an_order_there_are_directions():
    """Two samples have no ranking: their cosines are shown, without neighbours and picture."""
    cases = [one for one in report().cases if "ranking" not in one.name]
    (table,) = embedding_tables(cases)
    assert table.ranking is None
    assert not table.squares
    assert [row.text for row in table.rows] == TEXTS
    assert "cosine with transformers" in render(found(model_reports=[replace(report(), cases=tuple(cases))]))
