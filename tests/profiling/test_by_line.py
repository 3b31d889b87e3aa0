"""Time by source line: it adds up, belongs to the line that spends it, and shows the statement."""

from __future__ import annotations

import pytest

from neuron_port.profiling.by_line import critical_times, statement_at
from neuron_port.profiling.summary import profile_facts, profile_text
from tests.profiling.kernels import line_of, normal, profile_of

LOOP = """
    def k(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        for i in range(4):
            y = nl.ndarray((P, 4096), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=y, src=x[i * P:(i + 1) * P, :])
            nisa.activation(
                dst=y, op=nl.exp,  # the ")" of a comment ends nothing
                data=y,
            )
            nisa.tensor_scalar(dst=y, data=y, op0=nl.multiply, operand0=2.0)
            nisa.dma_copy(dst=out[i * P:(i + 1) * P, :], src=y)
        return out
"""


def test_the_lines_of_the_critical_path_add_up_to_the_device_time() -> None:
    """Every nanosecond of the device time belongs to exactly one line."""
    profile = profile_of(LOOP, normal(512, 4096))
    assert sum(use.critical_ns for use in profile.lines) == pytest.approx(profile.timeline.device_ns)
    assert min(critical_times(profile.timeline).values()) >= 0


def test_a_line_has_all_of_its_instructions_and_no_others() -> None:
    """Counts, lanes and busy times of a line are those of the instructions that it issued."""
    profile = profile_of(LOOP, normal(512, 4096))
    (use,) = [use for use in profile.lines if "activation" in use.opcodes]
    own = [one for one in profile.timeline.scheduled if one.instruction.opcode == "activation"]
    assert use.line == line_of(profile, "nisa.activation(")
    assert use.count == len(own) == 4
    assert use.busy_ns == {"scalar": pytest.approx(sum(one.busy_ns for one in own))}
    assert use.function == "k"


def test_a_statement_over_several_lines_is_shown_on_one() -> None:
    """Continuation lines are joined, whatever brackets stand in comments."""
    profile = profile_of(LOOP, normal(512, 4096))
    line = line_of(profile, "nisa.activation(")
    shown = statement_at("kernel.py", line)
    assert shown.startswith("nisa.activation(dst=y, op=nl.exp,")
    assert shown.endswith("data=y)")


def test_time_at_the_bottleneck_shows_at_its_line() -> None:
    """Where ScalarE works for longer than everything else, its line has most of the critical path."""
    heavy = LOOP.replace(
        "nisa.tensor_scalar(dst=y,", "for j in range(8):\n                nisa.tensor_scalar(dst=y,"
    )
    heavy = heavy.replace(
        "op0=nl.multiply, operand0=2.0)", "op0=nl.add, operand0=1.0, engine=nisa.engine.scalar)"
    )
    profile = profile_of(heavy, normal(512, 4096))
    most = profile.lines[0]
    assert most.line == line_of(profile, "nisa.tensor_scalar(")
    assert most.critical_ns > 0.5 * profile.timeline.device_ns


def test_both_cores_of_a_logical_core_are_in_one_profile() -> None:
    """With two cores every line has the instructions of both, and the path goes to the last of either."""
    one = profile_of(LOOP, normal(512, 4096))
    two = profile_of(LOOP, normal(512, 4096), lnc=2)
    assert {use.core for use in two.timeline.lanes} == {0, 1}
    assert sum(use.count for use in two.lines) == 2 * sum(use.count for use in one.lines)
    assert sum(use.critical_ns for use in two.lines) == pytest.approx(two.timeline.device_ns)


def test_the_text_has_every_figure_that_the_data_has() -> None:
    """The printed profile names the bound, the lines in order of time, the engines and the traffic."""
    profile = profile_of(LOOP, normal(512, 4096))
    text, facts = profile_text(profile), profile_facts(profile)
    places = [f"kernel.py:{use.line}" for use in profile.lines]
    assert [text.index(place) for place in places] == sorted(text.index(place) for place in places)
    for word in (
        "latency",
        "roofline",
        "8.0 MiB read",
        "8.0 MiB written",
        "SBUF",
        "energy",
        "ScalarE",
        "DMA",
    ):
        assert word in text, word
    assert facts["hbm_read_bytes"] == facts["hbm_write_bytes"] == 512 * 4096 * 4
    assert [line["line"] for line in facts["lines"]] == [use.line for use in profile.lines]
