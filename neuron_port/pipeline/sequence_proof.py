"""Stages `graph-proof` and `model-proof`: whole prompts through the graphs, on XLA-CPU and on the simulator.

Both run the same graphs. On XLA-CPU they run as emitted, references inlined: proof 2. On the simulator the kernels
run in place of the references: proof 3. Every prompt is kept by itself, so an interrupted run loses one at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from neuron_port.execution import simulated_operator, to_numpy, to_torch
from neuron_port.lower import XlaExecutable
from neuron_port.parity.model import OracleRun, check_greedy, check_outputs, pooled_r_ratio
from neuron_port.pipeline.lowering import LoweredGraph, export_one
from neuron_port.pipeline.oracle import DECODE_STEPS
from neuron_port.pipeline.planning import Plan
from neuron_port.pipeline.workbench import Workbench, code_digest, oracle_name
from neuron_port.port.generate import Session, Step
from neuron_port.port.run import GraphRunner, WeightBank
from neuron_port.store import write_json
from neuron_port.types import CaseResult, GraphSpec, ParityReport, digest, from_json, to_json

GRAPH_STAGE, MODEL_STAGE = "graph-proof", "model-proof"
Progress = Callable[[str, int, int], None]


class XlaStep:
    """An emitted graph on XLA-CPU with its weights bound, called like a step."""

    def __init__(self, graph: LoweredGraph, bank: WeightBank) -> None:
        self.spec: GraphSpec = graph.spec
        weights = {
            item.name: graph.derived[item.source.removeprefix("derived:")]
            if item.source is not None and item.source.startswith("derived:")
            else to_numpy(bank.get(item))
            for item in graph.spec.inputs
            if item.role == "weight"
        }
        self._executable = XlaExecutable(graph.reference_hlo).bind(weights)

    def __call__(
        self, input_ids: torch.Tensor, positions: torch.Tensor, caches: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits, *updated = self._executable(*(to_numpy(item) for item in (input_ids, positions, *caches)))
        return to_torch(logits), [to_torch(item) for item in updated]


@dataclass
class SequenceProof:
    """Runs prompts in one dtype; `graphs` are lowered in that dtype, `truths` are float32 and `baselines` in it."""

    work: Workbench
    plan: Plan
    dtype: torch.dtype
    graphs: Sequence[LoweredGraph]
    truths: Sequence[OracleRun]
    baselines: Sequence[OracleRun] | None  # None in float32

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def decode_steps(self) -> int:
        return min(DECODE_STEPS, self.work.options.new_tokens - 1)

    @cached_property
    def bank(self) -> WeightBank:
        return WeightBank(lambda name, dtype: self.work.reader.get(name, dtype))

    @cached_property
    def xla_steps(self) -> list[XlaStep]:
        return [XlaStep(graph, self.bank) for graph in self.graphs]

    @cached_property
    def simulator_steps(self) -> list[GraphRunner]:
        """The graphs with every kernel on the simulator; weights are brought into its form once."""
        target = self.work.options.target
        names = {match.recipe for match in self.plan.matches.matches if match.recipe is not None}
        operators = {name: simulated_operator(self.work.registry[name], target) for name in sorted(names)}
        steps = [
            GraphRunner(export_one(self.work, self.plan, graph, self.dtype), self.bank, operators)
            for graph in self.plan.graphs
        ]
        if self.dtype is not torch.float32:
            for operator in operators.values():
                operator.share_weights(self.bank.values())
        return steps

    def release(self) -> None:
        """Free the weights and everything bound to them."""
        for name in ("bank", "xla_steps", "simulator_steps"):
            self.__dict__.pop(name, None)

    def session(self, steps: Sequence[Step]) -> Session:
        *prefills, decode = steps
        return Session({step.spec.sequence_length: step for step in prefills}, decode)

    def graph_reports(self, progress: Progress) -> tuple[list[ParityReport], int]:
        """Proof 2: one report for each graph; and how many prompts were run now."""
        cases: dict[str, list[CaseResult]] = {}
        made = 0
        for number, truth in enumerate(self.truths):
            prefill, decode, reused = self._graph_prompt(number, truth, progress)
            made += not reused
            cases.setdefault(self._bucket_id(truth), []).extend(prefill)
            cases.setdefault(self.graphs[-1].spec.id, []).extend(decode)
        if self.baselines is not None:
            cases = {name: [*found, *_pooled(found)] for name, found in cases.items()}
        untouched = [graph.spec.id for graph in self.graphs if graph.spec.id not in cases]
        missing = tuple(f"graph {name} was reached by no prompt" for name in untouched)
        return [
            ParityReport(
                subject=name,
                oracle=f"{oracle_name()}, float32",
                cases=tuple(found),
                not_proven=("neuronx-cc has not compiled this graph", *missing),
            )
            for name, found in cases.items()
        ], made

    def _bucket_id(self, truth: OracleRun) -> str:
        fits = [g.spec for g in self.graphs[:-1] if g.spec.sequence_length >= len(truth.prompt_ids)]
        return fits[0].id if fits else self.graphs[0].spec.id

    def _graph_prompt(
        self, number: int, truth: OracleRun, progress: Progress
    ) -> tuple[list[CaseResult], list[CaseResult], bool]:
        key = digest(
            [hashlib.sha256(graph.reference_hlo).hexdigest() for graph in self.graphs],
            *self._prompt_key(truth),
            code_digest("lower/execution", "parity", "port"),
        )

        def write(folder: Path) -> None:
            prefill, decode = check_outputs(
                self.session(self.xla_steps),
                f"prompt {number + 1}",
                truth,
                self.baselines[number] if self.baselines else None,
                tier="xla-cpu",
                decode_steps=self.decode_steps,
                progress=lambda done, total: progress(f"prompt {number + 1}, {self.dtype_name}", done, total),
            )
            write_json(folder / "cases.json", to_json({"prefill": prefill, "decode": decode}))

        _, reused = self.work.store.build(GRAPH_STAGE, key, write)
        stored = self.work.store.read_json(GRAPH_STAGE, key, "cases.json")
        prefill, decode = (
            [from_json(CaseResult, case) for case in stored[phase]] for phase in ("prefill", "decode")
        )
        return prefill, decode, reused

    def model_report(self, progress: Progress) -> tuple[ParityReport, int]:
        """Proof 3: greedy tokens in float32, R-ratio of every output in 16 bit; and how many prompts were run now."""
        cases: list[CaseResult] = []
        made = 0
        for number, truth in enumerate(self.truths):
            found, reused = self._model_prompt(number, truth, progress)
            cases += found
            made += not reused
        if self.baselines is not None:
            cases += _pooled(cases)
        what = "greedy" if self.baselines is None else "teacher-forced"
        return ParityReport(
            subject=f"{self.dtype_name} {what}",
            oracle=f"{oracle_name()}, float32",
            cases=tuple(cases),
            not_proven=("no Neuron device has run this model",),
        ), made

    def _model_prompt(
        self, number: int, truth: OracleRun, progress: Progress
    ) -> tuple[list[CaseResult], bool]:
        kernels = {name: found.kernel.sha256 for name, found in self.work.registry.items()}
        key = digest(
            [hashlib.sha256(graph.reference_hlo).hexdigest() for graph in self.graphs],
            kernels,
            self.work.options.target,
            *self._prompt_key(truth),
            code_digest("simulator", "execution", "parity", "port"),
        )
        name = f"prompt {number + 1}"

        def report(done: int, total: int) -> None:
            progress(f"{name}, {self.dtype_name}", done, total)

        def write(folder: Path) -> None:
            session = self.session(self.simulator_steps)
            if self.baselines is None:
                cases = [
                    check_greedy(
                        session, name, truth, self.work.decode_text, tier="simulator", progress=report
                    )
                ]
            else:
                prefill, decode = check_outputs(
                    session,
                    name,
                    truth,
                    self.baselines[number],
                    tier="simulator",
                    decode_steps=self.decode_steps,
                    progress=report,
                )
                cases = [*_named("prefill", prefill), *_named("decode", decode)]
            write_json(folder / "cases.json", to_json(cases))

        _, reused = self.work.store.build(MODEL_STAGE, key, write)
        stored = self.work.store.read_json(MODEL_STAGE, key, "cases.json")
        return [from_json(CaseResult, case) for case in stored], reused

    def _prompt_key(self, truth: OracleRun) -> tuple[object, ...]:
        return (
            self.work.checkpoint.revision,
            list(truth.prompt_ids),
            list(truth.tokens),
            self.dtype_name,
            oracle_name(),
        )


def _pooled(cases: Sequence[CaseResult]) -> list[CaseResult]:
    """The R-ratio of each output over all prompts (and phases) of a report."""
    outputs = ("logits", "key caches", "value caches")
    return [pooled_r_ratio([case for case in cases if output in case.name], output) for output in outputs]


def _named(phase: str, cases: Sequence[CaseResult]) -> list[CaseResult]:
    """The same cases under names that say which phase they belong to."""
    return [replace(case, name=f"{case.name} · {phase}") for case in cases]
