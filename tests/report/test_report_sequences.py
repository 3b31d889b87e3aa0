"""Proofs over whole prompts: a row for each graph and dtype, pooled verdicts, ratios by prompt, and both in words."""

from dataclasses import replace

import made_up_conversion as made_up
import pytest
from test_report_html import Page

from neuron_port.report import Conversion
from neuron_port.report.coverage import coverage, plan_rows
from neuron_port.report.html import render
from neuron_port.report.open_questions import open_questions
from neuron_port.report.proofs import failures, proofs, verdict
from neuron_port.report.sequences import graph_rows, model_section


def found(**changes):
    return Conversion(**{**made_up.sequences(), **changes})


def replaced(report, name, **changes):
    """The report with one case changed."""
    assert any(case.name == name for case in report.cases)
    return replace(
        report,
        cases=tuple(replace(case, **changes) if case.name == name else case for case in report.cases),
    )


def test_a_row_for_each_graph_and_dtype():
    """The float32 proof has its own row beside the 16-bit one, each with its own metric, limit and worst values."""
    float32, bfloat16 = graph_rows([made_up.sequence_graph_report("prefill_b1_t256")])
    assert (float32.dtype, float32.worst.metric, float32.worst.limit) == ("float32", "relative_max", 1e-4)
    assert float32.outputs == (("logits", 5e-6), ("key caches", 1e-5))
    assert (float32.prompts, float32.pooled, float32.max_abs) == (2, False, 5e-5)
    assert (bfloat16.dtype, bfloat16.worst.metric, bfloat16.worst.limit) == ("bfloat16", "r_ratio", 1.81)
    assert bfloat16.outputs == (("logits", 0.9), ("key caches", 1.05))
    assert (bfloat16.prompts, bfloat16.pooled) == (2, True)
    assert [case.name for case in bfloat16.cases[:2]] == ["all prompts · logits", "all prompts · key caches"]


def test_outputs_beyond_three_are_counted():
    """A graph whose cases are named by output alone shows the worst three, and how many others there are."""
    report = made_up.conversion()["graph_reports"][0]
    (row,) = graph_rows([report])
    assert (len(row.outputs), row.outputs_left_out, row.prompts) == (3, len(report.cases) - 3, 0)
    worst = max(report.cases, key=lambda case: case.metrics["max_abs"])
    assert (worst.name, worst.metrics["max_abs"]) in row.outputs


def test_measurements_are_not_counted_as_passed():
    """Cases without limits are measurements: the proof counts its verdicts, and says how many were measured."""
    _, second, third = proofs(found())
    assert (second.cases, second.cases_passed, second.measurements) == (12, 12, 8)
    assert (third.cases, third.measurements) == (5, 8)
    assert "8 more measured without a limit of their own" in second.sentence


def test_measurements_alone_prove_nothing():
    """A dtype that was only measured leaves the proof incomplete and is named; with its verdicts it passes."""
    assert verdict(found()).state == "passed"
    report = made_up.sequence_model_report()
    alone = replace(report, cases=tuple(case for case in report.cases if not case.limits))
    third = proofs(found(model_reports=(alone,)))[2]
    assert third.state == "incomplete"
    assert third.missing == ("bfloat16 teacher-forced in bfloat16 (measured, not judged)",)


def test_failed_measurement_is_a_failure():
    """A prompt with values that are not finite fails, although it has no limit."""
    name = "prompt 2 · logits · decode"
    report = replaced(made_up.sequence_model_report(), name, passed=False, detail="non-finite values")
    broken = found(model_reports=(report,))
    assert verdict(broken).state == "failed"
    assert [case.name for _, case in failures(broken)] == [name]
    marked = [item for item in Page(render(broken)).all("td") if "cell-failed" in item.get("class", "")]
    assert [item["title"].split(":")[0] for item in marked] == [name]


