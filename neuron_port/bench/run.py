"""Runs every arm on every task through the real loop, and once more from the caches, where nothing may be asked.

tasks x (arms x repeats + independent drafts) ▶ runs of `drafting.loop.draft` ▶ results ▶ the same again, free

Nothing is kept here: runs are known by their key and go on where they were stopped, replies and verdicts are kept by
content. A benchmark that was interrupted is started again and passes what it has for nothing.
"""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from neuron_port.bench.arms import SAMPLE_TEMPERATURE, Arm, Protocol
from neuron_port.bench.held_out import FrozenMemory, recipes_that_solve
from neuron_port.bench.metrics import TaskResult, summarize
from neuron_port.bench.results import BenchResults, Conditions, RepliesKind, Rerun
from neuron_port.bench.suite import BenchTask
from neuron_port.drafting.drafts import remaining
from neuron_port.drafting.keeping.journal import read_events
from neuron_port.drafting.loop import DraftResult, draft, run_key
from neuron_port.drafting.options import DraftOptions
from neuron_port.drafting.prompts.prompting import prompts_digest
from neuron_port.drafting.spending.cost import Cost, PlannedCalls, cost_of
from neuron_port.drafting.tree import error_counts
from neuron_port.drafting.workshop import Workshop
from neuron_port.errors import NeuronPortError
from neuron_port.grading.grader import verifier_version
from neuron_port.grading.oracle import DegenerateTaskError
from neuron_port.grading.verdict import STAGES
from neuron_port.llm.errors import LanguageModelError
from neuron_port.llm.messages import LanguageModel, MayRetry, OnText, Price, Reply, Request
from neuron_port.recipe import NKI_VERSION
from neuron_port.types import digest

Progress = Callable[[str], None]
TIER = "simulator"


class UnfinishedError(NeuronPortError):
    """The budget ended before the benchmark did: no figure is made from a part of it."""


class CallOnRerunError(LanguageModelError):
    """Something was asked that the caches should have had."""


class NoCalls:
    """The same model to the caches, and none behind it: counts what it is asked and refuses."""

    def __init__(self, model: LanguageModel) -> None:
        self.name = model.name
        self.price: Price | None = model.price
        self.calls = 0

    def complete(
        self, request: Request, *, on_text: OnText | None = None, may_retry: MayRetry | None = None
    ) -> Reply:
        self.calls += 1
        raise CallOnRerunError(
            f"A {request.purpose or 'nameless'} call was wanted, and none may be made here."
        )

    def probe(self) -> Reply:
        self.calls += 1
        raise CallOnRerunError("A probe was wanted, and none may be made here.")


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """One run of the loop in numbers; `reached_hidden`: a candidate of it was right on all public cases."""

    run: str
    outcome: str
    admitted: bool
    reached_hidden: bool
    candidates: int
    repair_rounds: int
    calls: int
    cost: Cost
    error_classes: Counter[str] = field(default_factory=Counter)


