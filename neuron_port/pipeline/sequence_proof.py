"""Stages `graph-proof` and `model-proof`: whole prompts through the graphs, on XLA-CPU and on the simulator.

Both run the same graphs. On XLA-CPU they run as emitted, references inlined: proof 2. On the simulator the kernels
run in place of the references: proof 3. Every prompt is kept by itself, so an interrupted run loses one at most.
Prompts that share a batch are in batch_proof.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuron_port.parity.model import OracleRun, check_greedy, check_outputs, pooled_r_ratio
from neuron_port.pipeline.graph_steps import (
    GRAPH_STAGE,
    MODEL_STAGE,
    SIMULATOR_CODE,
    XLA_CODE,
    GraphSteps,
    Progress,
    refused,
)
from neuron_port.pipeline.oracle import DECODE_STEPS
from neuron_port.pipeline.samples import fingerprints
from neuron_port.pipeline.workbench import code_digest, oracle_name
from neuron_port.port.generate import Session, Step
from neuron_port.simulator import SimulatorError
from neuron_port.store import write_json
from neuron_port.types import CaseResult, GraphSpec, ParityReport, digest, from_json, to_json


@dataclass
class SequenceProof(GraphSteps):
    """Runs prompts in one dtype; `graphs` are lowered in that dtype, `truths` are float32 and `baselines` in it."""

    truths: Sequence[OracleRun]
    baselines: Sequence[OracleRun] | None  # None in float32

    @property
    def decode_steps(self) -> int:
        return min(DECODE_STEPS, self.work.options.new_tokens - 1)

    def session(self, steps: Sequence[Step], only: GraphSpec | None = None) -> Session:
        """A session over all buckets, or over `only` one."""
        *prefills, decode = steps
        chosen = {
            step.spec.sequence_length: step for step in prefills if only is None or step.spec.id == only.id
        }
        return Session(chosen, decode)

    def graph_reports(self, progress: Progress) -> tuple[list[ParityReport], int]:
        """Proof 2: one report for each graph; and how many prompts were run now."""
        cases: dict[str, list[CaseResult]] = {}
        seconds: dict[str, float] = {}
        made = 0
        for number, bucket in self.assignments():
            stored, reused = self._graph_prompt(number, bucket, progress)
            made += not reused
            for graph, phase in ((bucket, "prefill"), (self.graphs[-1].spec, "decode")):
                cases.setdefault(graph.id, []).extend(from_json(CaseResult, case) for case in stored[phase])
                seconds[graph.id] = seconds.get(graph.id, 0.0) + stored["seconds"] / 2
        return [
            ParityReport(
                subject=name,
                oracle=f"{oracle_name()}, float32",
                cases=(*found, *pooled(found)) if self.baselines is not None else tuple(found),
                not_proven=("neuronx-cc has not compiled this graph", *self._rows_not_compared()),
                seconds=seconds[name],
            )
            for name, found in cases.items()
        ], made

    def _rows_not_compared(self) -> list[str]:
        rows = self.graphs[-1].spec.batch
        if rows == 1:
            return []
        return [f"rows beyond the first of {rows}: all carried the same sequence, and the first was compared"]

    def assignments(self) -> list[tuple[int, GraphSpec]]:
        """Each prompt with the smallest bucket that holds it; buckets that none needs get the first prompt too."""
        buckets = [graph.spec for graph in self.graphs[:-1]]
        lengths = [truth.length for truth in self.truths]
        if buckets[0].fills_bucket:  # a prompt's first tokens fill a bucket, the others follow one by one
            fitting = [[item for item in buckets if item.sequence_length <= length] for length in lengths]
            chosen = [items[-1] if items else buckets[0] for items in fitting]
            return list(enumerate(chosen))
        chosen = [next(item for item in buckets if item.sequence_length >= length) for length in lengths]
        spare = [item for item in buckets if item not in chosen and item.sequence_length >= lengths[0]]
        return [*enumerate(chosen), *((0, bucket) for bucket in spare)]

    def _graph_prompt(
        self, number: int, bucket: GraphSpec, progress: Progress
    ) -> tuple[dict[str, Any], bool]:
        truth = self.truths[number]
        name = f"prompt {number + 1}"
        key = digest(
            [hashlib.sha256(graph.reference_hlo).hexdigest() for graph in self.graphs],
            bucket.id,
            *self.prompt_key(truth),
            code_digest(*XLA_CODE, "pipeline/sequence_proof"),
        )

        def write(folder: Path) -> None:
            started = time.monotonic()
            prefill, decode = check_outputs(
                self.session(self.xla_steps, only=bucket),
                name,
                truth,
                self.baselines[number] if self.baselines else None,
                tier="xla-cpu",
                decode_steps=self.decode_steps,
                progress=lambda done, total: progress(f"{name}, {bucket.id}, {self.dtype_name}", done, total),
            )
            found = {"prefill": prefill, "decode": decode, "seconds": time.monotonic() - started}
            write_json(folder / "cases.json", to_json(found))

        _, reused = self.work.store.build(GRAPH_STAGE, key, write)
        return self.work.store.read_json(GRAPH_STAGE, key, "cases.json"), reused

    def model_report(self, progress: Progress) -> tuple[ParityReport, int]:
        """Proof 3: greedy tokens in float32, R-ratio of every output in 16 bit; and how many prompts were run now."""
        cases: list[CaseResult] = []
        made, seconds = 0, 0.0
        for number in range(len(self.truths)):
            stored, reused = self._model_prompt(number, progress)
            cases += [from_json(CaseResult, case) for case in stored["cases"]]
            seconds += stored["seconds"]
            made += not reused
        if self.baselines is not None:
            cases += pooled(cases)
        what = "greedy" if self.baselines is None else "teacher-forced"
        return ParityReport(
            subject=f"{self.dtype_name} {what}",
            oracle=f"{oracle_name()}, float32",
            cases=tuple(cases),
            not_proven=("no Neuron device has run this model", *self._rows_not_compared()),
            seconds=seconds,
        ), made

    def _model_prompt(self, number: int, progress: Progress) -> tuple[dict[str, Any], bool]:
        truth = self.truths[number]
        key = digest(
            [hashlib.sha256(graph.reference_hlo).hexdigest() for graph in self.graphs],
            self.kernel_digests,
            self.work.options.target,
            *self.prompt_key(truth),
            code_digest(*SIMULATOR_CODE, "pipeline/sequence_proof"),
        )

        def write(folder: Path) -> None:
            started = time.monotonic()
            try:
                cases = self._run_on_simulator(number, progress)
            except SimulatorError as error:
                raise refused(f"prompt {number + 1}, {self.dtype_name}", error) from error
            write_json(
                folder / "cases.json", to_json({"cases": cases, "seconds": time.monotonic() - started})
            )

        _, reused = self.work.store.build(MODEL_STAGE, key, write)
        return self.work.store.read_json(MODEL_STAGE, key, "cases.json"), reused

    def _run_on_simulator(self, number: int, progress: Progress) -> list[CaseResult]:
        name, truth = f"prompt {number + 1}", self.truths[number]
        session = self.session(self.simulator_steps)

        def report(done: int, total: int) -> None:
            progress(f"{name}, {self.dtype_name}", done, total)

        if self.baselines is None:
            return [
                check_greedy(session, name, truth, self.work.decode_text, tier="simulator", progress=report)
            ]
        prefill, decode = check_outputs(
            session,
            name,
            truth,
            self.baselines[number],
            tier="simulator",
            decode_steps=self.decode_steps,
            progress=report,
        )
        return [*named("prefill", prefill), *named("decode", decode)]

    def prompt_key(self, truth: OracleRun) -> tuple[object, ...]:
        """What a prompt's cases depend on besides the graphs and the code."""
        return (
            # no graph says whose part it is given
            [item.shard for graph in self.graphs for item in graph.spec.inputs],
            self.work.checkpoint.revision,
            fingerprints(truth.sample),
            list(truth.tokens),
            self.decode_steps,
            self.dtype_name,
            oracle_name(),
        )


def pooled(cases: Sequence[CaseResult]) -> list[CaseResult]:
    """The R-ratio of each output over all prompts (and phases) of a report."""
    outputs = ("logits", "key caches", "value caches")
    of_output = {output: [case for case in cases if output in case.name] for output in outputs}
    return [pooled_r_ratio(found, output) for output, found in of_output.items() if found]


def named(phase: str, cases: Sequence[CaseResult]) -> list[CaseResult]:
    """The same cases under names that say which phase they belong to."""
    return [replace(case, name=f"{case.name} · {phase}") for case in cases]
