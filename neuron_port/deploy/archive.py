"""A bundle as an archive with the same bytes every time (so that an upload can go on), and results unpacked safely."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

from neuron_port.deploy.errors import DeployError

_LEVEL = 6
EXECUTION_LEFTOVERS = ("build/work", "build/.finish.lock")


def pack(folder: Path, names: Iterable[str], archive: Path) -> None:
    """Write the named files of `folder` to a tar.gz whose bytes depend on their names and contents alone.

    Links are followed: a bundle may link to the checkpoint's weights.
    """
    with (
        archive.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="", compresslevel=_LEVEL) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT, dereference=True) as tar,
    ):
        for name in sorted(names):
            path = folder / name
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") as file:
                tar.addfile(entry, file)


def files_below(folder: Path) -> list[str]:
    """Relative names of all files of a bundle, without what a run of finish.py leaves in its scratch folder."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    skipped = tuple(f"{name}/" for name in EXECUTION_LEFTOVERS)
    return sorted(
        name
        for name in found
        if name not in EXECUTION_LEFTOVERS and not name.startswith(skipped) and "__pycache__" not in name
    )


def unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack results over `folder`, each file renamed into place whole; returns their names.

    Raises: DeployError for an archive that is damaged or reaches outside `folder`.
    """
    aside = folder / ".neuron-port-unpacking"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(aside, filter="data")
        names = [path.relative_to(aside).as_posix() for path in sorted(aside.rglob("*")) if path.is_file()]
        for name in sorted(
            names, key=lambda name: name == "neuron_port.json"
        ):  # the manifest speaks of the others
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).replace(folder / name)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise DeployError(
            f"The results in `{archive.name}` cannot be unpacked: {error}", hint="Fetch them again."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return names
