"""Proofs 2 and 3 of models that answer in one pass: whole inputs through the forward graphs, every output compared.

On XLA-CPU the graphs run as emitted, references inlined; on the simulator the kernels run in place of the references.
What transformers answers is in `forward_runs`. Embeddings are judged by direction and by the order of their
similarities too.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from neuron_port.execution import to_numpy
from neuron_port.parity.embeddings import (
    FEWEST_SAMPLES,
    check_direction,
    check_ranking,
)
from neuron_port.parity.model import OutputJudge, pooled_r_ratio
from neuron_port.pipeline.forward_runs import ForwardRun, Runs
from neuron_port.pipeline.graph_steps import (
    GRAPH_STAGE,
    MODEL_STAGE,
    SIMULATOR_CODE,
    XLA_CODE,
    GraphSteps,
    Progress,
    refused,
)
from neuron_port.pipeline.samples import fingerprints
from neuron_port.pipeline.workbench import code_digest, oracle_name
from neuron_port.port.generate import Step
from neuron_port.simulator import SimulatorError
from neuron_port.store import write_json
from neuron_port.types import CaseResult, GraphSpec, ParityReport, Tier, digest, from_json, to_json


@dataclass
class ForwardProof(GraphSteps):
    """Runs samples in one dtype; `graphs` are lowered in that dtype, `truths` are float32 and `baselines` in it."""

    truths: Runs
    baselines: Runs | None  # None in float32

    def graph_reports(self, progress: Progress) -> tuple[list[ParityReport], int]:
        """Proof 2: one report for each graph; and how many samples were run now."""
        reports, made = [], 0
        for place, graph in enumerate(self.graphs):
            cases, seconds, ran = self._all_samples(place, "xla-cpu", progress)
            made += ran
            reports.append(
                self._report(graph.spec.id, cases, seconds, "neuronx-cc has not compiled this graph")
            )
        return reports, made

    def model_report(self, progress: Progress) -> tuple[ParityReport, int]:
        """Proof 3: the ported model on every sample, by the smallest graph that holds it."""
        cases, seconds, made = self._all_samples(None, "simulator", progress)
        subject = f"{self.dtype_name} outputs"
        return self._report(subject, cases, seconds, "no Neuron device has run this model"), made

    def _report(
        self, subject: str, cases: list[CaseResult], seconds: float, open_question: str
    ) -> ParityReport:
        if self.baselines is not None:
            distances = [case for case in cases if "r_ratio" in case.metrics]
            outputs = dict.fromkeys(case.name.split(" · ")[1] for case in distances)
            cases = cases + [
                pooled_r_ratio([case for case in distances if case.name.split(" · ")[1] == output], output)
                for output in outputs
            ]
        return ParityReport(
            subject=subject,
            oracle=f"{oracle_name()}, float32",
            cases=tuple(cases),
            not_proven=(open_question,),
            seconds=seconds,
        )

    def _all_samples(
        self, place: int | None, tier: Tier, progress: Progress
    ) -> tuple[list[CaseResult], float, int]:
        cases: list[CaseResult] = []
        vectors: dict[tuple[int, int], dict[str, Any]] = {}
        seconds, made = 0.0, 0
        count = len(self.work.options.prompts)
        for number in range(count):
            chosen = self.smallest(number) if place is None else place
            if (number, chosen) not in self.truths:
                continue
            progress(f"sample {number + 1}, {self.graphs[chosen].spec.id}", number, count)
            stored, reused = self._sample(number, chosen, tier)
            cases += [from_json(CaseResult, case) for case in stored["cases"]]
            vectors[number, chosen] = stored["embeddings"]
            seconds += stored["seconds"]
            made += not reused
        return cases + self._rankings(vectors, tier), seconds, made

    def _rankings(self, vectors: dict[tuple[int, int], dict[str, Any]], tier: Tier) -> list[CaseResult]:
        """A case for each embedding: the order of the similarities between all samples, each in its graph."""
        if len(vectors) < FEWEST_SAMPLES:
            return []

        def rows(runs: Runs, output: str) -> torch.Tensor:
            return torch.stack([runs[key].embeddings[output].double().flatten() for key in vectors])

        return [
            check_ranking(
                output,
                torch.tensor([found[output] for found in vectors.values()], dtype=torch.float64),
                rows(self.truths, output),
                rows(self.baselines, output) if self.baselines is not None else None,
                dtype=self.dtype,
                tier=tier,
                texts=[self._text(number) for number, _ in vectors],
            )
            for output in next(iter(vectors.values()))
        ]

    def _text(self, number: int) -> str:
        """What a sample is, for people: its text, or its number where it was made up."""
        known = self.work.takes_text and self.work.tokenizer is not None
        return self.work.options.prompts[number].text if known else f"sample {number + 1}"

    def smallest(self, number: int) -> int:
        """The first graph that holds the sample."""
        return min(place for sample, place in self.truths if sample == number)

    def _sample(self, number: int, place: int, tier: Tier) -> tuple[dict[str, Any], bool]:
        graph, truth = self.graphs[place], self.truths[number, place]
        key = digest(
            hashlib.sha256(graph.reference_hlo).hexdigest(),
            tier,
            {} if tier == "xla-cpu" else self.kernel_digests,
            self.work.options.target,
            self.work.checkpoint.revision,
            fingerprints(truth.inputs),
            self._text(number),
            self.dtype_name,
            oracle_name(),
            code_digest(*(XLA_CODE if tier == "xla-cpu" else SIMULATOR_CODE), "pipeline/forward_proof"),
        )

        def write(folder: Path) -> None:
            started = time.monotonic()
            steps: Sequence[Step] = self.xla_steps if tier == "xla-cpu" else self.simulator_steps
            try:
                cases, vectors = self._compare(steps[place], number, place, tier)
            except SimulatorError as error:
                raise refused(f"sample {number + 1}, {self.dtype_name}", error) from error
            found = {"cases": cases, "embeddings": vectors, "seconds": time.monotonic() - started}
            write_json(folder / "cases.json", to_json(found))

        stage = GRAPH_STAGE if tier == "xla-cpu" else MODEL_STAGE
        _, reused = self.work.store.build(stage, key, write)
        return self.work.store.read_json(stage, key, "cases.json"), reused

    def _compare(
        self, step: Step, number: int, place: int, tier: Tier
    ) -> tuple[list[CaseResult], dict[str, list[float]]]:
        """The cases of one sample in one graph, and its embeddings by output."""
        truth = self.truths[number, place]
        baseline = self.baselines[number, place] if self.baselines is not None else None
        outputs, _ = step(_graph_inputs(step.spec, truth), ())
        names = [item.name for item in step.spec.outputs]
        rows = {name: _rows(output, truth.outputs[name]) for name, output in zip(names, outputs, strict=True)}
        ours = {name: own[0] for name, own in rows.items()}
        judge = OutputJudge(tier, f"sample {number + 1}")
        cases = []
        for name, own in rows.items():
            noise = [baseline.outputs[name]] * len(own) if baseline is not None else None
            case = judge(name, own, [truth.outputs[name]] * len(own), noise)
            cases.append(replace(case, detail="") if case.passed else case)
        for name, expected in truth.embeddings.items():
            cases.append(
                check_direction(
                    f"sample {number + 1} · {name}",
                    ours[name],
                    expected,
                    baseline.embeddings[name] if baseline is not None else None,
                    dtype=self.dtype,
                    tier=tier,
                    text=self._text(number),
                )
            )
        return cases, {name: ours[name].double().flatten().tolist() for name in truth.embeddings}


def _rows(output: torch.Tensor, expected: torch.Tensor) -> list[torch.Tensor]:
    """A graph's output in parts that each answer one sample: every row of its batch carries the same."""
    parts = [output]
    for axis, size in enumerate(expected.shape):
        parts = [piece for part in parts for piece in part.split(size, axis)]
    return parts


def _graph_inputs(spec: GraphSpec, run: ForwardRun) -> list[torch.Tensor]:
    """The run's inputs in the graph's order, dtypes and batch: every row of it carries the same."""
    return [
        run.inputs[item.name].to(getattr(torch, item.spec.dtype)).expand(item.spec.shape).contiguous()
        for item in spec.inputs
        if item.role == "input"
    ]


def golden_arrays(proof: ForwardProof) -> dict[str, dict[str, Any]]:
    """The first sample's inputs as its graph takes them, and transformers' float32 answers."""
    place = proof.smallest(0)
    spec, truth = proof.graphs[place].spec, proof.truths[0, place]
    names = [item.name for item in spec.inputs if item.role == "input"]
    arrays = {name: to_numpy(tensor) for name, tensor in zip(names, _graph_inputs(spec, truth), strict=True)}
    for item in spec.outputs:
        answer = truth.outputs[item.name]
        if tuple(answer.shape[1:]) == tuple(item.spec.shape[1:]):
            arrays[item.name] = to_numpy(answer.expand(item.spec.shape).contiguous())
    return {spec.id: arrays}
