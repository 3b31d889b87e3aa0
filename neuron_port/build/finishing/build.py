"""Step 4b: every graph becomes a NEFF in the bundle; what is there already, whole, is not compiled again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .compiler import Job, Outcome, Processes, compile_graph, graph_argv, job_key
from .environment import Bundle, Compiler
from .files import read_json, say, sha256_of, write_json
from .kernels import KernelError, materialise
from .tables import KERNEL_CODES


@dataclass
class Build:
    """One run: what to finish and with what."""

    bundle: Bundle
    target: str
    compiler: Compiler
    jobs: int
    work: Path
    cache: Path | None
    nki_python: str
    requested_kernels: str
    kernels: bool
    kernels_reason: str
    nki_version: str
    processes: Processes = field(default_factory=Processes)

    def neff(self, graph: str) -> Path:
        return self.bundle.folder / "neff" / self.target / f"{graph}.neff"

    def job(self, graph: Mapping[str, Any], *, kernels: bool, reason: str) -> Job:
        """The graph as it would be compiled; with kernels, `hlo` still holds placeholders."""
        name = f"graphs/{graph['id']}/{'graph.hlo.pb' if kernels else 'graph.ref.hlo.pb'}"
        hlo = (self.bundle.folder / name).read_bytes()
        argv = graph_argv(self.bundle.plan, self.target, graph["id"], self.compiler)
        hashes = [kernel["sha256"] for kernel in self.bundle.manifest["kernels"]] if kernels else []
        key = job_key(hlo, argv, self.compiler.version, hashes, self.nki_version if kernels else "")
        return Job(graph["id"], hlo, name, argv, key, kernels, reason)

    def first_job(self, graph: Mapping[str, Any]) -> Job:
        if self.kernels and not graph["kernels"]:
            return self.job(graph, kernels=False, reason="this graph uses no kernels")
        return self.job(graph, kernels=self.kernels, reason=self.kernels_reason)

    def work_of(self, graph: str) -> Path:
        return self.work / self.target / graph

    def finish_graph(self, graph: Mapping[str, Any]) -> str:
        """Compile one graph unless its NEFF is already there; return "" or the sentence of its failure."""
        job = self.first_job(graph)
        if self.reuse(job):
            return ""
        if job.kernels:
            try:
                hlo = materialise(
                    self.bundle, job.hlo, target=self.target, compiler=self.compiler,
                    nki_python=self.nki_python,
                    work=self.work_of(job.graph),
                )  # fmt: skip
                job = Job(job.graph, hlo, job.hlo_name, job.argv, job.key, True, job.kernels_reason)
            except KernelError as failure:
                say(f"{job.graph}: {failure}; the compiler-lowered twin is used instead")
                job = self.job(graph, kernels=False, reason=str(failure))
                if self.reuse(job):
                    return ""
        outcome = self.compile(job)
        if (
            not outcome.ok
            and job.kernels
            and self.requested_kernels == "auto"
            and set(outcome.codes) & set(KERNEL_CODES)
        ):
            say(f"{job.graph}: {outcome.cause}; the compiler-lowered twin is used instead")
            job = self.job(graph, kernels=False, reason=f"neuronx-cc refused the kernels: {outcome.cause}")
            outcome = Outcome(True, 0) if self.reuse(job) else self.compile(job)
        if outcome.ok or self.processes.stopped:
            return ""
        where = self.work_of(job.graph) / "log-neuron-cc.txt"
        return f"{job.graph}: {outcome.cause}.\n  cure: {outcome.cure}\n  log: {where}"

    def compile(self, job: Job) -> Outcome:
        form = f"with NKI kernels ({job.kernels_reason})" if job.kernels else "compiler-lowered twin"
        say(f"{job.graph}: compiling for {self.target}, {form}")
        work = self.work_of(job.graph)
        work.mkdir(parents=True, exist_ok=True)
        outcome = compile_graph(
            job, compiler=self.compiler, target=self.target, work=work, processes=self.processes
        )
        if outcome.ok:
            self.keep(job, work / "graph.neff", seconds=outcome.seconds)
            say(f"{job.graph}: compiled in {outcome.seconds:.0f} s")
        return outcome

    def keep(self, job: Job, neff: Path, *, seconds: float) -> None:
        """Move a finished NEFF into the bundle: the file first, its record last."""
        destination = self.neff(job.graph)
        destination.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "graph": job.graph, "target": self.target, "sha256": sha256_of(neff),
            "bytes": neff.stat().st_size,
            "key": job.key, "hlo": job.hlo_name, "kernels": job.kernels, "kernels_reason": job.kernels_reason,
            "nki": self.nki_version if job.kernels else None, "compiler": self.compiler.version,
            "argv": list(job.argv), "seconds": seconds,
        }  # fmt: skip
        if self.cache is not None:
            self.cache.mkdir(parents=True, exist_ok=True)
            _copy_whole(neff, self.cache / f"{job.key}.neff")
            write_json(self.cache / f"{job.key}.json", record)
        destination.with_suffix(".json").unlink(missing_ok=True)
        _copy_whole(neff, destination)
        for name in ("log-neuron-cc.txt", "command.txt"):
            if (neff.parent / name).is_file():
                _copy_whole(neff.parent / name, destination.with_name(f"{job.graph}.{name}"))
        write_json(destination.with_suffix(".json"), record)
        if neff.is_relative_to(self.work):
            neff.unlink()

    def reuse(self, job: Job) -> bool:
        """Whether the NEFF for exactly this job is in the bundle or the cache, whole; says so."""
        mine = self.neff(job.graph)
        if is_whole(mine, job.key):
            say(f"{job.graph}: already compiled, skipped")
            return True
        if mine.is_file() and recorded_key(mine) == job.key:
            say(f"{job.graph}: its NEFF does not match its record (truncated or changed): compiled again")
        if self.cache is not None and is_whole(self.cache / f"{job.key}.neff", job.key):
            record = read_json(self.cache / f"{job.key}.json")
            mine.parent.mkdir(parents=True, exist_ok=True)
            mine.with_suffix(".json").unlink(missing_ok=True)
            _copy_whole(self.cache / f"{job.key}.neff", mine)
            write_json(
                mine.with_suffix(".json"), record | {"graph": job.graph, "kernels_reason": job.kernels_reason}
            )
            say(f"{job.graph}: taken from the cache")
            return True
        return False


def _copy_whole(source: Path, destination: Path) -> None:
    aside = destination.with_name(f".{destination.name}.{os.getpid()}")
    shutil.copyfile(source, aside)
    aside.replace(destination)


def recorded_key(neff: Path) -> str | None:
    try:
        return str(read_json(neff.with_suffix(".json"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no record, or one cut off by a crash: the NEFF is compiled again


def is_whole(neff: Path, key: str) -> bool:
    return (
        neff.is_file()
        and recorded_key(neff) == key
        and sha256_of(neff) == read_json(neff.with_suffix(".json"))["sha256"]
    )


def compile_all(build: Build, graphs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Finish the graphs, some at once; return the failures. An interrupt ends the compilers too."""
    failures = []
    with ThreadPoolExecutor(max_workers=build.jobs) as pool:
        running = {pool.submit(build.finish_graph, graph): graph["id"] for graph in graphs}
        try:
            for done in as_completed(running):
                if sentence := done.result():
                    say(sentence)
                    failures.append(sentence)
        except BaseException:  # an interrupt, or a fault of ours: no compiler may be left running behind
            build.processes.stop()
            for waiting in running:
                waiting.cancel()
            raise
    return failures
