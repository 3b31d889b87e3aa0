"""Scripted replies: each wrong one fails as its header says, each exchange ends with a kernel that passes."""

from __future__ import annotations

from functools import cache

import pytest

from neuron_port.bench.scripts import ScriptedReply, exchange, scripted_replies
from neuron_port.bench.suite import BenchTask, load_suite
from neuron_port.drafting.replies.extraction import ExtractionError, extract_code
from neuron_port.drafting.replies.planning import check_plan, parse_plan
from neuron_port.errors import UsageError
from neuron_port.grading.grader import Grader

SUITE = load_suite()
REPLIES = [(found, reply) for found in SUITE for reply in scripted_replies(found)]
KERNELS = [(found, reply) for found, reply in REPLIES if reply.purpose != "plan"]
# What people and models get wrong; some script shows each.
MISTAKES = {
    "wrong-argument-order", "dma-out-of-psum", "256-partitions", "dropped-maximum", "old-dialect-load-store",
    "neuronxcc-imports", "dropped-tail", "forgotten-eps", "sum-in-bfloat16", "missing-dst", "truncated",
    "prose-without-code", "bias-broadcast", "mask-forgets-the-tile", "tanh-approximation",
}  # fmt: skip
MESSAGES = {
    "wrong-argument-order": "nc_matmul: dst `sums`",
    "dma-out-of-psum": "DMA engines do not reach PSUM",
    "256-partitions": "has 256 partitions, at most 128",
    "dropped-maximum": "scores in the hundreds",
    "old-dialect-load-store": "`arange`",
    "neuronxcc-imports": "neuronxcc",
    "dropped-tail": "partial tile",
    "sum-in-bfloat16": "in bfloat16",
    "missing-dst": "has no dst",
    "truncated": "cut off at the token limit",
    "prose-without-code": "no fenced `python` block",
    "bias-broadcast": "has 1 partitions",
    "mask-forgets-the-tile": "partial tile",
}


@cache
def grader_of(name: str) -> Grader:
    return Grader(load_suite([name])[0].task, hidden_seed=11)


@pytest.mark.parametrize("found", SUITE, ids=lambda found: found.name)
def test_an_exchange_leads_from_a_plan_to_a_right_kernel(found: BenchTask) -> None:
    """A plan comes first, then a draft, then repairs; mistakes stand before the last reply and not in it."""
    replies = scripted_replies(found)
    purposes = [purpose for purpose, _ in exchange(found)]
    assert purposes == sorted(purposes, key=["plan", "draft", "repair"].index)
    assert purposes.count("draft") == 1
    assert [bool(reply.mistake) for reply in replies if reply.purpose != "plan"][-2:] == [True, False]


def test_the_mistakes_that_matter_are_there() -> None:
    """Over the suite, the scripts show every kind of mistake that is listed."""
    assert {reply.name.partition("-")[2] for _, reply in REPLIES} >= MISTAKES


@pytest.mark.parametrize(
    ("found", "reply"),
    [
        pytest.param(*pair, id=f"{pair[0].name}-{pair[1].name}")
        for pair in REPLIES
        if pair[1].purpose == "plan"
    ],
)
def test_plans_are_checked(found: BenchTask, reply: ScriptedReply) -> None:
    """A right plan has no complaint; a wrong one has."""
    complaints = check_plan(parse_plan(reply.text), found.task, "trn2")
    assert bool(complaints) == bool(reply.mistake), complaints


@pytest.mark.parametrize(
    ("found", "reply"), [pytest.param(*pair, id=f"{pair[0].name}-{pair[1].name}") for pair in KERNELS]
)
@pytest.mark.long
def test_kernels_fail_as_their_header_says(found: BenchTask, reply: ScriptedReply) -> None:
    """A reply with a mistake is refused with that class of error and those words, one without passes hidden cases."""
    words = MESSAGES.get(reply.name.partition("-")[2], "")
    if reply.error == "no code":
        with pytest.raises(ExtractionError, match=words):
            extract_code(reply.text, found.name, reply.finish)
        return
    verdict = grader_of(found.name).grade(extract_code(reply.text, found.name, reply.finish))
    assert verdict.error_class == reply.error
    assert verdict.passed == (not reply.mistake)
    assert words in " ".join([verdict.message, *verdict.evidence])


def test_a_reply_that_hides_its_origin_is_refused(tmp_path) -> None:
    """A scripted reply without the header that says so cannot be loaded."""
    (tmp_path / "scripted").mkdir()
    file = tmp_path / "scripted" / "1-draft-x.md"
    unsaid = BenchTask(SUITE[0].task, tmp_path)
    file.write_text("---\nscripted: by hand\npurpose: draft\n---\nHello.\n")
    assert scripted_replies(unsaid)[0].text == "Hello.\n"
    file.write_text("---\npurpose: draft\n---\nHello.\n")
    with pytest.raises(UsageError, match="the header is not that of a scripted reply"):
        scripted_replies(unsaid)
