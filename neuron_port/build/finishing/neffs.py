"""What was compiled for one chip, each file with a record: NEFFs, or traced TorchScript; and a cache of them.

"NEFF" stands for either here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import read_json, say, sha256_of, write_json
from .jobs import Job


@dataclass(frozen=True)
class Neffs:
    """neff/<target>/ or torchscript/<target>/ of a bundle; `cache` has files by key, of any bundle."""

    folder: Path
    cache: Path | None = None
    suffix: str = ".neff"

    def path(self, graph: str) -> Path:
        return self.folder / f"{graph}{self.suffix}"

    def record(self, graph: str) -> dict[str, Any] | None:
        """The record of a graph's NEFF; None without one, and when a crash cut it off."""
        return _record(self.path(graph))

    def is_whole(self, graph: str) -> bool:
        """Whether the NEFF is the one that its record speaks of."""
        return _is_whole(self.path(graph))

    def keep(
        self, job: Job, neff: Path, *, seconds: float, target: str, compiler: str, nki: str,
        more: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Copy a finished NEFF into the bundle: the file first, its record last."""
        with_nki = any(choice.nki for choice in job.choices.values())
        record = {
            "graph": job.graph, "target": target, "sha256": sha256_of(neff), "bytes": neff.stat().st_size,
            "key": job.key, "wanted_key": job.wanted_key, "hlo": job.hlo_name, "kernels": _records(job),
            "nki": nki if with_nki else None, "compiler": compiler, "argv": list(job.argv), "seconds": seconds,
            **(more or {}),
        }  # fmt: skip
        if self.cache is not None:
            self.cache.mkdir(parents=True, exist_ok=True)
            copy_whole(neff, self.cache / f"{job.key}{self.suffix}")
            write_json(self.cache / f"{job.key}.json", record)
            if job.wanted_key != job.key:
                write_json(self.cache / f"{job.wanted_key}.refused.json", {"key": job.key})
        self._place(neff, record)
        for name in ("log-neuron-cc.txt", "command.txt"):
            if (neff.parent / name).is_file():
                copy_whole(neff.parent / name, self.folder / f"{job.graph}.{name}")

    def _place(self, neff: Path, record: dict[str, Any]) -> None:
        destination = self.path(record["graph"])
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.with_suffix(".json").unlink(missing_ok=True)
        copy_whole(neff, destination)
        write_json(destination.with_suffix(".json"), record)

    def reuse(self, job: Job, *, remembered: bool = True) -> bool:
        """Whether the NEFF for exactly this job is in the bundle or the cache, whole; says so.

        With `remembered`, also the NEFF that an earlier run of the same job came to by leaving a kernel to
        the compiler: what was refused then would be refused again.
        """
        mine = self.record(job.graph)
        if mine and (mine["key"] == job.key or (remembered and mine["wanted_key"] == job.wanted_key)):
            if self.is_whole(job.graph):
                self._say_refused(job.graph, "already compiled, skipped", mine)
                if mine["key"] == job.key:
                    kernels = _records(job) if job.choices else mine["kernels"]
                    changed = mine | {"wanted_key": job.wanted_key, "kernels": kernels}
                    if changed != mine:
                        write_json(self.path(job.graph).with_suffix(".json"), changed)
                return True
            if self.path(job.graph).is_file():
                say(
                    f"{job.graph}: its compiled file is not the recorded one (truncated or changed): made anew"
                )
        found = self._cached(job, remembered)
        if found is None:
            return False
        record = _record(found)
        assert record is not None, found
        kernels = _records(job) if record["key"] == job.key else record["kernels"]
        self._place(found, record | {"graph": job.graph, "wanted_key": job.wanted_key, "kernels": kernels})
        self._say_refused(job.graph, "taken from the cache", record)
        return True

    def _cached(self, job: Job, remembered: bool) -> Path | None:
        if self.cache is None:
            return None
        keys = [job.key]
        refused = self.cache / f"{job.wanted_key}.refused.json"
        if remembered and refused.is_file():
            keys.append(str(read_json(refused)["key"]))
        paths = [self.cache / f"{key}{self.suffix}" for key in keys]
        return next((path for path in paths if _is_whole(path)), None)

    def _say_refused(self, graph: str, what: str, record: dict[str, Any]) -> None:
        refused = record["wanted_key"] != record["key"]
        names = [name for name, entry in record["kernels"].items() if entry["by"] == "compiler"]
        note = f" ({', '.join(names)} left to the compiler; --retry-kernels tries again)" if refused else ""
        say(f"{graph}: {what}{note}")


def _records(job: Job) -> dict[str, dict[str, str]]:
    return {name: choice.record() for name, choice in sorted(job.choices.items())}


def _record(neff: Path) -> dict[str, Any] | None:
    try:
        record = dict(read_json(neff.with_suffix(".json")))
    except (OSError, ValueError, TypeError):
        return None  # no record, or one cut off by a crash: the NEFF is compiled again
    needed = ("key", "wanted_key", "sha256", "kernels", "argv", "compiler", "hlo", "graph")
    return record if all(name in record for name in needed) else None


def _is_whole(neff: Path) -> bool:
    record = _record(neff)
    return record is not None and neff.is_file() and sha256_of(neff) == record["sha256"]


def copy_whole(source: Path, destination: Path) -> None:
    """Copy a file aside and rename it, so that a reader never sees half of it."""
    aside = destination.with_name(f".{destination.name}.{os.getpid()}")
    shutil.copyfile(source, aside)
    aside.replace(destination)
