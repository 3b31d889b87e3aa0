"""The state of the three proofs, what is left open, and the numbers that carry both."""

from dataclasses import replace

import made_up_conversion as made_up
import pytest

from neuron_port.report import Conversion, json_summary
from neuron_port.report.cases import margin, split_subject
from neuron_port.report.numbers import (
    bytes_text,
    metric_text,
    names_text,
    seconds_text,
    shapes_text,
    share_text,
)
from neuron_port.report.open_questions import chip_text, open_questions
from neuron_port.report.proofs import proofs, verdict
from neuron_port.types import CaseResult


def conversion(**changes):
    return Conversion(**made_up.conversion(**changes))


def case(**changes):
    fields = {
        "name": "one", "kind": "ordinary", "tier": "simulator", "dtype": "float32", "shapes": ((2, 3),),
        "seed": 1, "metrics": {"max_abs": 0.5}, "limits": {"max_abs": 1.0}, "passed": True,
    }  # fmt: skip
    return CaseResult(**{**fields, **changes})


def leads(found):
    return [question.lead for question in open_questions(found)]


def test_all_proofs_hold():
    """With every case passed the verdict says so, and says in the same breath that no device took part."""
    found = conversion()
    assert verdict(found).state == "passed"
    assert verdict(found).headline == "All three proofs hold. No device has run it."
    assert [proof.state for proof in proofs(found)] == ["passed"] * 3
    assert [proof.cases for proof in proofs(found)] == [120, 122, 6]
    assert proofs(found)[0].sabotage_refused == proofs(found)[0].sabotage == 30


def test_one_failed_case_fails_the_proof():
    """A single failed case turns its proof and the verdict, and names the proof."""
    reports = list(made_up.conversion()["kernel_reports"])
    reports[3] = made_up.failing(reports[3], 2)
    found = conversion(kernel_reports=reports)
    assert verdict(found).headline == "Not proven: proof 1 (kernel = layer) failed."
    assert proofs(found)[0].cases_passed == 119
    assert proofs(found)[0].worst.case == reports[3].cases[2]


def test_distance_is_worded_by_its_size():
    """Within the limit a share is `of` it, beyond it `times`, and NaN is infinitely far."""
    reports = list(made_up.conversion()["kernel_reports"])
    for value, words in ((8e-6, "at 4 times its limit"), (float("nan"), "infinitely far beyond its limit")):
        reports[0] = made_up.failing(reports[0], 1, metrics={"relative_l2": value})
        assert words in proofs(conversion(kernel_reports=reports))[0].sentence
    assert "of its limit" in proofs(conversion())[0].sentence


def test_accepted_sabotage_fails_the_proof():
    """A wrong result that was accepted counts as a failure, although no right result is wrong."""
    reports = list(made_up.conversion()["kernel_reports"])
    index = next(index for index, item in enumerate(reports[0].cases) if item.kind == "sabotage")
    reports[0] = made_up.failing(reports[0], index)
    first = proofs(conversion(kernel_reports=reports))[0]
    assert (first.state, first.cases_passed, first.sabotage_refused) == ("failed", 120, 29)


@pytest.mark.parametrize(
    ("field", "number"), [("kernel_reports", 1), ("graph_reports", 2), ("model_reports", 3)], ids=str
)
def test_missing_reports_are_not_a_pass(field, number):
    """A proof without cases is `not run`, the verdict is not `passed`, and it is the first open question."""
    found = conversion(**{field: ()})
    assert proofs(found)[number - 1].state == "not run"
    assert verdict(found).state == "incomplete"
    assert leads(found)[0] == f"Proof {number} was not run"


def test_kernel_without_report_leaves_the_proof_incomplete():
    """A planned kernel whose signature no report covers is named, and the proof is incomplete."""
    reports = made_up.conversion()["kernel_reports"]
    missing = split_subject(reports[0].subject)
    found = conversion(kernel_reports=reports[1:])
    first = proofs(found)[0]
    assert first.state == "incomplete"
    assert first.missing == (f"rms_norm on LlamaRMSNorm ({missing.signature})",)
    assert missing.signature in open_questions(found)[0].text


def test_graph_without_report_leaves_the_proof_incomplete():
    """A graph of the bundle that was never executed is named."""
    found = conversion(graph_reports=made_up.conversion()["graph_reports"][:1])
    assert proofs(found)[1].missing == ("decode_b1_t256",)
    assert verdict(found).headline == "Partly proven: proof 2 (graph = model) is incomplete."


