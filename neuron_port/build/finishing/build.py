"""Step 4b: every graph becomes a NEFF in the bundle; what is there already, whole, is not compiled again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .compiler import Outcome, compile_graph
from .environment import Bundle, Compiler
from .error_codes import KERNEL_CODES
from .files import say
from .hlo import Placeholder, placeholders
from .hlo_edit import settle, single_call
from .jobs import Choice, Choices, Job, by_reason, chosen, job_of
from .kernels import Workshop
from .neffs import Neffs
from .processes import Processes


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
    insists: bool  # --kernels on: a kernel that cannot be had fails its graph
    kernels: bool
    kernels_reason: str
    nki_version: str
    retry_kernels: bool = False
    processes: Processes = field(default_factory=Processes)

    @property
    def neffs(self) -> Neffs:
        return Neffs(self.bundle.folder / "neff" / self.target, self.cache)

    def work_of(self, graph: str) -> Path:
        return self.work / self.target / graph

    def wanted(self, graph: Mapping[str, Any]) -> Choices:
        """What was asked for, before anything is tried: by kernel of the graph."""
        targets = {kernel["name"]: kernel["targets"] for kernel in self.bundle.manifest["kernels"]}

        def choice(name: str) -> Choice:
            if self.kernels and self.target not in targets.get(name, ()):
                return Choice(False, f"the kernel is not meant for {self.target}")
            return Choice(self.kernels, self.kernels_reason)

        return {name: choice(name) for name in graph["kernels"]}

    def job(self, graph: Mapping[str, Any], choices: Choices) -> Job:
        return job_of(
            self.bundle, self.target, graph, choices=choices, wanted=self.wanted(graph),
            compiler=self.compiler.version, nki=self.nki_version,
        )  # fmt: skip

    def finish_graph(self, graph: Mapping[str, Any]) -> str:
        """Compile one graph unless its NEFF is already there; return "" or the sentence of its failure.

        A kernel that nki cannot compile, or that neuronx-cc refuses, is left to the compiler and the graph is
        tried again, so that each costs itself only.
        """
        choices = self.wanted(graph)
        if self.neffs.reuse(self.job(graph, choices), remembered=not self.retry_kernels):
            return ""
        module = (self.bundle.folder / "graphs" / graph["id"] / "graph.hlo.pb").read_bytes()
        calls = placeholders(module)
        workshop = Workshop(
            self.bundle, target=self.target, compiler=self.compiler, nki_python=self.nki_python,
            work=self.work_of(graph["id"]), processes=self.processes,
        )  # fmt: skip
        while True:
            native = set(chosen(choices))
            workshop.compile([call for call in calls if call.kernel in native])
            refused = {name: reason for name, reason in workshop.refusals.items() if name in native}
            outcome = None
            if not refused:
                job = self.job(graph, choices)
                if native != set(chosen(self.wanted(graph))) and self.neffs.reuse(job):
                    return ""
                outcome = self.compile(job, module, calls, workshop)
                if outcome.ok or self.processes.stopped:
                    return ""
                refused = self.culprits(job, outcome, module, calls, workshop)
            if self.processes.stopped:
                return ""
            if outcome is not None and (not refused or self.insists):
                where = self.work_of(graph["id"]) / "log-neuron-cc.txt"
                return f"{graph['id']}: {outcome.cause}.\n  cure: {outcome.cure}\n  log: {where}"
            if self.insists:
                said = "; ".join(
                    f"{', '.join(names)}: {reason}" for reason, names in by_reason(refused).items()
                )
                return (
                    f"{graph['id']}: --kernels on, but {said}.\n"
                    "  cure: finish with --kernels auto or off, which leave such a kernel to the compiler"
                )
            for reason, names in by_reason(refused).items():
                say(f"{graph['id']}: {', '.join(names)} left to the compiler: {reason}")
            choices = {**choices, **{name: Choice(False, reason) for name, reason in refused.items()}}

    def compile(self, job: Job, module: bytes, calls: Sequence[Placeholder], workshop: Workshop) -> Outcome:
        native = chosen(job.choices)
        with_nki = f"NKI kernels {', '.join(native)}" if native else "compiler-lowered twin, no NKI kernel"
        say(f"{job.graph}: compiling for {self.target} ({with_nki})")
        ids = [call.instruction.id for call in calls if call.kernel in native]
        hlo = settle(module, {number: workshop.configs[number] for number in ids})
        work = self.work_of(job.graph)
        outcome = compile_graph(
            job, hlo, compiler=self.compiler, target=self.target, work=work, processes=self.processes
        )
        if outcome.ok:
            self.neffs.keep(
                job, work / "graph.neff", seconds=outcome.seconds, target=self.target,
                compiler=self.compiler.version, nki=self.nki_version,
            )  # fmt: skip
            (work / "graph.neff").unlink()
            say(f"{job.graph}: compiled in {outcome.seconds:.0f} s")
        return outcome

    def culprits(
        self, job: Job, outcome: Outcome, module: bytes, calls: Sequence[Placeholder], workshop: Workshop
    ) -> dict[str, str]:
        """Kernels that a refusal is about, with the reason; empty when it is not about kernels.

        In this order: the graph's only kernel; those that the compiler's error names, unless it names all;
        those that it refuses in a graph of one call; all of them, when each passes alone.
        """
        native = set(chosen(job.choices))
        if not native or not set(outcome.codes) & set(KERNEL_CODES):
            return {}
        said = f"neuronx-cc refused it: {outcome.cause}"
        if len(native) == 1:
            return dict.fromkeys(native, said)
        named = named_in_errors(outcome.log, native)
        if named and named != native:
            return dict.fromkeys(named, said)
        say(f"{job.graph}: {outcome.cause}; it is not said which kernel is meant: each is compiled alone")
        failed: dict[str, str] = {}
        for call in calls:
            if call.kernel in native - failed.keys() and not self.processes.stopped:
                alone = self.compile_alone(job, call, module, workshop.configs[call.instruction.id])
                if not alone.ok:
                    failed[call.kernel] = f"neuronx-cc refused it, compiled alone: {alone.cause}"
        return failed or dict.fromkeys(
            native, f"{said}; it passes alone, and so do the others: none is used in this graph"
        )

    def compile_alone(self, job: Job, call: Placeholder, module: bytes, config: bytes) -> Outcome:
        """Compile a graph that does nothing but one kernel call."""
        return compile_graph(
            replace(job, graph=f"{job.graph}, {call.kernel} alone"),
            single_call(module, call.instruction, config), compiler=self.compiler, target=self.target,
            work=self.work_of(job.graph) / "alone", processes=self.processes,
        )  # fmt: skip


def named_in_errors(log: str, names: set[str]) -> set[str]:
    """Which of the names stand as words in those lines of a compiler's log that speak of an error."""
    errors = [line for line in log.splitlines() if re.search(r"error|NCC_", line, re.IGNORECASE)]
    return {
        name for name in names if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", line) for line in errors)
    }
