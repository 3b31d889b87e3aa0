"""Ctrl-C, kill and a full disk: finished stages are kept, nothing half-written stays, the next run goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuron_port.build.manifest import verify_files
from neuron_port.store import MARKER, PARTIAL_SUFFIX, Store
from tests.pipeline.command import (
    SIZES,
    contents,
    convert,
    failed,
    interruptible,
    manifest,
    partial_folders,
    run,
)

# What is interrupted: the store's stage, which of its results, and the name of the stage that the user sees.
MOMENTS = (
    ("plan", 1, "plan"),
    ("kernel-proof", 3, "kernels = layers (simulator)"),
    ("graphs", 2, "lower to HLO"),
    ("oracle", 2, "transformers reference"),
    ("graph-proof", 2, "graphs = model, float32 (xla-cpu)"),
    ("model-proof", 1, "ported model = model, float32 (simulator)"),
)
STAGES = tuple(name for _, _, name in MOMENTS)


def interrupt_at(patch: pytest.MonkeyPatch, stage: str, which: int) -> None:
    """Send Ctrl-C to this process when the files of that result are written but not yet sealed."""
    build, count = Store.build, 0

    def build_and_interrupt(
        self: Store, name: str, key: str, write: Callable[[Path], None], **options: Any
    ) -> tuple[Path, bool]:
        nonlocal count
        count += name == stage
        if name != stage or count != which:
            return build(self, name, key, write, **options)

        def write_and_interrupt(folder: Path) -> None:
            write(folder)
            signal.raise_signal(signal.SIGINT)

        return build(self, name, key, write_and_interrupt, **options)

    patch.setattr(Store, "build", build_and_interrupt)


def test_ctrl_c_in_every_stage_loses_only_that_stage(
    small_llama: Path, float32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in each stage in turn, a conversion goes on every time and ends as if nothing had happened."""
    store, output = tmp_path / "store", tmp_path / "b"
    monkeypatch.setenv("NEURON_PORT_HOME", str(store))
    command = ("convert", small_llama, *SIZES, "--dtype", "float32", "--output", output)
    for number, (stage, which, name) in enumerate(MOMENTS):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, stage, which)
            stopped = run(*command)
        assert "Interrupted. Finished stages are kept" in failed(stopped, 130)
        assert f"{name}: interrupted" in stopped.stderr
        assert stopped.skipped() == set(STAGES[: max(0, number - 1)])  # the last one was interrupted itself
        assert len(list(store.glob(f"{stage}/*/{MARKER}"))) == which - 1
        assert not partial_folders(store, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "neuron_port.pipeline.convert.write_html", lambda *_, **__: signal.raise_signal(signal.SIGINT)
        )
        failed(run(*command), 130)
    assert not partial_folders(store, tmp_path)
    assert not output.exists()
    finished = run(*command)
    assert finished.code == 0, finished.stderr
    assert finished.skipped() == set(STAGES)
    assert contents(output) == contents(float32_bundle)


def start(model: Path, output: Path, store: Path) -> subprocess.Popen[str]:
    """The same conversion in a process of its own."""
    command = (sys.executable, "-m", "neuron_port.cli", "convert", model, *SIZES, "--output", output)
    return subprocess.Popen(
        [*map(str, command), "--dtype", "float32"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"NEURON_PORT_HOME": str(store)},
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the process ended before it said `{text}`")


def verified_kernels(store: Path) -> set[str]:
    return {marker.parent.name for marker in store.glob(f"kernel-proof/*/{MARKER}")}


def test_a_killed_process_leaves_nothing_in_the_way(
    small_llama: Path, float32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the process with code 130; kill -9 leaves a half-written folder, which the next run replaces."""
    store, output = tmp_path / "store", tmp_path / "b"
    with interruptible():
        process = start(small_llama, output, store)
        wait_for(process, "kernels = layers (simulator): started")
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
        assert process.returncode == 130, said
        assert "error: Interrupted. Finished stages are kept" in said
        assert "Traceback" not in said
        process = start(small_llama, output, store)
        wait_for(process, "plan: skipped")
        wait_for(process, "kernels = layers (simulator): ")
        process.kill()
        process.communicate()
    kept = verified_kernels(store)
    monkeypatch.setenv("NEURON_PORT_HOME", str(store))
    leftover = (
        store / "model-proof" / f"0123456789abcdef{PARTIAL_SUFFIX}"
    )  # as a kill in the middle leaves it
    leftover.mkdir(parents=True)
    (leftover / "cases.json").write_text("{")
    finished = convert(small_llama, output, "--dtype", "float32")
    assert finished.code == 0, finished.stderr
    assert kept <= verified_kernels(store)
    assert not partial_folders(store, tmp_path)
    assert contents(output) == contents(float32_bundle)


class FullDisk:
    """Makes every write below `folder` fail with "no space left" while it is full."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.full = folder, True
        original = Path.write_text

        def write_text(path: Path, data: str, *args: Any, **kwargs: Any) -> int:
            if self.full and folder in path.parents:
                original(path, data[: len(data) // 2], *args, **kwargs)  # half of it still found room
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return original(path, data, *args, **kwargs)

        monkeypatch.setattr(Path, "write_text", write_text)


def test_a_full_store_is_one_sentence_and_the_next_run_goes_on(
    small_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the store has no room, the command names the place and the cure, and leaves nothing half-written."""
    store = tmp_path / "store"
    monkeypatch.setenv("NEURON_PORT_HOME", str(store))
    disk = FullDisk(store / "plan", monkeypatch)
    command = ("plan", small_llama, "--buckets", 16, "--cache-length", 32)
    said = failed(run(*command), 1)
    assert "the disk is full" in said
    assert "NEURON_PORT_HOME" in said
    assert not partial_folders(store)
    assert not list(store.glob("plan/*/*"))
    disk.full = False
    assert run(*command).code == 0


def test_a_full_disk_under_the_bundle_keeps_the_bundle_that_was_there(
    home: Path, small_llama: Path, bundle: Path, float32_bundle: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without room for the new bundle the old one stays whole; with room, the same command replaces it."""
    output = tmp_path / "b"
    assert convert(small_llama, output, "--dtype", "float32").code == 0
    before = manifest(output)
    disk = FullDisk(tmp_path, monkeypatch)
    said = failed(convert(small_llama, output), 1)
    assert "No space left" in said
    assert str(output) in said
    assert manifest(output) == before
    assert verify_files(output) == []
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    disk.full = False
    assert convert(small_llama, output).code == 0
    assert contents(output) == contents(bundle)


def test_a_damaged_result_is_made_again(
    home: Path,
    small_llama: Path,
    float32_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stored graph that lost its end is not taken: the stage runs again and the bundle is right."""
    shipped = {entry["hlo_sha256"] for entry in manifest(float32_bundle)["graphs"]}
    store = shutil.copytree(home, tmp_path / "store")
    monkeypatch.setenv("NEURON_PORT_HOME", str(store))
    for file in store.glob("graphs/*/graph.hlo.pb"):
        file.write_bytes(file.read_bytes()[:-1])
    finished = convert(small_llama, tmp_path / "b", "--dtype", "float32")
    assert finished.code == 0, finished.stderr
    assert "lower to HLO" not in finished.skipped()
    assert {entry["hlo_sha256"] for entry in manifest(tmp_path / "b")["graphs"]} == shipped
    assert json.loads((tmp_path / "b" / "parity" / "report.json").read_text())["summary"]
