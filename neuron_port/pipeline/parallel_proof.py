"""What only several ranks have to prove: that they answer as one rank does.

The graphs of one rank are lowered from the same checkpoint with the same options, and both run the same prompts on
XLA-CPU in float32, through the same buckets and in the same rows: logits and caches are compared, the caches as all
ranks have them together. Proof 2 has compared the ranks with transformers already; this one leaves no room for a
difference that both sides of it would share.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from neuron_port.parity.model import OutputJudge
from neuron_port.pipeline.batch_proof import BatchProof
from neuron_port.pipeline.batch_runs import Recording, Visit
from neuron_port.pipeline.graph_steps import GRAPH_STAGE, XLA_CODE, GraphSteps, Progress
from neuron_port.pipeline.lowering import lower_all
from neuron_port.pipeline.planning import make_plan
from neuron_port.pipeline.sequence_proof import SequenceProof
from neuron_port.pipeline.workbench import Workbench, code_digest, oracle_name
from neuron_port.port.generate import Step
from neuron_port.store import write_json
from neuron_port.types import CaseResult, GraphSpec, ParityReport, digest, from_json, to_json

_CODE = (
    *XLA_CODE,
    "pipeline/sequence_proof",
    "pipeline/batch_proof",
    "pipeline/batch_runs",
    "pipeline/parallel_proof",
)

# The steps of all graphs, prefill first -> each prompt's prefill graph, and what it got.
Record = Callable[[Sequence[Step]], list[tuple[GraphSpec, Recording]]]


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
        """A report for each graph that a prompt goes through; and how many runs were made now."""
        cases: dict[str, list[CaseResult]] = {}
        seconds, made = 0.0, 0
        for depends_on, record in self._runs(progress):
            stored, reused = self._kept(depends_on, record)
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

    def _runs(self, progress: Progress) -> list[tuple[object, Record]]:
        """What its cases depend on, and what runs at once: a prompt in a bucket, or all prompts in a batch."""
        proof = self.ranks
        if isinstance(proof, BatchProof):
            return [(proof.prompt_keys, partial(proof.recordings, progress=progress))]
        return [
            (
                [bucket.id, *proof.prompt_key(proof.truths[number])],
                partial(self._alone, number, bucket, progress),
            )
            for number, bucket in proof.assignments()
        ]

    def _alone(
        self, number: int, bucket: GraphSpec, progress: Progress, steps: Sequence[Step]
    ) -> list[tuple[GraphSpec, Recording]]:
        """One prompt through one bucket, then the tokens that transformers appended."""
        proof, truth = self.ranks, self.ranks.truths[number]
        progress(f"prompt {number + 1}, {bucket.id}, beside one rank", number, len(proof.truths))
        session = proof.session(steps, only=bucket)
        heard = Recording(
            Visit(prompt=number, ids=truth.prompt_ids, row=0, steps=proof.decode_steps, forced=truth.tokens)
        )
        heard.hear(session.start(truth.sample), session.caches)
        for token in truth.tokens[: proof.decode_steps]:
            heard.hear(session.advance(token), session.caches)
        return [(bucket, heard)]

    def _kept(self, depends_on: object, record: Record) -> tuple[dict[str, Any], bool]:
        graphs = (*self.ranks.graphs, *self.single.graphs)
        key = digest(
            "beside one rank",
            [hashlib.sha256(graph.reference_hlo).hexdigest() for graph in graphs],
            depends_on,
            code_digest(*_CODE),
        )

        def write(folder: Path) -> None:
            started = time.monotonic()
            cases = self._compare(record)
            found = {"cases": cases, "seconds": time.monotonic() - started}
            write_json(folder / "cases.json", to_json(found))

        store = self.ranks.work.store
        _, reused = store.build(GRAPH_STAGE, key, write)
        return store.read_json(GRAPH_STAGE, key, "cases.json"), reused

    def _compare(self, record: Record) -> dict[str, list[CaseResult]]:
        """The cases of each graph: what a prompt got from all ranks beside what it got from one."""
        cases: dict[str, list[CaseResult]] = {}
        both = zip(record(self.ranks.xla_steps), record(self.single.xla_steps), strict=True)
        for (bucket, several), (_, single) in both:
            judge = OutputJudge("xla-cpu", f"prompt {several.visit.prompt + 1}")
            last = several.visit.steps
            decode = self.ranks.graphs[-1].spec
            cases.setdefault(bucket.id, []).extend(_beside(judge, several, single, slice(0, 1), 0))
            cases.setdefault(decode.id, []).extend(_beside(judge, several, single, slice(1, None), last))
        return cases


def _beside(
    judge: OutputJudge, several: Recording, single: Recording, steps: slice, kept: int
) -> list[CaseResult]:
    """A case for the logits of the steps, and one for each side of the caches that were kept."""
    pairs = {"logits beside one rank": (several.logits[steps], single.logits[steps])}
    for side, name in enumerate(("key caches", "value caches")):
        ours, theirs = ([layer[side] for layer in heard.kept[kept]] for heard in (several, single))
        pairs[f"{name} beside one rank"] = (ours, theirs)
    return [judge(name, ours, theirs, None) for name, (ours, theirs) in pairs.items() if ours]
