"""`neuron-port convert`: the stages in order, from a model's name to a verified bundle.

    resolve ▶ plan ▶ kernels (proof 1) ▶ oracle ▶ graphs ▶ graph proof (2) ▶ model proof (3) ▶ bundle

Every stage's result is kept in the store under the digest of its inputs; what is there already is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from neuron_port.build import GraphFiles, write_bundle
from neuron_port.checkpoint import quantized, resolve
from neuron_port.errors import ParityError
from neuron_port.pipeline import forward_proof, forward_runs
from neuron_port.pipeline.batch_proof import BatchProof, has_own_rows
from neuron_port.pipeline.degree import with_degree
from neuron_port.pipeline.drafting import Drafting, draft_layers, layers_to_draft
from neuron_port.pipeline.forward_proof import ForwardProof
from neuron_port.pipeline.golden import golden_arrays
from neuron_port.pipeline.kernel_proof import KernelProof
from neuron_port.pipeline.lowering import LoweredGraph, lower_all
from neuron_port.pipeline.options import ConvertOptions
from neuron_port.pipeline.oracle import all_oracles
from neuron_port.pipeline.parallel_proof import OneRankProof
from neuron_port.pipeline.planning import Plan, make_plan
from neuron_port.pipeline.quantization_cost import quantization_cost
from neuron_port.pipeline.refusals import check_output, check_positions, check_prompts, within_positions
from neuron_port.pipeline.sequence_proof import SequenceProof
from neuron_port.pipeline.workbench import Workbench
from neuron_port.report import Conversion, LiveView, StageRecord, write_html
from neuron_port.store import Store
from neuron_port.types import Checkpoint, ParityReport, QuantizationCost, VerifiedKernel

Progress = Callable[[str, int, int], None]


@dataclass
class _Stages:
    """Runs stages under the live view and remembers how long each took."""

    view: LiveView
    records: list[StageRecord] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[_StageResult]:
        result = _StageResult(self.view)
        started = time.monotonic()
        with self.view.stage(name) as shown:
            yield result
            if result.reused:
                shown.skip("unchanged, taken from the store")
        seconds = time.monotonic() - started
        self.records.append(
            StageRecord(name=name, seconds=seconds, reused=result.reused, detail=result.detail)
        )


@dataclass
class _StageResult:
    view: LiveView
    reused: bool = False
    detail: str = ""

    def progress(self, text: str, done: int, total: int) -> None:
        self.view.update(text, done, total)


def convert(
    options: ConvertOptions, view: LiveView, store: Store | None = None, drafting: Drafting | None = None
) -> Conversion:
    """Run every stage and write the bundle. With `drafting`, layers without a recipe get a kernel first, if they can.

    Raises:
        NeuronPortError: anything a user can fix. After a failed proof the report is written beside the bundle's
            place, so that it can be seen where it failed; the bundle itself is not written.
    """
    check_output(options.output)
    store = store or Store()
    stages = _Stages(view)
    checkpoint = _resolve(options, stages, store)
    options = with_degree(options, checkpoint, store, view.note)
    work = Workbench(options, checkpoint, store)
    check_positions(work)
    for note in work.sharding.notes if work.sharding is not None else ():
        view.note(note)
    if work.full_proof:
        check_prompts(work)
        if work.tokenizer is None:
            view.note("the model has no tokenizer: random tokens stand in for the prompts' texts")
    with stages.stage("plan") as result:
        plan, result.reused = make_plan(work, result.progress)
    if drafting is not None:
        work, plan = _with_drafts(work, plan, drafting, stages)
    proofs = _Proofs(work, plan, stages)
    proofs.kernels()
    proofs.stop_unless_passed("kernels")
    proofs.lower()
    if work.full_proof:
        proofs.oracle()
        proofs.whole_model()
        proofs.stop_unless_passed("graphs and model")
    else:
        view.note(
            "the whole-model proofs were skipped: the model is too large for them here (--proof full runs them)"
        )
    return proofs.bundle()


def plan_only(options: ConvertOptions, view: LiveView, store: Store | None = None) -> Conversion:
    """Walk and match, nothing else: what `neuron-port plan` shows."""
    stages = _Stages(view)
    work, plan = _planned(options, stages, store or Store())
    return _Proofs(work, plan, stages).conversion(None)


def planned(options: ConvertOptions, view: LiveView, store: Store | None = None) -> tuple[Workbench, Plan]:
    """The model and what was decided for its layers, in graphs that its positions allow: where drafting begins."""
    return _planned(options, _Stages(view), store or Store(), cut=True)


def _planned(
    options: ConvertOptions, stages: _Stages, store: Store, cut: bool = False
) -> tuple[Workbench, Plan]:
    checkpoint = _resolve(options, stages, store)
    options = with_degree(options, checkpoint, store, stages.view.note)
    work = Workbench(options, checkpoint, store)
    if cut:
        work = Workbench(within_positions(work), checkpoint, store)
    check_positions(work)
    with stages.stage("plan") as result:
        plan, result.reused = make_plan(work, result.progress)
    return work, plan


def _with_drafts(work: Workbench, plan: Plan, drafting: Drafting, stages: _Stages) -> tuple[Workbench, Plan]:
    """The plan again, with a kernel for every layer for which one was admitted; else as it was."""
    with stages.stage("draft") as result:
        shelf = replace(drafting.shelf, say=lambda text: result.progress(text, 0, 0))
        drafting = replace(drafting, shelf=shelf)
        drafted = draft_layers(work, layers_to_draft(work, plan, drafting), drafting)
        admitted = [one for one in drafted if one.admitted]
        result.detail = f"{len(admitted)} of {len(drafted)} kernels admitted"
    for one in drafted:
        stages.view.note(f"{one.name}: {one.outcome}")
    if not admitted:
        return work, plan
    folders = tuple(dict.fromkeys((*work.options.recipe_folders, drafting.shelf.folder)))
    work = Workbench(replace(work.options, recipe_folders=folders), work.checkpoint, work.store)
    with stages.stage("plan with drafts") as result:
        plan, result.reused = make_plan(work, result.progress)
    return work, plan


def _resolve(options: ConvertOptions, stages: _Stages, store: Store) -> Checkpoint:
    with stages.stage("checkpoint") as result:
        checkpoint = resolve(
            options.model,
            store=store,
            random_weights=options.random_weights,
            revision=options.revision,
            progress=lambda text: result.progress(text, 0, 0),
        )
        return quantized(checkpoint, options.weight_format) if options.weight_format else checkpoint


def _merged(earlier: Sequence[ParityReport], later: Sequence[ParityReport]) -> list[ParityReport]:
    """One report for each subject, with the cases of all dtypes."""
    merged = {report.subject: report for report in earlier}
    for report in later:
        known = merged.get(report.subject)
        if known is not None:
            report = replace(
                report, cases=(*known.cases, *report.cases), seconds=known.seconds + report.seconds
            )
        merged[report.subject] = report
    return list(merged.values())


def _graph_files(graph: LoweredGraph) -> GraphFiles:
    assert graph.hlo is not None, "only graphs in the dtype that ships are bundled"
    return GraphFiles(
        spec=graph.spec, hlo=graph.hlo, reference_hlo=graph.reference_hlo, lint=dict(graph.lint)
    )


class _Proofs:
    """The stages after the plan, and what each has found."""

    def __init__(self, work: Workbench, plan: Plan, stages: _Stages) -> None:
        self.work = work
        self.plan = plan
        self.stages = stages
        self.kernel_reports: list[ParityReport] = []
        self.graph_reports: list[ParityReport] = []
        self.model_reports: list[ParityReport] = []
        self.quantization_cost: QuantizationCost | None = None
        self.lowered: dict[torch.dtype, list[LoweredGraph]] = {}
        self.whole_proofs: dict[torch.dtype, SequenceProof | ForwardProof] = {}

    def kernels(self) -> None:
        with self.stages.stage("kernels = layers (simulator)") as result:
            proof = KernelProof(self.work, self.plan)
            self.kernel_reports, made = proof.run(result.progress)
            result.reused = made == 0
            result.detail = f"{len(self.kernel_reports)} signatures, {made} verified now"

    def lower(self) -> None:
        with self.stages.stage("lower to HLO") as result:
            dtypes = self.work.proof_dtypes if self.work.full_proof else (self.work.dtype,)
            result.reused = True
            for dtype in dtypes:
                self.lowered[dtype], reused = lower_all(self.work, self.plan, dtype, result.progress)
                result.reused &= reused

    def oracle(self) -> None:
        work = self.work
        with self.stages.stage("transformers reference") as result:
            if work.family != "encoder":
                prompts, result.reused = all_oracles(work, result.progress)
                rows = has_own_rows([graph.spec for graph in self.lowered[torch.float32]])
                self._expect(BatchProof if rows else SequenceProof, prompts)
            else:
                specs = [graph.spec for graph in self.lowered[torch.float32]]
                samples, result.reused = forward_runs.all_runs(work, specs, result.progress)
                self._expect(ForwardProof, samples)
            work.forget_model()
        if work.checkpoint.unquantized is not None:
            self._weigh_quantization()

    def _weigh_quantization(self) -> None:
        """What the weight format costs, beside the unquantised model."""
        work = self.work
        with self.stages.stage(f"what {work.options.weight_format} costs") as result:
            specs = [graph.spec for graph in self.lowered[torch.float32]]
            self.quantization_cost, result.reused = quantization_cost(work, specs, result.progress)
        work.forget_model()

    def _expect(self, proof: Callable[..., Any], runs: Mapping[torch.dtype, Any]) -> None:
        """Make the whole-model proof of each dtype from what transformers answered in it."""
        for dtype in self.work.proof_dtypes:
            self.whole_proofs[dtype] = proof(
                work=self.work,
                plan=self.plan,
                dtype=dtype,
                graphs=self.lowered[dtype],
                truths=runs[torch.float32],
                baselines=None if dtype is torch.float32 else runs[dtype],
            )

    def whole_model(self) -> None:
        """Proofs 2 and 3, one dtype after the other, so that only one set of weights is in memory."""
        for dtype in self.work.proof_dtypes:
            proof = self.whole_proofs[dtype]
            name = str(dtype).removeprefix("torch.")
            with self.stages.stage(f"graphs = model, {name} (xla-cpu)") as result:
                reports, made = proof.graph_reports(result.progress)
                self.graph_reports = _merged(self.graph_reports, reports)
                result.reused = made == 0
            if dtype is torch.float32 and self.work.sharding is not None:
                self._beside_one_rank(proof)
            with self.stages.stage(f"ported model = model, {name} (simulator)") as result:
                report, made = proof.model_report(result.progress)
                self.model_reports.append(report)
                result.reused = made == 0
            proof.release()

    def _beside_one_rank(self, proof: SequenceProof | ForwardProof) -> None:
        assert isinstance(proof, SequenceProof), "only models that generate are cut over ranks"
        with self.stages.stage(f"{self.work.options.tensor_parallel} ranks = one rank (xla-cpu)") as result:
            reports, made = OneRankProof(proof).reports(result.progress)
            self.graph_reports = _merged(self.graph_reports, reports)
            result.reused = made == 0

    def stop_unless_passed(self, what: str) -> None:
        failed = [report for report in self._all_reports() if not report.passed]
        if not failed:
            return
        report_file = self._failed_report
        self._write_report(report_file)
        worst = failed[0].worst
        where = "no case was run"
        if worst is not None:
            sentence = worst.detail.partition("\n")[0]  # the simulator's own hint is in the report
            where = f"case `{worst.name}` ({worst.dtype}): {sentence}"
        raise ParityError(
            f"Parity failed for {len(failed)} of the {what}, first {failed[0].subject}, {where}",
            hint=f"See {report_file}. A recipe can be left to the compiler with --compiler NAME.",
        )

    @property
    def _failed_report(self) -> Path:
        """Where the report of a failed proof goes; a later success removes it."""
        output = self.work.options.output
        return output.with_name(f"{output.name}.failed.html")

    def _all_reports(self) -> Sequence[ParityReport]:
        return (*self.kernel_reports, *self.graph_reports, *self.model_reports)

    def _write_report(self, path: Path) -> None:
        write_html(path, **vars(self.conversion(None)))

    def conversion(self, bundle: Path | None) -> Conversion:
        graphs = self.lowered.get(self.work.dtype, [])
        return Conversion(
            checkpoint=self.work.checkpoint,
            graphs=self.plan.graphs,
            plan=self.plan.matches,
            kernel_reports=self.kernel_reports,
            graph_reports=self.graph_reports,
            model_reports=self.model_reports,
            graph_specs=[graph.spec for graph in graphs],
            graph_lints={graph.spec.id: graph.lint for graph in graphs},
            stages=self.stages.records,
            target=self.work.options.target,
            dtype=self.work.options.dtype,
            bundle=bundle,
            quantization_cost=self.quantization_cost,
        )

    def bundle(self) -> Conversion:
        work, options = self.work, self.work.options
        graphs = self.lowered[work.dtype]
        with self.stages.stage("bundle") as result:
            result.progress(str(options.output), 0, 0)
            derived = {name: array for graph in graphs for name, array in graph.derived.items()}
            write_bundle(
                options.output,
                checkpoint=work.checkpoint,
                plan=self.plan.matches,
                graphs=[_graph_files(graph) for graph in graphs],
                kernels=self._verified_kernels(),
                recipe_folders={name: found.folder for name, found in work.registry.items()},
                parity={
                    "kernels": self.kernel_reports,
                    "graphs": self.graph_reports,
                    "model": self.model_reports,
                },
                quantization_cost=self.quantization_cost,
                golden=self._golden(),
                target=options.target,
                dtype=options.dtype,
                weights=options.weights,
                derived_weights=derived,
                stages=[
                    {"name": item.name, "seconds": item.seconds, "reused": item.reused}
                    for item in self.stages.records
                ],
                pages={"report.html": self._write_report},
            )
            self._failed_report.unlink(missing_ok=True)
        return self.conversion(options.output)

    def _golden(self) -> dict[str, dict[str, Any]]:
        """Inputs and answers that travel in the bundle; none where the whole model was not run."""
        proof = self.whole_proofs.get(self.work.dtype)
        if isinstance(proof, ForwardProof):
            return forward_proof.golden_arrays(proof)
        return golden_arrays(proof)

    def _verified_kernels(self) -> list[VerifiedKernel]:
        """One for each signature; construction refuses a kernel whose report did not pass."""
        wanted = [match for match in self.plan.matches.matches if match.recipe is not None]
        return [
            VerifiedKernel(
                kernel=self.work.registry[str(match.recipe)].kernel, signature=match.signature, report=report
            )
            for match, report in zip(wanted, self.kernel_reports, strict=True)
        ]
