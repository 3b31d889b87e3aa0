"""Engine `trace`: every graph through torch_neuronx.trace to TorchScript, in an environment of SDK 2.31.

For whoever serves with torch on Inf2 and Trn1. torch_neuronx takes a torch callable, so the graph's HLO is run
as torch operations (`torch_graph`) and traced; kernels are not used, the compiler-lowered twin is traced.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .compiler import compiler_environment, explain
from .device import run_check
from .environment import Bundle, version_pair
from .files import ENVIRONMENT, FINISH, Stop, read_json, say, write_json
from .jobs import Choice, Job, graph_argv
from .neffs import Neffs
from .processes import Processes, fresh

REASON = "engine trace: torch_neuronx traces the reference, without NKI kernels"
INSTALL = (
    "Name the interpreter of an environment of SDK 2.31 by --torch-python (build/requirements-sdk2.31.txt)."
)
_PROBE = """
import importlib.metadata as m, json
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return ""
try:
    import torch, torch_neuronx
    torch_neuronx.trace
    problem = ""
except Exception as error: problem = f"{type(error).__name__}: {error}"
print(json.dumps({"problem": problem, "torch": version("torch"), "torch-neuronx": version("torch-neuronx"),
                  "neuronx-cc": version("neuronx-cc")}))
"""


def probe_torch(python: str) -> dict[str, str]:
    """Versions of torch, torch-neuronx and neuronx-cc in the interpreter's environment, or stop saying what lacks."""
    try:
        answer = subprocess.run(
            [python, "-c", _PROBE], capture_output=True, text=True, timeout=600, check=False,
            env=_environment(python, None),
        )  # fmt: skip
        found = dict(json.loads(answer.stdout.strip().splitlines()[-1]))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise Stop(ENVIRONMENT, f"{python} cannot be asked for torch_neuronx: {error}.", INSTALL) from error
    if found["problem"]:
        raise Stop(
            ENVIRONMENT, f"torch_neuronx cannot be imported by {python} ({found['problem']}).", INSTALL
        )
    if version_pair(found["torch-neuronx"]) == (0, 0) or version_pair(found["neuronx-cc"]) == (0, 0):
        which = "torch-neuronx" if version_pair(found["torch-neuronx"]) == (0, 0) else "neuronx-cc"
        raise Stop(
            ENVIRONMENT, f"{python} has no {which} of the Neuron SDK: `{found[which] or 'none'}`.", INSTALL
        )
    say(f"torch-neuronx {found['torch-neuronx']}, torch {found['torch']}, neuronx-cc {found['neuronx-cc']}")
    if version_pair(found["torch-neuronx"]) != (2, 9):
        say("note: engine trace is written for torch-neuronx 2.9, the last one (SDK 2.31)")
    return found


def _environment(python: str, target: str | None) -> dict[str, str]:
    """The environment's own programs come first: torch_neuronx looks for neuronx-cc on PATH."""
    environment = dict(os.environ) if target is None else compiler_environment(target)
    own = Path(python).parent
    return (
        environment | {"PATH": f"{own}{os.pathsep}{environment.get('PATH', '')}"} if own.name else environment
    )


def compiler_args(plan: Mapping[str, Any], target: str, graph: str, compiler: str) -> list[str]:
    """The plan's flags without those that torch_neuronx sets itself (input, framework, output, log)."""
    argv = list(graph_argv(plan, target, graph, compiler))[3:]
    for name in ("--framework", "--output", "--logfile"):
        at = argv.index(name)
        del argv[at : at + 2]
    return argv