def test_device_cases_change_what_is_open():
    """Once a device took part, the report no longer says that none did; before, it must."""
    reports = [
        replace(report, cases=tuple(replace(item, tier="device") for item in report.cases))
        for report in made_up.conversion()["model_reports"]
    ]
    assert "No device has run this model" in leads(conversion())
    assert "No device has run this model" not in leads(conversion(model_reports=reports))


@pytest.mark.parametrize(
    ("target", "contested"), [("inf2", True), ("trn1", True), ("trn1n.32xlarge", True), ("trn2", False)]
)
def test_contested_nki_is_told_for_second_generation_only(target, contested):
    """NKI on NeuronCore-v2 is contested in the vendor's documents, and only there."""
    assert (f"NKI on {target} is contested" in leads(conversion(target=target))) is contested


def test_weak_evidence_is_told():
    """Random weights, unused parameters, untried dtypes and the reports' own reservations all appear."""
    plan = replace(made_up.conversion()["plan"], unused_parameters=("model.extra.weight",))
    found = conversion(checkpoint=made_up.checkpoint(random_weights=True), plan=plan, dtype="float16")
    assert "The weights are random" in leads(found)
    assert "Parameters that nothing uses" in leads(found)
    assert "The kernels were not tried in the bundle's dtype" in leads(found)
    assert any("nearly equal" in question.text for question in open_questions(found))


def test_silent_plan_is_told():
    """A layer that the plan does not decide is shown as undecided instead of counted as covered."""
    plan = made_up.conversion()["plan"]
    silent = replace(plan, matches=plan.matches[1:])
    assert "The plan is silent" in leads(conversion(plan=silent))
    found = json_summary(**made_up.conversion(plan=silent))
    assert found["phases"][0]["layer_count"]["undecided"] == 1


def test_margin_is_the_largest_share():
    """The margin belongs to the metric closest to its limit; NaN and a broken zero limit lie at infinity."""
    found = margin(case(metrics={"a": 0.5, "b": 3.0, "c": 99.0}, limits={"a": 1.0, "b": 4.0}))
    assert (found.metric, found.share) == ("b", 0.75)
    assert margin(case(metrics={"a": float("nan")}, limits={"a": 1.0})).share == float("inf")
    assert margin(case(metrics={"a": 0.0}, limits={"a": 0.0})).share == 0
    assert margin(case(metrics={"a": 1e-9}, limits={"a": 0.0})).share == float("inf")
    assert margin(case(limits={})) is None


def test_subjects_are_taken_apart():
    """A kernel's subject has three parts; any other subject stays whole."""
    found = split_subject("rms_norm · LlamaRMSNorm · 9f3c")
    assert (found.recipe, found.layer_class, found.signature) == ("rms_norm", "LlamaRMSNorm", "9f3c")
    assert split_subject("float32 greedy").recipe == "float32 greedy"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (share_text(0), "0 %"), (share_text(0.0001), "<0.1 %"), (share_text(0.4123), "41.2 %"),
        (share_text(0.9999), ">99.9 %"), (share_text(1), "100 %"),
        (metric_text(0.00012), "1.20e-4"), (metric_text(0.8341), "0.834"), (metric_text(12), "12"),
        (metric_text(float("inf")), "inf"), (metric_text(0.0), "0"),
        (bytes_text(512), "512 B"), (bytes_text(1536), "1.50 KiB"), (bytes_text(269060352), "257 MiB"),
        (bytes_text(1024**3 - 1), "1.00 GiB"),
        (seconds_text(0.085), "85 ms"), (seconds_text(4.21), "4.2 s"), (seconds_text(125), "2 min 05 s"),
        (seconds_text(3720), "1 h 02 min"),
        (shapes_text([(1, 2), (3,), (3,)]), "[1,2] 2×[3]"),
        (names_text([f"model.layers.{i}.mlp" for i in range(30)]), "model.layers.0–29.mlp"),
        (names_text(["h.0.a#add", "h.2.a#add"]), "h.{0,2}.a#add"),
        (names_text(["a", "b", "c", "d"]), "a, b, c and 1 more"),
    ],
)  # fmt: skip
def test_numbers_read_well(text, expected):
    """Numbers are rounded to what they carry, with their units."""
    assert text == expected


def test_chips():
    """Targets are told by their chip's name; an unknown target stays as it is."""
    assert chip_text("inf2.xlarge") == "Inferentia2 (NeuronCore-v2)"
    assert chip_text("trn9") == "trn9"
