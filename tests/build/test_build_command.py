"""`neuron-port build`: the bundle's own finish.py behind our command line, its exit codes and interrupts as ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_in_instance import Instance

from neuron_port.cli.build import finish_arguments

PROJECT = Path(__file__).parents[2]
DECODE = "decode_b1_t3"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "neuron_port.cli", "build", *arguments]


def environment(instance: Instance) -> dict[str, str]:
    return {**os.environ, **instance.variables(), "PYTHONPATH": str(PROJECT), "PYTHONWARNINGS": "ignore"}


def run(instance: Instance, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(instance),
        check=False,
    )


def test_a_bundle_is_finished(instance: Instance) -> None:
    """finish.py's lines pass through, options reach it, and the exit code is 0."""
    nodes = ("--device-nodes", str(instance.home / "neuron*"))
    done = run(instance, str(instance.bundle), "--target", "trn2", "--nki-python", instance.nki[1], *nodes)
    assert done.returncode == 0, done.stderr
    assert "kernels: NKI (nki 0.6.0)" in done.stderr
    assert instance.manifest["state"] == "compiled"


def test_a_graph_that_does_not_compile_is_exit_code_1(instance: Instance) -> None:
    """finish.py's 4 becomes our 1, with its cause and cure above one sentence of ours."""
    instance.fail = {DECODE: "NCC_EVRF001"}
    done = run(instance, str(instance.bundle), "--target", "trn2", "--jobs", "1")
    assert done.returncode == 1
    assert "an operation is not supported by this compiler (NCC_EVRF001)" in done.stderr
    assert f"error: `{instance.bundle}` is not compiled whole" in done.stderr


def test_status_passes_through(instance: Instance) -> None:
    """--status needs no target, and what it prints goes to stdout."""
    done = run(instance, str(instance.bundle), "--status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny: portable")


def test_a_state_that_does_not_hold_is_exit_code_1(instance: Instance) -> None:
    """A manifest that says more than has happened is named as broken."""
    path = instance.bundle / "neuron_port.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "device-verified"}))
    done = run(instance, str(instance.bundle), "--status")
    assert done.returncode == 1
    assert "BROKEN: the manifest says `device-verified`" in done.stdout
    assert "is not what its manifest says" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_finish(instance: Instance, number: int) -> None:
    """A signal to neuron-port alone ends the compilation, keeps what was finished, and is exit code 130."""
    instance.fail = {DECODE: "hang"}
    process = subprocess.Popen(
        command(str(instance.bundle), "--target", "trn2", "--jobs", "1"), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment(instance), start_new_session=True,
    )  # fmt: skip
    while not (instance.home / "calls.hanging").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "what was finished is kept" in err
    assert [graph["neff"] is None for graph in instance.manifest["graphs"]] == [False, True]
    assert not Path(f"/proc/{instance.calls[-1]['pid']}/cwd").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "--target is missing"),
        (("--target", "trn9"), "'trn9' is not one of 'inf2', 'trn1', 'trn2'"),
        (("--target", "trn2", "--max-usd", "3"), "--max-usd goes with --remote"),
        (("--target", "trn2", "--timeout-minutes", "3"), "it is --graph-timeout-minutes"),
        (
            ("--target", "trn2", "--remote", "s3://bucket-name/x", "--cache", "c"),
            "--cache does not go with --remote",
        ),
        (("--target", "trn2", "--remote", "bucket"), "Not an S3 location: `bucket`"),
        (("--target", "trn2", "--graphs", "nope"), "Unknown graph: `nope`"),
    ],
)
def test_wrong_usage_is_exit_code_2(instance: Instance, given: tuple[str, ...], message: str) -> None:
    """Each is one sentence, and nothing is compiled."""
    done = run(instance, str(instance.bundle), *given)
    assert (done.returncode, instance.calls) == (2, []), done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [("absent", "No neuron bundle at"), ("damaged", "is damaged"), ("no program", "has no build/finish.py")],
)
def test_what_is_no_bundle_is_named(instance: Instance, damage: str, message: str) -> None:
    """A folder without manifest, with half of one, or without its program is exit code 1 and a cure."""
    bundle = instance.bundle
    if damage == "absent":
        bundle = instance.home
    elif damage == "damaged":
        (bundle / "neuron_port.json").write_text('{"schema_version"')
    else:
        (bundle / "build" / "finish.py").unlink()
    done = run(instance, str(bundle), "--target", "trn2")
    assert done.returncode == 1
    assert message in done.stderr
    assert "hint:" in done.stderr


def test_a_bundle_of_another_schema_is_left_to_its_own_program(instance: Instance) -> None:
    """Its finish.py decides: this one, made for schema 1, refuses schema 9 with exit code 3, which is our 1."""
    path = instance.bundle / "neuron_port.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 9}))
    done = run(instance, str(instance.bundle), "--target", "trn2")
    assert done.returncode == 1
    assert "The bundle has manifest version 9; this program knows 1" in done.stderr


def test_options_are_passed_on_as_finish_takes_them(tmp_path: Path) -> None:
    """Switches stand alone, paths become absolute, and the time limit has finish.py's name."""
    given = {"retry_kernels": True, "jobs": 2, "graph_timeout_minutes": 1.5, "nki_python": "/x/python"}
    assert finish_arguments(given) == [
        "--retry-kernels", "--jobs", "2", "--timeout-minutes", "1.5", "--nki-python", "/x/python",
    ]  # fmt: skip
    (flag, path) = finish_arguments({"cache": Path("neffs")})
    assert flag == "--cache"
    assert Path(path).is_absolute()
