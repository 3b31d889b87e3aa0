"""`neuron-port profile` and `neuron-port lint`: what they print and write, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.command import failed, run

KERNEL = """
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def exponential(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    for i in range(0, 4096, 64):
        nisa.dma_copy(dst=tile[:, i:i + 64], src=x[:, i:i + 64])
    nisa.activation(dst=tile, op=nl.exp, data=tile)
    nisa.dma_copy(dst=out, src=tile)
    return out
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test stands in a folder with a kernel file."""
    monkeypatch.chdir(tmp_path)
    Path("kernel.py").write_text(KERNEL)


def test_a_profile_prints_figures_and_writes_three_files() -> None:
    """Time by line and advice go to stdout; the trace, the picture and the page are where it says."""
    done = run("profile", "kernel.py:exponential", "-i", "x=128x4096", "-o", "made")
    assert done.code == 0, done.stderr
    for words in ("latency", "roofline", "kernel.py:12", "critical path", "dma-small", "made/profile.html"):
        assert words in done.stdout, words
    assert "writing" in done.stderr
    assert sorted(path.name for path in Path("made").iterdir()) == [
        "profile.html",
        "timeline.png",
        "trace.json",
    ]
    assert len(json.loads(Path("made/trace.json").read_text())["traceEvents"]) > 66
    assert "<canvas" in Path("made/profile.html").read_text()


def test_the_same_profile_as_data() -> None:
    """--json has the figures as numbers, and the names of the files; the default folder is named after the kernel."""
    done = run("profile", "kernel.py:exponential", "-i", "x=128x4096", "--json", "--quiet")
    assert done.code == 0
    assert done.stderr == ""
    facts = done.json
    assert facts["device_ns"] > 0
    assert facts["hbm_read_bytes"] == facts["hbm_write_bytes"] == 128 * 4096 * 4
    assert sum(line["critical_ns"] for line in facts["lines"]) == pytest.approx(facts["device_ns"])
    assert "dma-small" in {advice["rule"] for advice in facts["advice"]}
    assert facts["files"][0] == "profiles/exponential/trace.json"


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("target", ["inf2", "trn2"])
def test_every_target_and_both_core_counts_can_be_profiled(target: str, lnc: int) -> None:
    """A profile is made for each generation; two cores only where a logical core has two."""
    done = run(
        "profile", "kernel.py:exponential", "-i", "x=128x4096", "--target", target, "--lnc", lnc, "--quiet"
    )
    if (target, lnc) == ("inf2", 2):
        assert failed(done, 1)
    else:
        assert done.code == 0, done.stderr


def test_a_kernel_that_is_refused_writes_nothing() -> None:
    """The sentence of the simulator, exit code 1, and no folder."""
    said = failed(run("profile", "kernel.py:exponential", "-i", "x=256x4096", "-o", "made"), 1)
    assert "kernel.py:" in said
    assert not Path("made").exists()


# lint


def test_a_clean_file_has_no_findings() -> None:
    """A kernel in the compiler's subset ends with 0."""
    done = run("lint", "kernel.py")
    assert done.code == 0
    assert done.stdout == "No findings.\n"


def test_findings_have_place_reason_cure_and_source() -> None:
    """An error ends with 1; text and JSON have the same findings, of files and of folders."""
    Path("bad").mkdir()
    Path("bad/old.py").write_text(
        KERNEL.replace("import nki.isa as nisa", "import neuronxcc.nki.isa as nisa")
    )
    done = run("lint", "bad", "kernel.py")
    assert done.code == 1
    assert "bad/old.py:3:" in done.stdout
    assert "cure:" in done.stdout
    assert "source:" in done.stdout
    assert "error" in done.stderr
    (finding, *_) = run("lint", "bad/old.py", "--format", "json").json
    assert (finding["line"], finding["severity"]) == (3, "error")


def test_a_file_that_is_no_python_is_a_finding() -> None:
    """What cannot be parsed is reported at its line, not raised."""
    Path("broken.py").write_text("def kernel(:\n    pass\n")
    done = run("lint", "broken.py")
    assert done.code == 1
    assert "broken.py:1" in done.stdout
