"""Step 4a: one run of neuronx-cc, its failure translated into a cause and a cure."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from .environment import Compiler
from .error_codes import ERROR_CODES, LIST, NOTED_CODES
from .jobs import Job
from .processes import TIMED_OUT, Processes, fresh

_MORE_MEMORY = "use --jobs 1, or compile on any host with more memory and copy the bundle back"


@dataclass(frozen=True)
class Outcome:
    """How one compilation ended; `codes` are the compiler's error codes, `log` what it said."""

    ok: bool
    seconds: float
    cause: str = ""
    cure: str = ""
    codes: tuple[str, ...] = ()
    log: str = ""


def explain(return_code: int, log: str) -> Outcome:
    """Cause and cure of a failed compilation, from its exit status and its log."""
    codes = tuple(dict.fromkeys(re.findall(r"\bNCC_([A-Z]{3,4}\d{3})\b", log)))

    def failed(cause: str, cure: str) -> Outcome:
        return Outcome(False, 0, cause, cure, codes, log)

    known = ERROR_CODES | NOTED_CODES
    for code in codes:
        if code in known:
            cause, cure = known[code]
            return failed(f"{cause} (NCC_{code})", cure)
    if return_code == TIMED_OUT:
        return failed(
            "the compiler was ended: it took longer than --timeout-minutes allows",
            "allow more minutes, compile this graph alone (--graphs), or convert with a smaller bucket",
        )
    starved = r"failed with -9|terminated abnormally.*-9|std::bad_alloc|MemoryError|[Oo]ut of memory"
    if return_code in (-9, 137) or re.search(starved, log):
        return failed("the compiler was killed: the host ran out of memory", _MORE_MEMORY)
    if re.search(r"No space left on device|Errno 28", log):
        return failed("the disk is full", "free some space, or point --work at a larger disk")
    signalled = -return_code if return_code < 0 else return_code - 128 if 128 < return_code < 160 else 0
    if signalled:
        return failed(
            f"the compiler was ended by signal {signalled} ({_signal_name(signalled)})",
            "run again; a crash that repeats (SIGSEGV, SIGABRT, SIGBUS) is a fault of the compiler: "
            "try the newest neuronx-cc and report it to AWS with the log",
        )
    if codes:
        return failed(
            f"the compiler gave the error NCC_{codes[0]}, for which there is no entry here: {_said(log)}",
            f"look it up in {LIST}; the log has the details",
        )
    return failed(f"neuronx-cc ended with {return_code}: {_said(log)}", "read the log")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _said(log: str) -> str:
    """The last line of the log that speaks of an error, otherwise the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search("error", line, re.IGNORECASE)]
    return (errors or lines or ["it said nothing"])[-1][:300]


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


def compile_graph(
    job: Job, hlo: bytes, *, compiler: Compiler, target: str, work: Path, processes: Processes
) -> Outcome:
    """Run neuronx-cc on one graph. On success `work` holds graph.neff and log-neuron-cc.txt."""
    started = time.monotonic()
    folder = fresh(work / "compiler")
    paths = {
        "hlo": folder / "graph.hlo.pb",
        "neff": work / "graph.neff.part",
        "log": folder / "log-neuron-cc.txt",
    }
    paths["hlo"].write_bytes(hlo)
    paths["neff"].unlink(missing_ok=True)
    argv = [compiler.path, *(part.format(**paths) for part in job.argv[1:])]
    printed = folder / "output.txt"
    return_code = processes.run(
        argv, cwd=folder, environment=compiler_environment(target), log=printed, name=job.graph
    )
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
        return Outcome(False, seconds, failed.cause, failed.cure, failed.codes, log)
    problem = neff_problem(paths["neff"])
    if problem:
        cause = problem + ", although it reported success"
        return Outcome(False, seconds, cause, "check the disk and run again", log=log)
    paths["neff"].replace(work / "graph.neff")
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(True, seconds, log=log)


def compiler_environment(target: str) -> dict[str, str]:
    """Our environment for neuronx-cc: flags in it would change the result behind the key's back."""
    environment = {name: value for name, value in os.environ.items() if name != "NEURON_CC_FLAGS"}
    return environment | {"NEURON_PLATFORM_TARGET_OVERRIDE": target}
