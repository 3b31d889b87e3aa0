"""The Perfetto trace: valid, complete, without overlaps on a track, with an arrow for each wait."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from neuron_port.profiling.perfetto import ARROWS, write_perfetto
from neuron_port.profiling.profile import Profile
from tests.profiling.kernels import normal, profile_of

KERNEL = """
    def k(x):
        out = nl.ndarray((1024, 512), dtype=nl.float32, buffer=nl.shared_hbm)
        for i in range(8):
            a = nl.ndarray((P, 512), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=a, src=x[i * P:(i + 1) * P, :])
            acc = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=acc, stationary=a[:, 0:P], moving=a, name=f"product {i}")
            y = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.sbuf)
            nisa.activation(dst=y, op=nl.exp, data=acc, scale=0.01)
            nisa.dma_copy(dst=out[i * P:(i + 1) * P, :], src=y)
        return out
"""


@pytest.fixture
def written(tmp_path: Path) -> tuple[Profile, dict[str, Any]]:
    """A profile, and its trace as read back."""
    profile = profile_of(KERNEL, normal(1024, 512))
    write_perfetto(profile, tmp_path / "trace.json")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    return profile, json.loads((tmp_path / "trace.json").read_text())


def test_every_instruction_is_a_slice_with_its_times(written: tuple[Profile, dict[str, Any]]) -> None:
    """A slice for each instruction, in microseconds, with line and operands."""
    profile, trace = written
    slices = {event["args"]["index"]: event for event in trace["traceEvents"] if event["ph"] == "X"}
    assert len(slices) == len(profile.timeline.scheduled) == 32
    for one in profile.timeline.scheduled:
        event = slices[one.index]
        assert event["name"] == one.instruction.opcode
        assert event["ts"] * 1000 == pytest.approx(one.start_ns, abs=0.1)
        assert event["dur"] * 1000 == pytest.approx(one.busy_ns, abs=0.1)
        assert event["args"]["line"] == one.instruction.location
        assert "←" in event["args"]["operands"]
    assert any(event["args"].get("name") == "product 3" for event in slices.values())


def test_slices_of_a_track_never_overlap(written: tuple[Profile, dict[str, Any]]) -> None:
    """Viewers nest overlapping slices, which would be wrong: transfers that overlap have tracks of their own."""
    _, trace = written
    tracks = defaultdict(list)
    names = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        elif event["name"] == "thread_name":
            names[event["pid"], event["tid"]] = event["args"]["name"]
    for track, spans in tracks.items():
        spans.sort()
        assert all(before[1] <= after[0] + 1e-3 for before, after in pairwise(spans)), names[track]
    assert set(tracks) == set(names)
    assert {"TensorE", "ScalarE", "DMA 0"} <= set(names.values())


def test_every_wait_for_data_is_an_arrow(written: tuple[Profile, dict[str, Any]]) -> None:
    """Arrows lead from within the slice that was waited for to the start of the one that waited."""
    profile, trace = written
    waits = [
        one for one in profile.timeline.scheduled if one.cause in ARROWS and one.waited_index is not None
    ]
    leaving = {event["id"]: event for event in trace["traceEvents"] if event["ph"] == "s"}
    arriving = {event["id"]: event for event in trace["traceEvents"] if event["ph"] == "f"}
    assert len(waits) == len(leaving) == len(arriving) > 8
    assert all(leaving[number]["ts"] <= arriving[number]["ts"] for number in leaving)
