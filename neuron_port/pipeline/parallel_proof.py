"""What only several ranks have to prove: that they answer as one rank does.

The graphs of one rank are lowered from the same checkpoint with the same options, and both run the same prompts on
XLA-CPU in float32: every output is compared, the caches as all ranks have them together. Proof 2 has compared the
ranks with transformers already; this one leaves no room for a difference that both sides of it would share.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from neuron_port.parity.model import OutputJudge
from neuron_port.pipeline.graph_steps import GRAPH_STAGE, GraphSteps, Progress
from neuron_port.pipeline.lowering import lower_all
from neuron_port.pipeline.planning import make_plan
from neuron_port.pipeline.samples import fingerprints
from neuron_port.pipeline.sequence_proof import SequenceProof
from neuron_port.pipeline.workbench import Workbench, code_digest, oracle_name
from neuron_port.port.generate import Session
from neuron_port.store import write_json
from neuron_port.types import CaseResult, ParityReport, digest, from_json, to_json

CODE = (
    "lower",
    "parity",
    "port",
    "walk/cutting",
    "walk/sharding",
    "pipeline/parallel_steps",
    "pipeline/parallel_proof",
)


@dataclass
class OneRankProof:
    """Runs the prompts of a float32 proof of several ranks beside one rank's graphs."""

    ranks: SequenceProof

    @cached_property
    def single(self) -> GraphSteps:
        """The same model's graphs for one rank."""
        several = self.ranks.work
        work = Workbench(replace(several.options, tensor_parallel=1), several.checkpoint, several.store)
        plan, _ = make_plan(work, lambda text, done, total: None)
        graphs, _ = lower_all(work, plan, torch.float32, lambda text, done, total: None)
        return GraphSteps(work=work, plan=plan, dtype=torch.float32, graphs=graphs)

    def reports(self, progress: Progress) -> tuple[list[ParityReport], int]:
        """A report for each graph that a prompt goes through; and how many prompts were run now."""
        cases: dict[str, list[CaseResult]] = {}
        seconds, made = 0.0, 0
        for number in range(len(self.ranks.truths)):
            stored, reused = self._prompt(number, progress)
            made += not reused
            seconds += stored["seconds"]
            for graph, found in stored["cases"].items():
                cases.setdefault(graph, []).extend(from_json(CaseResult, case) for case in found)
        return [
            ParityReport(
                subject=graph,
                oracle=f"{oracle_name()}, float32; the same graph of one rank",
                cases=tuple(found),
                not_proven=("neuronx-cc has not compiled this graph",),
                seconds=seconds / len(cases),
            )
            for graph, found in cases.items()
        ], made

    def _prompt(self, number: int, progress: Progress) -> tuple[dict[str, Any], bool]:
        proof = self.ranks
        truth = proof.truths[number]
        key = digest(
            "beside one rank",
            [
                hashlib.sha256(graph.reference_hlo).hexdigest()
                for graph in (*proof.graphs, *self.single.graphs)
            ],
            proof.work.checkpoint.revision,
            fingerprints(truth.sample),
            list(truth.tokens),
            code_digest(*CODE),
        )

        def write(folder: Path) -> None:
            started = time.monotonic()
            progress(f"prompt {number + 1}, beside one rank", number, len(proof.truths))
            cases = self._compare(number)
            write_json(
                folder / "cases.json", to_json({"cases": cases, "seconds": time.monotonic() - started})
            )

        _, reused = proof.work.store.build(GRAPH_STAGE, key, write)
        return proof.work.store.read_json(GRAPH_STAGE, key, "cases.json"), reused

    def _compare(self, number: int) -> dict[str, list[CaseResult]]:
        """The cases of one prompt by graph: prefill, then the tokens that transformers appended."""
        proof, truth = self.ranks, self.ranks.truths[number]
        several, single = proof.session(proof.xla_steps), proof.session(self.single.xla_steps)
        judge = OutputJudge("xla-cpu", f"prompt {number + 1}")
        bucket = next(spec for place, spec in proof.assignments() if place == number)
        first = [(several.start(truth.sample), single.start(truth.sample))]
        cases = {bucket.id: _beside(judge, first, several, single)}
        following = [
            (several.advance(token), single.advance(token)) for token in truth.tokens[: proof.decode_steps]
        ]
        cases[proof.graphs[-1].spec.id] = _beside(judge, following, several, single)
        return cases


def _beside(
    judge: OutputJudge, logits: list[tuple[torch.Tensor, torch.Tensor]], several: Session, single: Session
) -> list[CaseResult]:
    pairs = {"logits beside one rank": logits}
    for side, name in enumerate(("key caches", "value caches")):
        both = zip(several.caches(), single.caches(), strict=True)
        pairs[f"{name} beside one rank"] = [(ours[side], theirs[side]) for ours, theirs in both]
    return [
        judge(name, [ours for ours, _ in found], [theirs for _, theirs in found], None)
        for name, found in pairs.items()
        if found
    ]