@dataclass(kw_only=True)
class Benchmark:
    """One benchmark of one language model.

    Args:
        tasks: of the suite called `suite`.
        workshop: its limits hold for the whole benchmark; its model and memory are not used.
        model_of: the language model that is asked about a task.
        model_id, replies: the model as published numbers name it, and where its replies come from.
        memory: for the arms that have one.
    """

    suite: str
    tasks: Sequence[BenchTask]
    protocol: Protocol
    workshop: Workshop
    model_of: Callable[[BenchTask], LanguageModel]
    model_id: str
    replies: RepliesKind
    memory: FrozenMemory | None = None
    progress: Progress = lambda text: None
    today: datetime.date = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).date())
    _spent: Cost = field(default_factory=Cost, init=False)
    _done: int = field(default=0, init=False)
    _started: float = field(default_factory=time.monotonic, init=False)

    def run(self) -> BenchResults:
        """Everything, and everything once more from the caches.

        Raises:
            UnfinishedError: the budget is used up. LanguageModelError: the endpoint failed for good. All that is paid
            for is kept, and the same benchmark goes on from there.
        """
        rejected: dict[str, str] = {}
        results: list[TaskResult] = []
        for task in self.tasks:
            try:
                results += self._measure(task)
            except DegenerateTaskError as error:
                rejected[task.name] = error.message
                self.progress(f"{task.name}: left out: {error.message}")
        measured = [task for task in self.tasks if task.name not in rejected]
        return BenchResults(
            conditions=self.conditions(measured),
            summaries=tuple(
                summarize(arm.name, [one for one in results if one.arm == arm.name], self.protocol.ks)
                for arm in self.protocol.arms
            ),
            results=tuple(results),
            rejected=rejected,
            rerun=self._rerun(measured, results),
        )

    def conditions(self, measured: Sequence[BenchTask]) -> Conditions:
        protocol, limits = self.protocol, self.workshop.limits
        budget = {
            "dollars": limits.usd, "tokens": limits.tokens, "calls": limits.calls, "seconds": limits.seconds
        }  # fmt: skip
        return Conditions(
            tier=TIER,
            nki_version=NKI_VERSION,
            target=protocol.target,
            model=self.model_id,
            replies=self.replies,
            date=self.today.isoformat(),
            suite=self.suite,
            suite_digest=digest(sorted((task.name, task.task.key) for task in measured)),
            tasks=len(measured),
            ks=protocol.ks,
            samples=protocol.samples,
            sample_temperature=SAMPLE_TEMPERATURE,
            repeats=protocol.repeats,
            repairs=protocol.repairs,
            plan=protocol.plan,
            max_output_tokens=protocol.max_output_tokens,
            budget={name: value for name, value in budget.items() if value is not None},
            hidden_seed=protocol.hidden_seed,
            verifier=verifier_version(),
            prompts=prompts_digest(),
            memory_lessons=self.memory.lessons if self.memory else None,
            memory_digest=self.memory.digest if self.memory else "",
        )

    def planned_calls(self) -> tuple[PlannedCalls, ...]:
        """Every call that the benchmark may make, from empty caches."""
        lines: dict[tuple[str, int, int], int] = {}
        for options in self._different(()):
            for line in options.planned_calls():
                kind = (line.purpose, line.input_tokens, line.output_tokens)
                lines[kind] = lines.get(kind, 0) + line.calls * len(self.tasks)
        return tuple(
            PlannedCalls(purpose=purpose, calls=calls, input_tokens=given, output_tokens=taken)
            for (purpose, given, taken), calls in lines.items()
        )

    @property
    def runs(self) -> int:
        """Runs of the loop in all; arms with the same prompts share their independent drafts."""
        return len(self._different(())) * len(self.tasks)

    def _different(self, exclude: tuple[str, ...]) -> list[DraftOptions]:
        protocol = self.protocol
        found: list[DraftOptions] = []
        for arm in protocol.arms:
            found += [protocol.arm_options(arm, repeat, exclude) for repeat in range(protocol.repeats)]
            found += [protocol.sample_options(arm, number, exclude) for number in range(protocol.samples)]
        return list(dict.fromkeys(found))

    # ---- one task ----------------------------------------------------------------------------------------

    def _measure(self, task: BenchTask, again: NoCalls | None = None) -> Iterator[TaskResult]:
        """The results of all arms on a task; with `again`, from the caches alone."""
        known: dict[str, RunFigures] = {}
        exclude = recipes_that_solve(task.task)
        model = again or self.model_of(task)
        for arm in self.protocol.arms:
            samples = [
                self._run(task, arm, model, self.protocol.sample_options(arm, number, exclude), known, again)
                for number in range(self.protocol.samples)
            ]
            for repeat in range(self.protocol.repeats):
                options = self.protocol.arm_options(arm, repeat, exclude)
                figures = self._run(task, arm, model, options, known, again)
                yield _result(task, arm, repeat, figures, samples)

    def _run(
        self,
        task: BenchTask,
        arm: Arm,
        model: LanguageModel,
        options: DraftOptions,
        known: dict[str, RunFigures],
        again: NoCalls | None,
    ) -> RunFigures:
        """The figures of one run of the loop, which is made unless it was made for another arm already."""
        key = run_key(task.task, model.name, options)
        if key not in known:
            self._done += again is None
            place = "from the caches" if again else f"{self._done}/{self.runs}"
            kind = "draft" if options.drafts == 1 and not options.repairs else arm.name
            label = f"[{place}] {task.name}, {kind} {options.repeat + 1}"
            result = draft(
                task.task,
                self._workshop_for(arm, model, again),
                options,
                progress=lambda text: self.progress(f"{label}: {text}"),
            )
            if again is None:
                self._count(result)
            known[key] = figures_of(result, self.workshop, model.price)
        return known[key]

    def _workshop_for(self, arm: Arm, model: LanguageModel, again: NoCalls | None) -> Workshop:
        memory = self.memory.memory if arm.memory and self.memory else None
        workshop = replace(self.workshop, model=model, memory=memory)
        limits = replace(remaining(workshop.limits, self._spent), seconds=None)
        if workshop.limits.seconds is not None:
            elapsed = time.monotonic() - self._started
            limits = replace(limits, seconds=max(0.0, workshop.limits.seconds - elapsed))
        if again is not None:  # nothing can be spent
            limits = replace(limits, usd=None, tokens=None, calls=None, seconds=None)
        return replace(workshop, limits=limits)

    def _count(self, result: DraftResult) -> None:
        self._spent += result.spent.known_part
        if result.notice:
            raise UnfinishedError(
                f"The budget ended the benchmark in run {self._done} of {self.runs} ({result.task.name}).",
                hint=f"{result.notice} With --suite, tasks that are done can be had alone: they cost nothing more.",
            )

    def _rerun(self, measured: Sequence[BenchTask], results: Sequence[TaskResult]) -> Rerun:
        """Everything again with no model behind the caches."""
        calls = 0
        different: list[str] = []
        for task in measured:
            refusing = NoCalls(self.model_of(task))
            before = [result for result in results if result.task == task.name]
            try:
                after = list(self._measure(task, refusing))
                different += [
                    f"{one.task}, {one.arm}" for one, other in zip(before, after, strict=True) if one != other
                ]
            except CallOnRerunError:
                different.append(f"{task.name}, all arms")
            calls += refusing.calls
        return Rerun(calls=calls, different=tuple(different))


