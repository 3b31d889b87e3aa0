"""The drafting loop: plan, draft several kernels, try each, repair with evidence, admit the first that survives.

    freeze ▶ plan ▶ drafts, side by side ▶ try ▶ repair, round by round ▶ admit ▶ in the graph ▶ remember

It is a function of the task, the options, the hidden seed, the replies and the verdicts. The seed is in the journal,
replies and verdicts are kept by content: a run that was killed begins again, passes everything that is known for
nothing, and goes on from there.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from neuron_port.drafting.candidates import Candidate, Judged, RunLog
from neuron_port.drafting.keeping.journal import Journal, RunDescription, run_folder
from neuron_port.drafting.learning import Taken, known_kernels, leave, leave_failure, notes_on, take
from neuron_port.drafting.lines import Line
from neuron_port.drafting.options import DraftOptions
from neuron_port.drafting.plans import Plans
from neuron_port.drafting.prompts.prompting import prompts_digest
from neuron_port.drafting.prompts.questions import Questions
from neuron_port.drafting.replies.extraction import ExtractionError, extract_code
from neuron_port.drafting.spending.asking import resume_budget
from neuron_port.drafting.spending.budget import Budget, BudgetExhausted
from neuron_port.drafting.spending.cost import Cost
from neuron_port.drafting.trying import Trier
from neuron_port.drafting.workshop import Workshop
from neuron_port.llm.errors import LanguageModelError
from neuron_port.llm.messages import Reply, Request
from neuron_port.task import KernelTask
from neuron_port.types import digest, to_json

Recheck = Callable[[str], str]  # kernel source -> what is wrong with it inside the model, "" when nothing is
Progress = Callable[[str], None]
REUSED = "reuse"  # the rung of a kernel that memory had
WANTED_CODE = "the whole module in one fenced `python` block"


@dataclass(frozen=True, kw_only=True)
class DraftResult:
    """How a run ended. `line` leads from the first draft to the admitted kernel; it is empty when there is none."""

    task: KernelTask
    run: str  # key of the run
    folder: Path
    outcome: str  # "admitted", or "no kernel: " and why
    line: tuple[Judged, ...]
    candidates: tuple[Judged, ...]
    spent: Cost
    hidden_seed: int
    oracle_key: str
    notice: str = ""  # what a person should know: a limit that was reached, and the option that raises it

    @property
    def admitted(self) -> Judged | None:
        return self.line[-1] if self.line else None

    @property
    def source(self) -> str | None:
        return self.line[-1].candidate.source if self.line else None


def run_key(task: KernelTask, model: str, options: DraftOptions) -> str:
    """What a run is known by: equal keys go on with the same run."""
    return digest(task.key, model, to_json(options), prompts_digest())


def draft(
    task: KernelTask,
    workshop: Workshop,
    options: DraftOptions,
    *,
    layer: str = "",
    checkpoint: str = "",
    recheck: Recheck | None = None,
    progress: Progress = lambda text: None,
) -> DraftResult:
    """Draft a kernel for `task`, or go on with the run that was interrupted.

    Args:
        layer, checkpoint: for people, when the task is a layer of a model.
        recheck: tries a kernel inside the model; the last hurdle before it is admitted.

    Raises:
        LanguageModelError: the endpoint fails for good; what is paid for is kept, and the same call goes on.
        DegenerateTaskError: wrong answers would pass the task's cases.
    """
    key = run_key(task, workshop.model.name, options)
    folder = run_folder(workshop.home, key)
    description = RunDescription(
        task=task.name,
        target=options.target,
        model=workshop.model.name,
        layer=layer,
        checkpoint=checkpoint,
        options=to_json(options),
    )
    with Journal(folder, description) as journal:
        run = _Run(task, workshop, options, journal, key, layer, checkpoint, recheck, progress)
        try:
            return run.go()
        except BudgetExhausted as error:
            return run.end(f"no kernel: {error.message}", notice=error.hint or "")


class _Run:
    """The state of one run; `go` is its course."""

    def __init__(
        self,
        task: KernelTask,
        workshop: Workshop,
        options: DraftOptions,
        journal: Journal,
        key: str,
        layer: str,
        checkpoint: str,
        recheck: Recheck | None,
        progress: Progress,
    ) -> None:
        self.task = task
        self.workshop = workshop
        self.options = options
        self.journal = journal
        self.key = key
        self.layer = layer
        self.where = f"{checkpoint} {layer}"
        self.recheck = recheck
        self.progress = progress
        self.log = RunLog(journal)
        given = options.hidden_seed
        self.hidden_seed = int(
            journal.decide("hidden seed", lambda: secrets.randbits(48) if given is None else given)
        )
        memory = workshop.memory if options.show_exemplars else None
        self.memory = memory
        self.taken = take(memory, journal, task, options.exclude) if options.show_exemplars else Taken()
        self.questions = Questions(
            task=task, options=options, exemplars=self.taken.kernels, notes=self.taken.notes
        )
        self.budget: Budget = resume_budget(
            journal,
            workshop.replies,
            workshop.limits,
            price=workshop.model.price,
            name=f"layer {layer}" if layer else f"task {task.name}",
            say=workshop.say,
        )
        self.asker = workshop.asker(journal)
        self.trier = Trier(task, workshop, options.target, self.hidden_seed)
        self.plans = Plans(self.questions, self._ask_for_plan, self.log)
        self.judged: list[Judged] = []
        self.stopped: BudgetExhausted | None = None

    def go(self) -> DraftResult:
        self.progress("freezing the oracle")
        self.trier.freeze()
        self.budget.require_price(self.workshop.model.price, self.workshop.model.name)
        known = self._known_kernel()
        if known is not None:
            return self.end("admitted", known)
        self._probe_once()
        self.plans.begin(without=not self.options.plan)
        lines = [Line(number=number, plan=0) for number in range(self.options.drafts)]
        for round_number in range(self.options.repairs + 1):
            alive = [line for line in lines if line.alive]
            if not alive:
                break
            what = "drafting" if round_number == 0 else f"repairing, round {round_number}"
            self.progress(f"{what}: {len(alive)} {'kernel' if len(alive) == 1 else 'kernels'}")
            winner = self._round(alive)
            if winner is not None:
                return self.end("admitted", winner)
            for line in alive:
                if line.alive:  # a budget may have ended it in this round
                    line.climb(self.plans)
        stopped = self.stopped  # a limit that ended some of the lines only
        notice = "" if stopped is None else f"{stopped.message} {stopped.hint or ''}".rstrip()
        return self.end(f"no kernel: {self._why_none()}", notice=notice)

    def end(self, outcome: str, winner: Line | None = None, notice: str = "") -> DraftResult:
        """Write down how the run ended, and learn from it."""
        line = tuple(winner.candidates) if winner else ()
        if line:
            leave(self.memory, self.task, self.options.target, self.key, self.taken, line)
        else:
            leave_failure(self.memory, self.task, self.key, self.taken)
        self.log.note("ended", reason=outcome, accepted=line[-1].candidate.id if line else None)
        return DraftResult(
            task=self.task,
            run=self.key,
            folder=self.journal.folder,
            outcome=outcome,
            line=line,
            candidates=tuple(self.judged),
            spent=self.budget.spent,
            hidden_seed=self.hidden_seed,
            oracle_key=self.trier.oracle_key,
            notice=notice,
        )

    def _known_kernel(self) -> Line | None:
        """A kernel that an earlier run admitted, for this task or one of its family, if it is admitted for this one.

        Nothing is asked then.
        """
        sources = known_kernels(self.memory, self.journal, self.task, self.options.target)
        for number, source in enumerate(sources):
            self.progress("verifying a kernel of an earlier run")
            line = Line(number=-1, plan=-1)
            candidate = Candidate(
                id=f"0.{number}", line=-1, round=0, parent=None, rung=REUSED, plan=None, source=source
            )
            judged = Judged(candidate=candidate)
            line.candidates.append(judged)
            self.judged.append(judged)
            self.log.candidate(candidate)
            self._try_all([(line, judged)])
            if judged.verdict is not None and judged.verdict.passed and self._admit(judged):
                self.taken = Taken()  # no prompt showed it
                return line
        return None

    def _probe_once(self) -> None:
        """Find a wrong key, name or address for a few tokens, before anything is asked of the model in this run."""
        first = self.questions.plan() if self.options.plan else self.questions.draft(None, 0)
        known = self.workshop.replies.get(first.key(self.workshop.model.name)) is not None
        if known or self.workshop.replay:
            return

        def probe() -> bool:
            self.asker.probe(self.budget)
            return True

        self.journal.decide("probe", probe)

    def _ask_for_plan(self, request: Request) -> Reply:
        self.progress("planning")
        return self.asker.ask(request, self.budget.child("plan"), layer=self.layer, stage="plan")

    # ---- rounds ------------------------------------------------------------------------------------------

    def _round(self, lines: Sequence[Line]) -> Line | None:
        """One candidate for every line, tried; the first line, in order, whose kernel is admitted."""
        stage = "draft" if all(line.rung is None for line in lines) else "repair"
        requests = [self._request(line) for line in lines]
        replies = self._ask_all(requests, stage)
        made = self._candidates(lines, requests, replies, stage)
        if not made:
            raise next(answer for answer in replies if isinstance(answer, BudgetExhausted))
        self._try_all(made)
        for line, judged in made:
            verdict = judged.verdict
            if verdict is not None and verdict.passed and self._admit(judged):
                return line
        return None

    def _request(self, line: Line) -> Request:
        plan = self.plans[line.plan]
        if line.rung is None or line.drafts_anew:
            return self.questions.draft(plan, line.number, line.sample)
        last = line.latest_kernel
        if last is None or last.candidate.source is None or last.verdict is None:  # nothing to repair
            return self.questions.draft(plan, line.number, line.sample)
        notes = notes_on(self.memory, self.journal, self.task, last.verdict.error_class)
        return self.questions.repair(
            line.rung, last.candidate.source, last.verdict, notes, line.number, line.sample
        )

    def _ask_all(self, requests: Sequence[Request], stage: str) -> list[Reply | BudgetExhausted]:
        """Replies side by side. A failing endpoint ends the run, after every reply that did come is kept."""
        answers = self.asker.ask_all(requests, self.budget.child(stage), layer=self.layer, stage=stage)
        for answer in answers:
            if isinstance(answer, LanguageModelError):
                raise answer
        return [answer for answer in answers if not isinstance(answer, LanguageModelError)]

    def _candidates(
        self,
        lines: Sequence[Line],
        requests: Sequence[Request],
        replies: Sequence[Reply | BudgetExhausted],
        stage: str,
    ) -> list[tuple[Line, Judged]]:
        """A candidate out of every reply. One that holds no module is asked for once more."""
        found: dict[int, tuple[Reply, str | None, str]] = {}
        again: list[int] = []
        for number, reply in enumerate(replies):
            if isinstance(reply, BudgetExhausted):
                lines[number].alive = False
                self.stopped = self.stopped or reply
                continue
            source, problem = self._extract(reply)
            found[number] = (reply, source, problem)
            if source is None:
                again.append(number)
        asked = [
            self.questions.reask(requests[number], found[number][0].text, found[number][2], WANTED_CODE)
            for number in again
        ]
        for number, reply in zip(again, self._ask_all(asked, stage) if asked else [], strict=True):
            if not isinstance(reply, BudgetExhausted):
                found[number] = (reply, *self._extract(reply))
        return [(lines[number], self._enter(lines[number], *found[number])) for number in sorted(found)]

    def _extract(self, reply: Reply) -> tuple[str | None, str]:
        try:
            return extract_code(reply.text, self.task.name, reply.finish), ""
        except ExtractionError as error:
            return None, error.message

    def _enter(self, line: Line, reply: Reply, source: str | None, problem: str) -> Judged:
        """The candidate's record, in the line and in the journal."""
        judged = line.add(reply, source, problem, line.plan if self.plans[line.plan] else None)
        self.judged.append(judged)
        self.log.candidate(judged.candidate)
        return judged

    def _try_all(self, made: Sequence[tuple[Line, Judged]]) -> None:
        """Grade the candidates side by side; verdicts are written down in the order of the lines."""
        with_code = [judged for _, judged in made if judged.candidate.source is not None]
        self.budget.require_time()
        if not with_code:
            return
        self.progress(
            f"trying {len(with_code)} {'kernel' if len(with_code) == 1 else 'kernels'} on the simulator"
        )
        different = tuple(dict.fromkeys(judged.candidate.source or "" for judged in with_code))
        with ThreadPoolExecutor(max_workers=len(different)) as pool:
            verdicts = dict(zip(different, pool.map(self.trier.grade, different), strict=True))
        for judged in with_code:
            verdict = verdicts[judged.candidate.source or ""]
            judged.verdicts.append(("graded", verdict))
            self.log.verdict(judged.candidate, "graded", verdict)

    def _admit(self, judged: Judged) -> bool:
        """The clean run on fresh hidden cases, then the whole model; True when the kernel survives both."""
        source = judged.candidate.source
        assert source is not None
        self.progress("admitting: fresh hidden cases and repeated calls")
        verdict = self.trier.admit(source)
        judged.verdicts.append(("admission", verdict))
        self.log.verdict(judged.candidate, "admission", verdict)
        if verdict.passed and self.recheck is not None:
            self.progress("admitting: inside the model")
            verdict = self.trier.in_graph(source, verdict, self.recheck, self.where)
            judged.verdicts.append(("in graph", verdict))
            self.log.verdict(judged.candidate, "in graph", verdict)
        return verdict.passed

    def _why_none(self) -> str:
        best = max(self.judged, key=lambda judged: judged.progress, default=None)
        if best is None or best.verdict is None:
            return f"none of {len(self.judged)} replies held a kernel"
        words = f"all {len(self.judged)} candidates were refused; the best, {best.candidate.id}"
        return f"{words}, came to stage `{best.verdict.stage}`: {best.verdict.message}"