@dataclass
class Tracing:
    """One run of engine `trace`: what to trace and with what."""

    bundle: Bundle
    target: str
    versions: Mapping[str, str]
    jobs: int
    work: Path
    cache: Path | None
    torch_python: str
    weights: Path | None
    on_device: bool
    processes: Processes = field(default_factory=Processes)

    @property
    def scripts(self) -> Neffs:
        return Neffs(self.bundle.folder / "torchscript" / self.target, self.cache, ".pt")

    def job(self, graph: Mapping[str, Any]) -> Job:
        arguments = compiler_args(self.bundle.plan, self.target, graph["id"], self.versions["neuronx-cc"])
        key = trace_key(self.bundle, graph, arguments, self.versions)
        choices = {name: Choice(False, REASON) for name in graph["kernels"]}
        return Job(graph["id"], f"graphs/{graph['id']}/graph.ref.hlo.pb", tuple(arguments), key, key, choices)

    def finish_graph(self, graph: Mapping[str, Any]) -> str:
        """Trace one graph unless its file is already there; return "" or the sentence of its failure."""
        job = self.job(graph)
        if self.scripts.reuse(job):
            return ""
        folder = fresh(self.work / self.target / job.graph / "trace")
        request = {
            "bundle": str(self.bundle.folder), "graph": job.graph, "compiler_args": list(job.argv),
            "weights": None if self.weights is None else str(self.weights.resolve()),
            "cpu_backend": not self.on_device, "workdir": str(folder / "compiler"),
            "output": str(folder / "traced.pt"),
        }  # fmt: skip
        write_json(folder / "request.json", request)
        (folder / "command.txt").write_text(" ".join(job.argv) + "\n", encoding="utf-8")
        log = folder / "log-neuron-cc.txt"
        where = "on this device's host" if self.on_device else "without a device (cpu_backend)"
        say(f"{job.graph}: tracing for {self.target}, {where}")
        started = time.monotonic()
        status = self.processes.run(
            [self.torch_python, str(FINISH), "_trace", "request.json", "result.json"], cwd=folder,
            environment=_environment(self.torch_python, self.target), log=log, name=job.graph,
        )  # fmt: skip
        if self.processes.stopped:
            return ""
        said = log.read_text(encoding="utf-8", errors="replace")
        if status != 0 or not (folder / "result.json").is_file():
            failed = explain(status, said)
            return f"{job.graph}: {failed.cause}.\n  cure: {failed.cure}\n  log: {log}"
        if problem := read_json(folder / "result.json")["problem"]:
            return f"{job.graph}: {problem}.\n  cure: a traced file holds the weights: give them by --weights DIR"
        self.scripts.keep(
            job, folder / "traced.pt", seconds=round(time.monotonic() - started, 1), target=self.target,
            compiler=self.versions["neuronx-cc"], nki="", more={"versions": dict(self.versions)},
        )  # fmt: skip
        (folder / "traced.pt").unlink()
        say(f"{job.graph}: traced")
        return ""

    def check(self, graphs: Sequence[str]) -> dict[str, Any]:
        """Run the traced graphs on the device; the report of `device.run_check`."""
        request = {
            "bundle": str(self.bundle.folder), "graphs": list(graphs), "folder": str(self.scripts.folder)
        }  # fmt: skip
        command = [self.torch_python, str(FINISH), "_check_traced"]
        return run_check(
            command,
            request,
            work=self.work,
            processes=self.processes,
            environment=_environment(self.torch_python, None),
        )


def trace_key(
    bundle: Bundle, graph: Mapping[str, Any], arguments: Sequence[str], versions: Mapping[str, str]
) -> str:
    """SHA-256 over everything that decides a traced file; the weights are in it."""
    weights = sorted((entry["name"], entry["sha256"]) for entry in bundle.manifest["weights"]["files"])
    named = {name: versions[name] for name in ("torch", "torch-neuronx", "neuronx-cc")}
    text = json.dumps(["trace", graph["ref_hlo_sha256"], list(arguments), named, weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_current(bundle: Bundle, target: str, graph: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether a traced file's record speaks of the graph, the weights and the plan that the bundle has now."""
    versions = record["versions"]
    arguments = compiler_args(bundle.plan, target, graph["id"], versions["neuronx-cc"])
    return trace_key(bundle, graph, arguments, versions) == record["key"]
