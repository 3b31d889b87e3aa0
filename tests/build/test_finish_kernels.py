"""NKI kernels in finishing: each is chosen, tried and left to the compiler by itself, with the reason."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from stand_in_instance import Instance

from neuron_port.build.finishing.build import named_in_errors
from neuron_port.build.finishing.kernels import NkiProbe, choose_kernels

PREFILL, DECODE = "prefill_b1_s2", "decode_b1_t3"


KERNELS = ("rms_norm", "rope", "scale")


def recorded(instance: Instance, graph: str = PREFILL) -> dict[str, dict[str, str]]:
    """What the manifest says of every kernel of a graph: by whom, and why."""
    found: dict[str, dict[str, str]] = instance.manifest["build"]["targets"]["trn2"]["kernels"][graph]
    return found


def by(instance: Instance, graph: str = PREFILL) -> dict[str, str]:
    return {name: entry["by"] for name, entry in recorded(instance, graph).items()}


def test_kernels_are_compiled_into_the_graph(instance: Instance) -> None:
    """With nki, placeholders become native kernels, which the compiler knows, and the record says so."""
    done = instance.finish(*instance.nki)
    assert done.returncode == 0, done.stderr
    assert recorded(instance) == {"rms_norm": {"by": "nki", "reason": "nki 0.6.0"}}
    assert instance.manifest["build"]["targets"]["trn2"]["nki"] == "0.6.0"
    assert instance.manifest["graphs"][0]["neff"]["kernels"] == ["rms_norm"]
    assert {tuple(call["kernels"]) for call in instance.calls} == {("rms_norm",)}


def test_a_kernel_that_nki_refuses_costs_that_kernel_only(several: Instance) -> None:
    """When nki cannot compile one of three kernels, the other two stay in the graph and the reason is recorded."""
    several.environment["FAKE_NKI"] = "broken:rope"
    done = several.finish(*several.nki)
    assert done.returncode == 0, done.stderr
    assert by(several) == {"rms_norm": "nki", "rope": "compiler", "scale": "nki"}
    assert "partition dimension 256 exceeds maximum 128" in recorded(several)["rope"]["reason"]
    assert f"{PREFILL}: rope left to the compiler: nki did not compile it: " in done.stderr
    assert {tuple(sorted(call["kernels"])) for call in several.calls} == {("rms_norm", "scale")}


def test_a_broken_nki_costs_all_kernels_and_no_graph(several: Instance) -> None:
    """When nki compiles nothing, the twin is compiled."""
    several.environment["FAKE_NKI"] = "broken"
    done = several.finish(*several.nki)
    assert done.returncode == 0, done.stderr
    assert set(by(several).values()) == {"compiler"}
    assert {tuple(call["kernels"]) for call in several.calls} == {()}


def test_a_kernel_that_the_compiler_names_is_dropped_alone(several: Instance) -> None:
    """The kernel that neuronx-cc's error names is left to the compiler; nothing is compiled alone to find it."""
    several.refused_kernels = {
        "scale": "[NCC_EVRF065] kernel scale was traced with an unsupported NKI version"
    }
    done = several.finish(*several.nki, "--graphs", PREFILL)
    assert done.returncode == 0, done.stderr
    assert [sorted(call["kernels"]) for call in several.calls] == [sorted(KERNELS), ["rms_norm", "rope"]]
    record = json.loads((several.bundle / "neff" / "trn2" / f"{PREFILL}.json").read_text())
    assert record["kernels"]["scale"]["reason"].startswith(
        "neuronx-cc refused it: the kernels were compiled by an nki"
    )


def test_a_kernel_that_nobody_names_is_found_by_compiling_each_alone(several: Instance) -> None:
    """An error about kernels that names none makes each kernel a graph of one call; the one that is refused goes."""
    several.refused_kernels = {"scale": "[NCC_EVRF065] a kernel was traced with an unsupported NKI version"}
    done = several.finish(*several.nki, "--graphs", PREFILL)
    assert done.returncode == 0, done.stderr
    tried = [(call["graph"], sorted(call["kernels"])) for call in several.calls]
    alone = [("alone", ["rms_norm"]), ("alone", ["scale"]), ("alone", ["rope"])]
    assert tried == [(PREFILL, sorted(KERNELS)), *alone, (PREFILL, ["rms_norm", "rope"])]
    record = json.loads((several.bundle / "neff" / "trn2" / f"{PREFILL}.json").read_text())
    assert "compiled alone" in record["kernels"]["scale"]["reason"]


def test_kernels_that_only_fail_together_are_all_dropped(several: Instance) -> None:
    """When each kernel compiles alone and the graph does not, none is used, and the reason says so."""
    several.fail = {PREFILL: "NCC_EVRF065+kernels"}
    done = several.finish(*several.nki)
    assert done.returncode == 0, done.stderr
    assert set(by(several).values()) == {"compiler"}
    assert "it passes alone, and so do the others" in recorded(several)["rope"]["reason"]
    assert set(by(several, DECODE).values()) == {"nki"}


