"""Proofs 2 and 3 of graphs whose rows have sequences of their own: different prompts at once, each judged alone.

All prompts of a proof run together, in rows from the last one down, and come one after the other while those before
them are decoded. The first row to be taken again belongs to the second prompt: another one has left its states there
after a token. On XLA-CPU prompts come again until every row has had one. A row that sees another's states, position
or tokens does not answer as transformers answers to its prompt alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from neuron_port.parity.model import check_greedy, check_outputs
from neuron_port.pipeline.batch_runs import Recording, Visit, run_visits
from neuron_port.pipeline.graph_steps import (
    GRAPH_STAGE,
    MODEL_STAGE,
    SIMULATOR_CODE,
    XLA_CODE,
    Progress,
    refused,
)
from neuron_port.pipeline.sequence_proof import SequenceProof, named, pooled
from neuron_port.pipeline.workbench import code_digest, oracle_name
from neuron_port.port.generate import Batch, Step
from neuron_port.simulator import SimulatorError
from neuron_port.store import write_json
from neuron_port.types import CaseResult, GraphSpec, ParityReport, Tier, digest, from_json, to_json

_CODE = ("pipeline/sequence_proof", "pipeline/batch_proof", "pipeline/batch_runs")


def has_own_rows(graphs: Sequence[GraphSpec]) -> bool:
    """Whether prompts are put into rows one by one: the prefill graphs say for which."""
    return any(item.name == "slot" for item in graphs[0].inputs)


@dataclass
class BatchProof(SequenceProof):
    """Runs prompts of one dtype together; the batch is kept whole, so an interrupted run loses one."""

    @property
    def rows(self) -> int:
        return self.graphs[-1].spec.batch

    def batch(self, steps: Sequence[Step]) -> Batch:
        *prefills, decode = steps
        return Batch({step.spec.sequence_length: step for step in prefills}, decode)

    def graph_reports(self, progress: Progress) -> tuple[list[ParityReport], int]:
        """Proof 2: one report for each graph; and how many batches were run now."""
        key = digest(self._graph_hashes, *self.prompt_keys, code_digest(*XLA_CODE, *_CODE))
        stored, reused = self._kept(GRAPH_STAGE, key, lambda: self.run_on_xla(self.xla_steps, progress))
        cases = {
            name: [from_json(CaseResult, case) for case in found] for name, found in stored["cases"].items()
        }
        return [
            ParityReport(
                subject=name,
                oracle=f"{oracle_name()}, float32",
                cases=(*found, *pooled(found)) if self.baselines is not None else tuple(found),
                not_proven=("neuronx-cc has not compiled this graph",),
                seconds=stored["seconds"] / len(cases),
            )
            for name, found in cases.items()
        ], int(not reused)

    def model_report(self, progress: Progress) -> tuple[ParityReport, int]:
        """Proof 3: as of single sequences, all prompts together; and how many batches were run now."""
        key = digest(
            self._graph_hashes,
            self.kernel_digests,
            self.work.options.target,
            *self.prompt_keys,
            code_digest(*SIMULATOR_CODE, *_CODE),
        )
        stored, reused = self._kept(MODEL_STAGE, key, lambda: self._on_simulator(progress))
        cases = [from_json(CaseResult, case) for case in stored["cases"]]
        what = "greedy" if self.baselines is None else "teacher-forced"
        return ParityReport(
            subject=f"{self.dtype_name} {what} in a batch of {self.rows}",
            oracle=f"{oracle_name()}, float32",
            cases=tuple(cases) if self.baselines is None else (*cases, *pooled(cases)),
            not_proven=("no Neuron device has run this model", *self._rows_without_prompt()),
            seconds=stored["seconds"],
        ), int(not reused)

    def _rows_without_prompt(self) -> list[str]:
        """On the simulator each prompt runs once, from the last row down: with few prompts the first rows are idle."""
        idle = self.rows - len(self.truths)
        if idle <= 0:
            return []
        return [
            f"the first {idle} of {self.rows} rows, with kernels on the simulator: no prompt came to them"
        ]

    def _kept(self, stage: str, key: str, run: Any) -> tuple[Any, bool]:
        """What `run` gives and how long it took, from the store where it is there."""

        def write(folder: Path) -> None:
            started = time.monotonic()
            cases = run()
            found = {"cases": cases, "seconds": time.monotonic() - started}
            write_json(folder / "cases.json", to_json(found))

        _, reused = self.work.store.build(stage, key, write)
        return self.work.store.read_json(stage, key, "cases.json"), reused

    @property
    def _graph_hashes(self) -> list[str]:
        return [hashlib.sha256(graph.reference_hlo).hexdigest() for graph in self.graphs]

    @property
    def prompt_keys(self) -> list[tuple[object, ...]]:
        return [self.prompt_key(truth) for truth in self.truths]

    def visits(
        self, prompts: Sequence[tuple[int, int | None]], steps: int, *, greedy: bool = False
    ) -> list[Visit]:
        """The given (prompt, bucket)s in rows from the last one down; before them the first one, for one token.

        It goes into the row that the second of them takes then.
        """

        def visit(place: int, prompt: int, bucket: int | None, steps: int, greedy: bool) -> Visit:
            truth = self.truths[prompt]
            return Visit(
                prompt=prompt,
                ids=truth.prompt_ids,
                row=(self.rows - 1 - place) % self.rows,
                steps=steps,
                forced=None if greedy else truth.tokens,
                bucket=bucket,
            )

        before = visit(min(1, len(prompts) - 1), *prompts[0], 1, False)
        return [before, *(visit(place, *one, steps, greedy) for place, one in enumerate(prompts))]

    def run_on_xla(self, steps: Sequence[Step], progress: Progress) -> dict[str, list[CaseResult]]:
        """The cases of every graph, by its id; `steps` are the graphs, prefill first."""
        cases: dict[str, list[CaseResult]] = {}
        for graph, recording in self.recordings(steps, progress):
            prefill, decode = self._judged(recording, "xla-cpu")
            cases.setdefault(graph.id, []).extend(prefill)
            cases.setdefault(self.graphs[-1].spec.id, []).extend(decode)
        return cases

    def recordings(self, steps: Sequence[Step], progress: Progress) -> list[tuple[GraphSpec, Recording]]:
        """What each prompt got in its row, and the prefill graph that it came through; every row has had one."""
        assignments = self.assignments()
        chosen = list(islice(cycle(assignments), max(len(assignments), self.rows)))
        visits = self.visits([(number, graph.sequence_length) for number, graph in chosen], self.decode_steps)
        found = run_visits(
            self.batch(steps),
            visits,
            lambda done, total: progress(f"batch of {self.rows}, {self.dtype_name}", done, total),
        )
        return list(zip([graph for _, graph in (chosen[0], *chosen)], found, strict=True))

    def _on_simulator(self, progress: Progress) -> list[CaseResult]:
        greedy = self.baselines is None
        steps = len(self.truths[0].tokens) - 1 if greedy else self.decode_steps
        visits = self.visits([(number, None) for number in range(len(self.truths))], steps, greedy=greedy)
        where = f"batch of {self.rows}, {self.dtype_name}"
        try:
            before, *recordings = run_visits(
                self.batch(self.simulator_steps), visits, lambda done, total: progress(where, done, total)
            )
        except SimulatorError as error:
            raise refused(where, error) from error
        if greedy:
            found = [self._judged_greedily(recording) for recording in recordings]
            return [*found, *self._judged_by_phase(before)]
        return [case for recording in (before, *recordings) for case in self._judged_by_phase(recording)]

    def _judged_greedily(self, recording: Recording) -> CaseResult:
        truth = self.truths[recording.visit.prompt]
        name = f"prompt {recording.visit.prompt + 1}"
        return check_greedy(recording, name, truth, self.work.decode_text, tier="simulator")

    def _judged_by_phase(self, recording: Recording) -> list[CaseResult]:
        prefill, decode = self._judged(recording, "simulator")
        return [*named("prefill", prefill), *named("decode", decode)]

    def _judged(self, recording: Recording, tier: Tier) -> tuple[list[CaseResult], list[CaseResult]]:
        """The cases of one visit, of prefill and of decode, beside transformers' run of its prompt alone."""
        visit = recording.visit
        truth, baseline = self.truths[visit.prompt], None
        if self.baselines is not None:
            baseline = self.baselines[visit.prompt]
        if visit.steps < self.decode_steps:  # the oracle's caches are those after more tokens
            truth = replace(truth, final_caches=[])
        prefill, decode = check_outputs(
            recording, f"prompt {visit.prompt + 1}", truth, baseline, tier=tier, decode_steps=visit.steps
        )

        def placed(case: CaseResult) -> CaseResult:
            return replace(case, detail=f"row {visit.row} of {self.rows}; {case.detail}")

        return [placed(case) for case in prefill], [placed(case) for case in decode]
