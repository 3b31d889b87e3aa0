"""Step 4a: one run of neuronx-cc, its failure translated into a cause and a cure."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .environment import Compiler, version_pair
from .tables import ERROR_CODES


@dataclass(frozen=True)
class Job:
    """One graph to compile, in one form."""

    graph: str
    hlo: bytes  # what the compiler reads
    hlo_name: str  # the bundle's file that it comes from
    argv: tuple[str, ...]  # canonical: {hlo}, {neff} and {log} stand for paths
    key: str
    kernels: bool
    kernels_reason: str


@dataclass(frozen=True)
class Outcome:
    """How one compilation ended; `codes` are the compiler's error codes."""

    ok: bool
    seconds: float
    cause: str = ""
    cure: str = ""
    codes: tuple[str, ...] = ()


def explain(return_code: int, log: str) -> Outcome:
    """Cause and cure of a failed compilation, from its exit status and its log."""
    codes = tuple(dict.fromkeys(re.findall(r"\bNCC_([A-Z]{4}\d{3})\b", log)))
    known = [code for code in codes if code in ERROR_CODES]
    if known:
        cause, cure = ERROR_CODES[known[0]]
        return Outcome(False, 0, f"{cause} (NCC_{known[0]})", cure, codes)
    killed = re.search(
        r"failed with -9|terminated abnormally.*-9|std::bad_alloc|MemoryError|[Oo]ut of memory", log
    )
    if return_code in (-9, 137) or killed:
        return Outcome(
            False,
            0,
            "the compiler was killed: the host ran out of memory",
            "use --jobs 1, or compile on any host with more memory and copy the bundle back",
        )
    if re.search(r"No space left on device|Errno 28", log):
        return Outcome(False, 0, "the disk is full", "free some space, or point --work at a larger disk")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = next(
        (line for line in reversed(lines) if re.search("error", line, re.IGNORECASE)),
        (lines or ["nothing"])[-1],
    )
    cure = (
        f"see https://awsdocs-neuron.readthedocs-hosted.com for NCC_{codes[0]}" if codes else "read the log"
    )
    return Outcome(False, 0, f"neuronx-cc ended with {return_code}: {said[:300]}", cure, codes)


def neff_problem(path: Path) -> str:
    """Why a file cannot be a whole NEFF, or "".

    A NEFF is a 1024-byte header (u64 pkg_version, header_size, data_size, ...) and an archive of data_size
    bytes (aws-neuron-sdk, neuron-runtime/explore/work-with-neff-files.rst).
    """
    if not path.is_file():
        return "the compiler wrote no NEFF"
    size = path.stat().st_size
    if size < 1024:
        return f"the NEFF has only {size} bytes"
    with path.open("rb") as file:
        _, header_size, data_size = struct.unpack("<3Q", file.read(24))
    if header_size == 1024 and size < header_size + data_size:
        return f"the NEFF is truncated: {size} of {header_size + data_size} bytes"
    return ""


class Processes:
    """The running compilers, so that an interrupt can end all of them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(self, argv: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: Path) -> int:
        """Run a command in its own process group, its output appended to `log`; return its status."""
        with log.open("ab") as file:
            with self._lock:
                if self.stopped:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                    start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop(self) -> None:
        """End everything that runs, with its children."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def compile_graph(job: Job, *, compiler: Compiler, target: str, work: Path, processes: Processes) -> Outcome:
    """Run neuronx-cc on one graph. On success `work` holds graph.neff and log-neuron-cc.txt."""
    started = time.monotonic()
    shutil.rmtree(work / "compiler", ignore_errors=True)
    folder = work / "compiler"
    folder.mkdir(parents=True)
    paths = {
        "hlo": folder / "graph.hlo.pb",
        "neff": work / "graph.neff.part",
        "log": folder / "log-neuron-cc.txt",
    }
    paths["hlo"].write_bytes(job.hlo)
    paths["neff"].unlink(missing_ok=True)
    argv = [compiler.path, *(part.format(**paths) for part in job.argv[1:])]
    # Flags from the environment would change the result behind the key's back.
    environment = {name: value for name, value in os.environ.items() if name != "NEURON_CC_FLAGS"}
    environment["NEURON_PLATFORM_TARGET_OVERRIDE"] = target
    printed = folder / "output.txt"
    return_code = processes.run(argv, cwd=folder, environment=environment, log=printed)
    log = "".join(
        path.read_text(encoding="utf-8", errors="replace")
        for path in (printed, paths["log"])
        if path.is_file()
    )
    (work / "log-neuron-cc.txt").write_text(log, encoding="utf-8")
    (work / "command.txt").write_text(" ".join(job.argv) + "\n", encoding="utf-8")
    seconds = round(time.monotonic() - started, 1)
    if return_code != 0:
        failed = explain(return_code, log)
        return Outcome(False, seconds, failed.cause, failed.cure, failed.codes)
    problem = neff_problem(paths["neff"])
    if problem:
        return Outcome(
            False, seconds, problem + ", although it reported success", "check the disk and run again"
        )
    paths["neff"].replace(work / "graph.neff")
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(True, seconds)


def graph_argv(plan: Mapping[str, Any], target: str, graph: str, compiler: Compiler) -> tuple[str, ...]:
    """The canonical command line of a graph: the plan's, and the flags that this compiler version knows."""
    entry = plan["targets"][target]
    argv = list(entry["graphs"][graph]["argv"])
    for extra in entry["version_flags"]:
        if version_pair(compiler.version) >= version_pair(extra["since"]):
            argv += extra["arguments"]
    return tuple(argv)


def job_key(hlo: bytes, argv: Sequence[str], compiler: str, kernels: Sequence[str], nki: str) -> str:
    """SHA-256 over everything that decides the NEFF."""
    digest = hashlib.sha256(hlo)
    digest.update(json.dumps([list(argv), compiler, sorted(kernels), nki]).encode())
    return digest.hexdigest()
