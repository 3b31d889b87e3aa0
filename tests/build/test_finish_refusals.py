"""What finishing refuses, and how it fails: machines, bundles, compilers, interrupts."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stand_in_instance import Instance
from tiny_bundle import graph_bytes

from neuron_port.build import write_bundle
from neuron_port.build.finishing.environment import Compiler, check_compiler_version, check_machine
from neuron_port.build.finishing.files import GIB, Stop
from neuron_port.build.finishing.processes import end_left_behind

PREFILL, DECODE = "prefill_b1_s2", "decode_b1_t3"


def test_a_compiler_error_code_is_translated(instance: Instance) -> None:
    """A refused graph ends with exit code 4, its cause and cure; the other graph's NEFF is kept."""
    instance.fail = {DECODE: "NCC_EVRF001"}
    done = instance.finish()
    assert done.returncode == 4
    assert "an operation is not supported by this compiler (NCC_EVRF001)" in done.stderr
    assert "cure: try the newest neuronx-cc" in done.stderr
    assert instance.manifest["state"] == "portable"
    instance.fail = {}
    assert instance.finish().returncode == 0
    assert [call["graph"] for call in instance.calls].count(PREFILL) == 1


def test_running_out_of_memory_is_recognised(instance: Instance) -> None:
    """A compiler that the kernel killed is reported as lack of memory, not as a mysterious -9."""
    instance.fail = {PREFILL: "memory"}
    done = instance.finish()
    assert done.returncode == 4
    assert "the host ran out of memory" in done.stderr
    assert "--jobs 1" in done.stderr


def test_a_truncated_neff_is_not_accepted_from_the_compiler(instance: Instance) -> None:
    """A NEFF shorter than its own header says does not count, whatever the exit status."""
    instance.fail = {PREFILL: "truncated"}
    done = instance.finish()
    assert done.returncode == 4
    assert "the NEFF is truncated" in done.stderr
    assert not (instance.bundle / "neff" / "trn2" / f"{PREFILL}.neff").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_where_it_stopped(instance: Instance, number: int) -> None:
    """Ctrl-C and SIGTERM end the compiler and keep what was finished; the same command continues."""
    instance.fail = {DECODE: "hang"}
    stopped = instance.stop_while_compiling(number)
    assert stopped.returncode == 130, stopped.stderr
    assert "Run the same command again" in stopped.stderr
    assert not is_alive(instance.calls[-1]["pid"])
    assert [graph["neff"] is None for graph in instance.manifest["graphs"]] == [False, True]
    instance.fail = {}
    assert instance.finish().returncode == 0
    assert [call["graph"] for call in instance.calls] == [PREFILL, DECODE, DECODE]


def test_a_killed_run_goes_on_where_it_stopped(instance: Instance) -> None:
    """After kill -9 in the middle of the second compilation only that one is compiled; its orphan is ended first."""
    instance.fail = {DECODE: "hang"}
    stopped = instance.stop_while_compiling(signal.SIGKILL)
    orphan = instance.calls[-1]["pid"]
    assert stopped.returncode == -signal.SIGKILL
    assert is_alive(orphan)
    assert instance.manifest["state"] == "portable"
    instance.fail = {}
    done = instance.finish()
    assert done.returncode == 0, done.stderr
    assert "1 compilation(s) that an earlier run had left behind were ended" in done.stderr
    assert not is_alive(orphan)
    assert [call["graph"] for call in instance.calls] == [PREFILL, DECODE, DECODE]
    assert instance.manifest["state"] == "compiled"


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stranger_with_a_remembered_number_is_left_alone(tmp_path: Path) -> None:
    """A process that works elsewhere is not ended, though the file of an earlier run has its number."""
    folder = tmp_path / "work" / "trn2" / "decode" / "compiler"
    folder.mkdir(parents=True)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        (folder / "running.pid").write_text(str(stranger.pid))
        assert end_left_behind(tmp_path / "work") == 0
        assert stranger.poll() is None
        assert not (folder / "running.pid").exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_graphs_are_compiled_at_the_same_time(instance: Instance) -> None:
    """With --jobs 2, the second graph is finished while the first one hangs; the hanging one meets its time limit."""
    instance.fail = {PREFILL: "hang"}
    done = instance.finish("--jobs", "2", "--timeout-minutes", "0.05", "--progress-seconds", "1")
    assert done.returncode == 4
    assert f"{PREFILL}: the compiler was ended: it took longer than --timeout-minutes allows" in done.stderr
    assert f"{PREFILL}: at work for 1 s (tiling layer 7 of 30)" in done.stderr
    assert not is_alive(next(call["pid"] for call in instance.calls if call["graph"] == PREFILL))
    assert [graph["neff"] is None for graph in instance.manifest["graphs"]] == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--timeout-minutes", "0"), "more than 0"), (("--jobs", "0"), "at least 1"),
     (("--engine", "trace", "--kernels", "on"), "uses no NKI kernels")],
)  # fmt: skip
def test_options_that_no_run_can_have_are_usage_errors(
    instance: Instance, options: tuple[str, ...], message: str
) -> None:
    """They end with exit code 2 and a sentence, before anything is looked at."""
    done = instance.finish(*options)
    assert (done.returncode, instance.calls) == (2, [])
    assert message in done.stderr