def test_prompts_are_a_table():
    """Ratios stand by prompt and output; a value beyond the pooled limit is marked, and decides nothing."""
    section = model_section(made_up.sequence_model_report())
    assert section.prompts == 2
    assert [case.name for case in section.verdicts] == ["all prompts · logits", "all prompts · key caches"]
    table = section.table
    assert table.metric == "r_ratio"
    assert table.phases == (("prefill", ("logits", "key caches")), ("decode", ("logits", "key caches")))
    assert [(prompt, [cell.value for cell in cells]) for prompt, cells in table.rows] == [
        ("prompt 1", [2.66, 0.75, 0.75, 0.75]),
        ("prompt 2", [1.0, 1.0, 1.0, 1.0]),
    ]
    assert [cell.beyond for cell in table.rows[0][1]] == [True, False, False, False]
    assert not any(cell.failed for _, cells in table.rows for cell in cells)


def test_page_counts_prompts_and_measures():
    """The page counts prompts instead of cases, calls measurements measured, and leaves out durations of zero."""
    page = Page(render(found()))
    assert "bfloat16 teacher-forced 2 prompts passed" in page.text
    assert "prefill_b1_t256 bfloat16 6 cases, 4 of them measured without a limit of their own" in page.text
    assert [item.get("class") for item in page.all("span")].count("state measured") == 8
    assert "2 prompts, 0 ms" not in page.text
    assert "relative_maxeach of 2 prompts logits 5.00e-6 key caches 1.00e-5" in page.text
    assert "r_ratioall 2 prompts together logits 0.900 key caches 1.05" in page.text


def test_essentials_in_words():
    """Proofs 2 and 3 say in a sentence for each dtype how far they are from transformers and what agrees."""
    _, second, third = proofs(found())
    assert second.essentials == (
        "float32: all outputs within 1.00e-5 of transformers, relative to the largest values (limit 1.00e-4)",
        "bfloat16: R-ratio at most 1.05 over all prompts (limit 1.81)",
    )
    assert third.essentials == (
        "float32: 3 prompts × 24 greedy tokens identical, logits_relative_l2 at most 3.10e-6 (limit 1.00e-4)",
        "bfloat16: R-ratio at most 1.12 over all prompts (limit 1.81)",
    )


def test_essentials_do_not_hide_a_differing_prompt():
    """Prompts whose tokens differ are not counted as identical."""
    third = proofs(Conversion(**made_up.conversion()))[2]
    assert third.essentials[1].startswith("bfloat16: 2 of 3 prompts × 24 greedy tokens identical, R-ratio")


@pytest.mark.parametrize(
    ("reservation", "told"),
    [
        ("no Neuron device has run this kernel", False),
        ("neuronx-cc has not compiled this graph", False),
        ("graph prefill_b1_s512 was reached by no prompt", True),
    ],
)
def test_only_additional_reservations_are_told(reservation, told):
    """What the general paragraphs say for all is not repeated for each report; anything else is."""
    reports = [replace(report, not_proven=(reservation,)) for report in found().kernel_reports]
    texts = [question.text for question in open_questions(found(kernel_reports=reports))]
    assert (f"{reservation}." in texts) is told


def test_reservation_stays_while_no_paragraph_says_it():
    """Where a device ran one model, "no Neuron device" of another report is additional, and is told."""
    device = made_up.conversion()["model_reports"][0]
    device = replace(device, cases=tuple(replace(case, tier="device") for case in device.cases))
    both = found(model_reports=(device, made_up.sequence_model_report()))
    questions = {question.lead: question.text for question in open_questions(both)}
    assert questions["bfloat16 teacher-forced"] == "no Neuron device has run this model."


def test_coverage_is_exact():
    """Kernels that take every counted operation cover exactly all of it, however many layers there are."""
    graph = made_up.conversion()["graphs"][0]
    rows = plan_rows(graph, made_up.conversion()["plan"])
    cover = coverage(graph, rows)
    assert cover.kernel_flops_share == 1
    more = replace(graph, flops=cover.flops + 1)
    assert coverage(more, plan_rows(more, made_up.conversion()["plan"])).kernel_flops_share < 1