def test_an_error_that_is_not_about_kernels_is_not_blamed_on_them(several: Instance) -> None:
    """Too many instructions is a failure of the graph: no kernel is dropped for it."""
    several.fail = {PREFILL: "NCC_EVRF007+kernels"}
    done = several.finish(*several.nki)
    assert done.returncode == 4
    assert [call["graph"] for call in several.calls].count(PREFILL) == 1


def test_what_was_refused_is_remembered(several: Instance) -> None:
    """A second run compiles nothing, though it still wants the kernel; --retry-kernels tries it again."""
    several.environment["FAKE_NKI"] = "broken:rope"
    assert several.finish(*several.nki).returncode == 0
    count = len(several.calls)
    again = several.finish(*several.nki)
    assert (again.returncode, len(several.calls)) == (0, count)
    assert "rope left to the compiler; --retry-kernels tries again" in again.stderr
    del several.environment["FAKE_NKI"]
    assert several.finish(*several.nki, "--retry-kernels").returncode == 0
    assert set(by(several).values()) == {"nki"}


def test_the_chosen_kernels_are_part_of_the_key(several: Instance) -> None:
    """All kernels, two of three, and none give three different keys."""
    keys = set()
    for broken in ("", "broken:rope", "broken"):
        several.environment["FAKE_NKI"] = broken
        shutil.rmtree(several.bundle / "neff", ignore_errors=True)
        assert several.finish(*several.nki).returncode == 0
        keys.add(json.loads((several.bundle / "neff" / "trn2" / f"{PREFILL}.json").read_text())["key"])
    assert len(keys) == 3


def test_a_cache_remembers_what_was_refused(several: Instance, tmp_path: Any) -> None:
    """A bundle beside it takes the NEFF with two kernels from the cache, without asking nki again."""
    cache = ("--cache", str(tmp_path / "cache"))
    several.environment["FAKE_NKI"] = "broken:rope"
    assert several.finish(*several.nki, *cache).returncode == 0
    for file in (several.bundle / "neff").rglob("*"):
        if file.is_file():
            file.unlink()
    count = len(several.calls)
    done = several.finish(*several.nki, *cache)
    assert (done.returncode, len(several.calls)) == (0, count), done.stderr
    assert by(several) == {"rms_norm": "nki", "rope": "compiler", "scale": "nki"}


@pytest.mark.parametrize("by_whom", ["nki", "neuronx-cc"])
def test_kernels_on_insists(several: Instance, by_whom: str) -> None:
    """With --kernels on, one kernel that cannot be had fails its graph, whoever refuses it."""
    if by_whom == "nki":
        several.environment["FAKE_NKI"] = "broken:rope"
    else:
        several.refused_kernels = {"rope": "[NCC_EVRF065] kernel rope"}
    done = several.finish(*several.nki, "--kernels", "on")
    assert done.returncode == 4, done.stderr
    assert several.manifest["state"] == "portable"
    assert ("--kernels on, but rope: nki did not compile it" in done.stderr) == (by_whom == "nki")


def test_a_kernel_that_is_not_meant_for_the_chip_is_left_out(several: Instance) -> None:
    """A kernel whose recipe does not name the chip is not tried there, and the reason says so."""
    path = several.bundle / "neuron_port.json"
    manifest = json.loads(path.read_text())
    for kernel in manifest["kernels"]:
        kernel["targets"] = ["inf2", "trn1"] if kernel["name"] == "rope" else kernel["targets"]
    path.write_text(json.dumps(manifest))
    assert several.finish(*several.nki).returncode == 0
    assert recorded(several)["rope"] == {"by": "compiler", "reason": "the kernel is not meant for trn2"}


def test_names_count_in_lines_that_speak_of_an_error() -> None:
    """A kernel's name in an ordinary line, or inside another name, blames nobody."""
    log = "INFO kernels: norm rope\nERROR: rms_norm-12ab/kernel.klir: NCC_EVRF065"
    assert named_in_errors(log, {"norm", "rope", "rms_norm"}) == {"rms_norm"}


def test_kernels_on_without_nki_is_an_environment_error(instance: Instance) -> None:
    """--kernels on insists."""
    done = instance.finish("--kernels", "on")
    assert done.returncode == 3
    assert "--nki-python" in done.stderr


@pytest.mark.parametrize(
    ("requested", "target", "probe", "expected"),
    [
        ("auto", "trn2", NkiProbe("0.6.0"), True),
        ("auto", "trn2", NkiProbe("0.3.0", "nki 0.3.0 is older than 0.4"), False),
        ("auto", "inf2", NkiProbe("0.6.0"), False),
        ("auto", "trn1", NkiProbe("0.6.0"), False),
        ("on", "inf2", NkiProbe("0.6.0"), True),
        ("off", "trn2", NkiProbe("0.6.0"), False),
    ],
)
def test_kernels_are_chosen_by_chip_and_nki(
    requested: str, target: str, probe: NkiProbe, expected: bool
) -> None:
    """trn2 uses kernels when nki can; inf2 and trn1 only when asked; every choice has a reason."""
    chosen, reason = choose_kernels(requested, target, lambda: probe)
    assert chosen is expected
    assert reason
