"""The picture and the page: whole, self-contained, safe with strange names, and small for large kernels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from neuron_port.profiling.page import render, write_page
from neuron_port.profiling.page_data import page_data
from neuron_port.profiling.picture import busy_shares, write_picture
from neuron_port.profiling.profile import Profile
from tests.profiling.kernels import normal, profile_of

MANY = """
    def k(x, steps):
        out = nl.ndarray((P, 512), dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray((P, 512), dtype=x.dtype, buffer=nl.sbuf)
        z = nl.ndarray((P, 512), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=y, src=x)
        for i in range(steps):
            nisa.tensor_scalar(dst=z, data=y, op0=nl.multiply, operand0=0.5)
            nisa.activation(dst=y, op=nl.exp, data=z)  # </script><b>bold</b>
        nisa.dma_copy(dst=out, src=y)
        return out
"""


def profile_of_steps(steps: int) -> Profile:
    return profile_of(MANY, normal(128, 512), steps=steps)


@pytest.mark.parametrize("steps", [2, 800])
def test_the_picture_is_a_png_of_some_size(steps: int, tmp_path: Path) -> None:
    """Few and many instructions alike end in a picture as wide as a screen, and leave nothing else behind."""
    write_picture(profile_of_steps(steps), tmp_path / "timeline.png")
    content = (tmp_path / "timeline.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert width > 1500
    assert height > 600
    assert [path.name for path in tmp_path.iterdir()] == ["timeline.png"]


def test_the_same_run_gives_the_same_picture_and_page(tmp_path: Path) -> None:
    """Nothing in the outputs depends on when they were made."""
    for name in ("one", "two"):
        profile = profile_of_steps(4)
        write_picture(profile, tmp_path / f"{name}.png")
        write_page(profile, tmp_path / f"{name}.html")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_shares_of_slices_of_time_add_up_to_the_busy_time() -> None:
    """What a dense lane shows, summed over its slices of time, is how long it was busy."""
    profile = profile_of_steps(300)
    members = [one for one in profile.timeline.scheduled if one.lane == "vector"]
    edges = np.linspace(0, profile.timeline.device_ns, 101)
    shares = busy_shares(members, edges)
    busy = sum(one.busy_ns for one in members)
    assert shares @ np.diff(edges) == pytest.approx(busy)
    assert shares.min() >= -1e-9
    assert shares.max() <= 1 + 1e-9


def test_the_page_needs_nothing_from_outside() -> None:
    """No address of anything else, and a content policy that would forbid it."""
    page = render(profile_of_steps(4))
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=[\"'](?!#)", page)
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_text_of_kernels_cannot_leave_its_place() -> None:
    """Source that looks like HTML is shown, not obeyed; the embedded data does not end its element."""
    page = render(profile_of_steps(4))
    assert "<b>bold</b>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    data = json.loads(embedded.group(1))
    assert any("</script><b>" in text for _, text in data["places"])
    assert page.count("</script>") == 2


def test_the_page_says_where_the_time_goes_without_its_script() -> None:
    """Lines with shares, engines, memory and source are in the page's text."""
    profile = profile_of_steps(40)
    page = render(profile)
    for use in profile.lines[:3]:
        assert f"kernel.py:{use.line}" in page
    for words in ("VectorE", "ScalarE", "Roofline", "SBUF", "critical path"):
        assert words in page


def test_a_large_timeline_is_merged_to_the_rows_that_a_page_can_hold() -> None:
    """Neighbours of one line become one row; instructions and busy time stay the same in all."""
    profile = profile_of_steps(500)
    whole, merged = page_data(profile), page_data(profile, most_rows=60)
    assert len(whole["rows"]["start"]) == len(profile.timeline.scheduled)
    assert len(merged["rows"]["start"]) <= 60
    assert sum(merged["rows"]["count"]) == len(profile.timeline.scheduled)
    assert sum(merged["rows"]["busy"]) == pytest.approx(sum(whole["rows"]["busy"]), rel=1e-3)