def test_a_missing_compiler_is_explained(instance: Instance) -> None:
    """Without neuronx-cc on PATH the run ends with exit code 3 and what to install."""
    (instance.home / "bin" / "neuronx-cc").unlink()
    done = instance.finish()
    assert done.returncode == 3
    assert "neuronx-cc is not on PATH" in done.stderr
    assert "requirements-sdk2.32.txt" in done.stderr


@pytest.mark.parametrize(
    ("version", "message"), [("2.21.33363.0", "too old"), ("0.0.1", "not the Neuron SDK's")]
)
def test_a_wrong_compiler_is_refused(instance: Instance, version: str, message: str) -> None:
    """An old compiler and a placeholder without a real version are refused before anything is compiled."""
    instance.version = version
    done = instance.finish()
    assert (done.returncode, instance.calls) == (3, [])
    assert message in done.stderr


def test_a_damaged_bundle_is_refused(instance: Instance) -> None:
    """A graph whose bytes changed stops the run first."""
    path = instance.bundle / "graphs" / PREFILL / "graph.ref.hlo.pb"
    path.write_bytes(path.read_bytes() + b"\0")
    done = instance.finish()
    assert (done.returncode, instance.calls) == (3, [])
    assert f"graphs/{PREFILL}/graph.ref.hlo.pb has changed" in done.stderr


def test_a_64_bit_instruction_id_would_be_refused(
    instance: Instance, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """The stand-in compiler checks ids as XLA does, so the passing tests prove 32-bit ids."""
    graph = arguments["graphs"][0]
    large = dataclasses.replace(
        graph,
        hlo=graph_bytes(kernel="rms_norm", first_id=2**31),
        reference_hlo=graph_bytes(kernel=None, first_id=2**31),
    )
    instance.bundle = write_bundle(tmp_path / "large", **arguments | {"graphs": [large], "golden": {}}).folder
    done = instance.finish("--kernels", "off")
    assert done.returncode == 4
    assert "INT_MAX" in done.stderr


def test_two_runs_at_once_are_refused(instance: Instance) -> None:
    """A bundle is finished by one process at a time."""
    import fcntl

    with (instance.bundle / "build" / ".finish.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = instance.finish()
    assert done.returncode == 3
    assert "Another finish.py" in done.stderr


def test_a_small_disk_is_refused() -> None:
    """Too little free space is said before compiling."""
    machine = {"graph_count": 2, "memory_bytes": 64 * GIB, "cpu_count": 8, "jobs": None}
    assert check_machine(free_disk_bytes=4 * GIB, **machine) == 2
    with pytest.raises(Stop, match=r"The disk has 1\.0 GiB free"):
        check_machine(free_disk_bytes=GIB, **machine)


def test_jobs_follow_memory() -> None:
    """As many compilations at once as there are 16 GiB of memory, unless told otherwise."""
    machine = {"graph_count": 8, "free_disk_bytes": 100 * GIB, "cpu_count": 32}
    assert check_machine(memory_bytes=40 * GIB, jobs=None, **machine) == 2
    assert check_machine(memory_bytes=40 * GIB, jobs=5, **machine) == 5


def test_versions_are_compared_as_numbers() -> None:
    """2.9 is older than 2.23."""
    with pytest.raises(Stop, match="too old"):
        check_compiler_version(Compiler("neuronx-cc", "2.9.4.0"))
    assert check_compiler_version(Compiler("neuronx-cc", "2.100.0.0")).version == "2.100.0.0"
