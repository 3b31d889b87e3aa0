"""The store keeps whole results only, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from neuron_port.errors import StorageError
from neuron_port.lockfile import hold, try_hold
from neuron_port.store import Store, write_json

# A process that starts writing a stage and says so; what it does then is appended.
BUILDER = """
import os, sys, time
from pathlib import Path
from neuron_port.store import Store
def write(folder):
    (folder / "half.bin").write_bytes(b"x" * 1000)
    print("writing", flush=True)
    {then}
Store(Path(sys.argv[1])).build("stage", "key", write)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def write_result(folder: Path) -> None:
    write_json(folder / "result.json", {"answer": 42})


def never(folder: Path) -> None:
    raise AssertionError("a finished stage must not be built again")


def start_builder(root: Path, then: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER.format(then=then), str(root)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "writing\n"
    return process


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob("*.partial"))


def test_first_build_writes(store: Store) -> None:
    """The first build of a key calls the writer and returns its folder."""
    folder, reused = store.build("stage", "key", write_result)
    assert not reused
    assert folder == store.path("stage", "key")
    assert store.has("stage", "key")
    assert store.read_json("stage", "key", "result.json") == {"answer": 42}
    assert not leftovers(store.root)


def test_second_build_reuses(store: Store) -> None:
    """The second build of a key calls nothing and says that it reused."""
    first, _ = store.build("stage", "key", write_result)
    assert store.build("stage", "key", never) == (first, True)


def test_other_key_is_other_result(store: Store) -> None:
    """A different key is a different folder, built for itself."""
    store.build("stage", "key", write_result)
    folder, reused = store.build("stage", "other", write_result)
    assert not reused
    assert folder != store.path("stage", "key")


def test_root_from_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NEURON_PORT_HOME decides the root when none is given."""
    monkeypatch.setenv("NEURON_PORT_HOME", str(tmp_path / "elsewhere"))
    assert Store().root == tmp_path / "elsewhere"


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_failed_build_leaves_nothing(store: Store, error: BaseException) -> None:
    """An exception or Ctrl-C in the writer goes through, and no half stage stays."""

    def write(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"x")
        raise error

    with pytest.raises(type(error)):
        store.build("stage", "key", write)
    assert not store.has("stage", "key")
    assert not leftovers(store.root)


def test_killed_build_is_cleaned_and_does_not_block(store: Store) -> None:
    """What a killed process left is removed by the next build, of any key, and its lock is free."""
    process = start_builder(store.root, "time.sleep(60)")
    process.kill()
    process.wait()
    assert leftovers(store.root)
    assert not store.has("stage", "key")
    store.build("stage", "another", write_result)
    assert not leftovers(store.root)
    _, reused = store.build("stage", "key", write_result, on_wait=pytest.fail)
    assert not reused


def test_living_build_is_left_alone(store: Store) -> None:
    """Cleaning spares the half-written folder of a process that is still at it."""
    process = start_builder(store.root, "time.sleep(60)")
    try:
        store.build("stage", "another", write_result)
        assert [path.name for path in leftovers(store.root)] == ["key.partial"]
    finally:
        process.kill()
        process.wait()


def test_second_process_waits_and_reuses(store: Store) -> None:
    """A second process waits for the first, says for whom, and uses its result."""
    process = start_builder(store.root, "time.sleep(1)")
    messages: list[str] = []
    _, reused = store.build("stage", "key", never, on_wait=messages.append)
    process.wait()
    assert reused
    assert messages == [f"Waiting for process {process.pid}, which is building `stage-key`."]


def test_threads_build_once(store: Store) -> None:
    """Threads of one process are kept apart like processes: one writes, the others reuse."""
    calls: list[int] = []
    results: list[bool] = []

    def write(folder: Path) -> None:
        calls.append(1)
        time.sleep(0.2)
        write_result(folder)

    threads = [
        threading.Thread(target=lambda: results.append(store.build("stage", "key", write)[1]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert sorted(results) == [False, True, True, True]


@pytest.mark.parametrize("damage", ["remove", "truncate", "marker"])
def test_damaged_result_is_rebuilt(store: Store, damage: str) -> None:
    """A stage that lost a file, part of a file, or its marker does not count and is written again."""
    folder, _ = store.build("stage", "key", write_result)
    if damage == "remove":
        (folder / "result.json").unlink()
    elif damage == "truncate":
        os.truncate(folder / "result.json", 3)
    else:
        (folder / ".complete.json").unlink()
    assert not store.has("stage", "key")
    _, reused = store.build("stage", "key", write_result)
    assert not reused
    assert store.read_json("stage", "key", "result.json") == {"answer": 42}


def test_extra_file_does_not_invalidate(store: Store) -> None:
    """A file that someone added to a finished stage does not make it unfinished."""
    folder, _ = store.build("stage", "key", write_result)
    (folder / "notes.txt").write_text("mine")
    assert store.build("stage", "key", never)[1]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "writing is not allowed"),
    ],
)
def test_disk_error_names_path_space_and_cure(store: Store, number: int, words: str) -> None:
    """A full disk, a used-up quota or a refused write is one StorageError, and nothing half-written stays."""

    def write(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"x")
        raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError) as caught:
        store.build("stage", "key", write, needed_bytes=1024)
    assert words in caught.value.message
    assert str(store.path("stage", "key")) in caught.value.message
    assert "iB free now" in caught.value.message
    assert "0.0 MiB needed" in caught.value.message
    assert "NEURON_PORT_HOME" in str(caught.value.hint)
    assert not leftovers(store.root)


def test_disk_error_inside_another_error(store: Store) -> None:
    """A full disk is recognised when a library has wrapped it in its own exception."""

    def write(folder: Path) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(StorageError, match="the disk is full"):
        store.build("stage", "key", write)


def test_foreign_permission_error_is_not_ours(store: Store, tmp_path: Path) -> None:
    """A file outside the store that may not be read is not reported as a problem of the store."""

    def write(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/weights.bin")

    with pytest.raises(PermissionError):
        store.build("stage", "key", write)


def test_too_little_space_is_refused_before_the_work(store: Store) -> None:
    """A result that cannot fit is refused with both sizes before the writer runs."""
    needed_bytes = shutil.disk_usage(store.root).free + 2**40
    with pytest.raises(StorageError, match=r"GiB free now, .* GiB needed"):
        store.build("stage", "key", never, needed_bytes=needed_bytes)


def test_root_that_is_a_file(tmp_path: Path) -> None:
    """A root that cannot be a folder is a StorageError, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="there is a file where a folder should be"):
        Store(tmp_path / "file").build("stage", "key", write_result)


def test_lock_excludes(tmp_path: Path) -> None:
    """A lock that is held is not free; released, it is."""
    with hold(tmp_path / "a.lock"), try_hold(tmp_path / "a.lock") as free:
        assert not free
    with try_hold(tmp_path / "a.lock") as free:
        assert free


def test_lock_timeout_names_holder(tmp_path: Path) -> None:
    """Waiting with a limit ends in a StorageError that names the holder."""
    with (
        hold(tmp_path / "a.lock"),
        pytest.raises(StorageError, match=f"Process {os.getpid()} still holds"),
        hold(tmp_path / "a.lock", timeout_seconds=0.01),
    ):
        pass


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    """JSON files of equal values are byte for byte equal, in whatever order keys were set."""
    write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    write_json(tmp_path / "b.json", {"a": 2, "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 2, "b": 1}
