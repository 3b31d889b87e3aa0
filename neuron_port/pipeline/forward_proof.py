"""Proofs 2 and 3 of models that answer in one pass: whole inputs through the forward graphs, every output compared.

On XLA-CPU the graphs run as emitted, references inlined; on the simulator the kernels run in place of the references.
A shorter text is padded and masked as in production, for transformers' own forward too: a model that looks at its last
place (SigLIP) sees the padding there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from neuron_port.errors import UsageError
from neuron_port.execution import simulated_operator, to_numpy
from neuron_port.parity.model import OutputJudge, pooled_r_ratio
from neuron_port.pipeline.lowering import LoweredGraph, export_one
from neuron_port.pipeline.planning import Plan
from neuron_port.pipeline.samples import Sample, fingerprints
from neuron_port.pipeline.sequence_proof import XlaStep, refused
from neuron_port.pipeline.workbench import Workbench, code_digest, oracle_name
from neuron_port.port.generate import Step, padded
from neuron_port.port.run import GraphRunner, WeightBank
from neuron_port.simulator import SimulatorError
from neuron_port.store import write_json
from neuron_port.types import CaseResult, GraphSpec, ParityReport, Tier, digest, from_json, to_json
from neuron_port.walk.families.encoder import ForwardStep

STAGE, GRAPH_STAGE, MODEL_STAGE = "oracle", "graph-proof", "model-proof"
Progress = Callable[[str, int, int], None]


Runs = dict[tuple[int, int], "ForwardRun"]  # by numbers of sample and graph


@dataclass(frozen=True, kw_only=True)
class ForwardRun:
    """What transformers answers to one sample as one graph takes it: inputs and every output by name, one row each."""

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]


def all_runs(
    work: Workbench, specs: Sequence[GraphSpec], progress: Progress
) -> tuple[dict[torch.dtype, Runs], bool]:
    """Every sample in every graph that holds it, in every proof dtype; and whether all were stored already.

    Raises:
        UsageError: no graph holds a sample.
    """
    runs: dict[torch.dtype, Runs] = {}
    all_reused = True
    for dtype in work.proof_dtypes:
        runs[dtype] = {}
        for number in range(len(work.options.prompts)):
            progress(f"sample {number + 1}, {dtype}", number, len(work.options.prompts))
            sample = work.sample(number)
            places = [place for place, spec in enumerate(specs) if _holds(spec, sample)]
            if not places:
                raise UsageError(
                    f"Sample {number + 1} is longer than the largest graph",
                    hint="Convert with larger --buckets.",
                )
            for place in places:
                runs[dtype][number, place], reused = _run(work, sample, specs[place], dtype)
                all_reused &= reused
    return runs, all_reused


def _holds(spec: GraphSpec, sample: Sample) -> bool:
    wanted = {item.name: item.spec.shape for item in spec.inputs if item.role == "input"}
    return all(
        all(own <= size for own, size in zip(sample[name].shape[1:], shape[1:], strict=True))
        for name, shape in wanted.items()
    )


def _run(
    work: Workbench, sample: Sample, spec: GraphSpec, dtype: torch.dtype
) -> tuple[ForwardRun, bool]:
    inputs = {
        item.name: padded(sample[item.name], (1, *item.spec.shape[1:]), sample[item.name].dtype, 1)
        for item in spec.inputs
        if item.role == "input"
    }
    key = digest(
        work.checkpoint.revision,
        fingerprints(inputs),
        str(dtype),
        oracle_name(),
        code_digest("walk/families", "walk/pooling", "checkpoint/weights"),
    )

    def write(folder: Path) -> None:
        model = work.model(dtype)
        step = ForwardStep(model, tuple(inputs), getattr(model, "neuron_port_pooling", None))
        with torch.no_grad():
            outputs = step.answer({name: _cast(tensor, dtype) for name, tensor in inputs.items()})
        whole = {
            name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in outputs.items()
        }
        save_file(whole, folder / "run.safetensors")

    folder, reused = work.store.build(STAGE, key, write)
    return ForwardRun(inputs=inputs, outputs=load_file(folder / "run.safetensors")), reused


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@dataclass
class ForwardProof:
    """Runs samples in one dtype; `graphs` are lowered in that dtype, `truths` are float32 and `baselines` in it."""

    work: Workbench
    plan: Plan
    dtype: torch.dtype
    graphs: Sequence[LoweredGraph]
    truths: Runs
    baselines: Runs | None  # None in float32

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def bank(self) -> WeightBank:
        return WeightBank(lambda name, dtype: self.work.reader.get(name, dtype))

    @cached_property
    def xla_steps(self) -> list[XlaStep]:
        return [XlaStep(graph, self.bank) for graph in self.graphs]

    @cached_property
    def simulator_steps(self) -> list[GraphRunner]:
        target = self.work.options.target
        names = sorted({match.recipe for match in self.plan.matches.matches if match.recipe is not None})
        operators = {name: simulated_operator(self.work.registry[name], target) for name in names}
        steps = [
            GraphRunner(export_one(self.work, self.plan, number, self.dtype), self.bank, operators)
            for number in range(len(self.plan.graphs))
        ]
        if self.dtype is not torch.float32:
            for operator in operators.values():
                operator.share_weights(self.bank.values())
        return steps

    def release(self) -> None:
        """Free the weights and everything bound to them."""
        for name in ("bank", "xla_steps", "simulator_steps"):
            self.__dict__.pop(name, None)

    def graph_reports(self, progress: Progress) -> tuple[list[ParityReport], int]:
        """Proof 2: one report for each graph; and how many samples were run now."""
        reports, made = [], 0
        for place, graph in enumerate(self.graphs):
            cases, seconds, ran = self._all_samples(place, "xla-cpu", progress)
            made += ran
            reports.append(self._report(graph.spec.id, cases, seconds, "neuronx-cc has not compiled this graph"))
        return reports, made

    def model_report(self, progress: Progress) -> tuple[ParityReport, int]:
        """Proof 3: the ported model on every sample, by the smallest graph that holds it."""
        cases, seconds, made = self._all_samples(None, "simulator", progress)
        subject = f"{self.dtype_name} outputs"
        return self._report(subject, cases, seconds, "no Neuron device has run this model"), made

    def _report(self, subject: str, cases: list[CaseResult], seconds: float, open_question: str) -> ParityReport:
        if self.baselines is not None:
            outputs = dict.fromkeys(case.name.split(" · ")[1] for case in cases)
            cases = cases + [
                pooled_r_ratio([case for case in cases if case.name.split(" · ")[1] == output], output)
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
        seconds, made = 0.0, 0
        count = len(self.work.options.prompts)
        for number in range(count):
            chosen = self.smallest(number) if place is None else place
            if (number, chosen) not in self.truths:
                continue
            progress(f"sample {number + 1}, {self.graphs[chosen].spec.id}", number, count)
            stored, reused = self._sample(number, chosen, tier)
            cases += [from_json(CaseResult, case) for case in stored["cases"]]
            seconds += stored["seconds"]
            made += not reused
        return cases, seconds, made

    def smallest(self, number: int) -> int:
        """The first graph that holds the sample."""
        return min(place for sample, place in self.truths if sample == number)

    def _sample(self, number: int, place: int, tier: Tier) -> tuple[dict[str, Any], bool]:
        graph, truth = self.graphs[place], self.truths[number, place]
        kernels = {
            name: self.work.registry[name].kernel.sha256
            for name in {match.recipe for match in self.plan.matches.matches if match.recipe is not None}
        }
        key = digest(
            hashlib.sha256(graph.reference_hlo).hexdigest(),
            tier,
            {} if tier == "xla-cpu" else kernels,
            self.work.options.target,
            self.work.checkpoint.revision,
            fingerprints(truth.inputs),
            self.dtype_name,
            oracle_name(),
            code_digest("lower/execution", "parity", "port", "pipeline/forward_proof")
            if tier == "xla-cpu"
            else code_digest("simulator", "execution", "parity", "port", "pipeline/forward_proof"),
        )

        def write(folder: Path) -> None:
            started = time.monotonic()
            steps: Sequence[Step] = self.xla_steps if tier == "xla-cpu" else self.simulator_steps
            try:
                cases = self._compare(steps[place], number, place, tier)
            except SimulatorError as error:
                raise refused(f"sample {number + 1}, {self.dtype_name}", error) from error
            write_json(
                folder / "cases.json", to_json({"cases": cases, "seconds": time.monotonic() - started})
            )

        stage = GRAPH_STAGE if tier == "xla-cpu" else MODEL_STAGE
        _, reused = self.work.store.build(stage, key, write)
        return self.work.store.read_json(stage, key, "cases.json"), reused

    def _compare(self, step: Step, number: int, place: int, tier: Tier) -> list[CaseResult]:
        truth = self.truths[number, place]
        baseline = self.baselines[number, place] if self.baselines is not None else None
        outputs, _ = step(_graph_inputs(step.spec, truth), ())
        judge = OutputJudge(tier, f"sample {number + 1}")
        cases = []
        for item, ours in zip(step.spec.outputs, outputs, strict=True):
            expected = truth.outputs[item.name]
            own = ours if ours.shape == expected.shape else ours[: expected.shape[0]]
            noise = [baseline.outputs[item.name]] if baseline is not None else None
            cases.append(judge(item.name, [own], [expected], noise))
        return [replace(case, detail="") if case.passed else case for case in cases]


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
    arrays = {
        name: to_numpy(tensor) for name, tensor in zip(names, _graph_inputs(spec, truth), strict=True)
    }
    for item in spec.outputs:
        answer = truth.outputs[item.name]
        if tuple(answer.shape[1:]) == tuple(item.spec.shape[1:]):
            arrays[item.name] = to_numpy(answer.expand(item.spec.shape).contiguous())
    return {spec.id: arrays}