def figures_of(result: DraftResult, workshop: Workshop, price: Price | None) -> RunFigures:
    """A run in numbers. It costs what the replies cost that it used, whichever run paid for them."""
    verdicts = [verdict for judged in result.candidates for _, verdict in judged.verdicts]
    lines = Counter(judged.candidate.line for judged in result.candidates)
    rounds = lines[result.line[-1].candidate.line] if result.line else max(lines.values(), default=1)
    requests = dict.fromkeys(
        event["request"]
        for event in read_events(result.folder)
        if event["kind"] in ("call paid", "call reused") and event["purpose"] != "probe"
    )
    replies = [reply for reply in map(workshop.replies.get, requests) if reply is not None]
    return RunFigures(
        run=result.run,
        outcome=result.outcome,
        admitted=result.admitted is not None,
        reached_hidden=any(STAGES.index(verdict.stage) >= STAGES.index("public") for verdict in verdicts),
        candidates=len(result.candidates),
        repair_rounds=rounds - 1,
        calls=len(replies),
        cost=sum((cost_of(reply.usage, price, reply.seconds) for reply in replies), Cost()),
        error_classes=Counter(error_counts(result.candidates)),
    )


def _result(
    task: BenchTask, arm: Arm, repeat: int, figures: RunFigures, samples: Sequence[RunFigures]
) -> TaskResult:
    return TaskResult(
        task=task.name,
        arm=arm.name,
        repeat=repeat,
        run=figures.run,
        samples=len(samples),
        samples_passed=sum(sample.admitted for sample in samples),
        public_only=sum(sample.reached_hidden and not sample.admitted for sample in samples),
        admitted=figures.admitted,
        candidates=figures.candidates,
        repair_rounds=figures.repair_rounds,
        calls=figures.calls,
        tokens=figures.cost.tokens,
        cost_usd=figures.cost.usd,
        seconds=round(figures.cost.seconds, 3),
        error_classes=figures.error_classes,
        stop_reason=figures.outcome,
    )
