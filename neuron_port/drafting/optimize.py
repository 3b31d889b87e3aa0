"""Makes a verified kernel faster, by the latency that the simulator predicts; no step may make it wrong.

    measure ▶ directions (advice of the profile, then a menu) ▶ candidates, side by side ▶ grade ▶ measure ▶ review ▶ beam

A candidate replaces a kernel if it is right on everything, predicted faster by the margin, and passed by a reviewer who
saw the code without its author's comments. All figures are predictions, and every word about them says so.
"""

from __future__ import annotations

import ast
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from neuron_port.drafting.candidates import Candidate, RunLog
from neuron_port.drafting.keeping.journal import Journal, RunDescription, run_folder
from neuron_port.drafting.learning import family_of, notes_on
from neuron_port.drafting.measuring import Measured, UnmeasurableError, measure
from neuron_port.drafting.memory.lessons import DeadEnd, Lever
from neuron_port.drafting.options import DraftOptions
from neuron_port.drafting.prompts.briefing import REVIEW_QUESTIONS
from neuron_port.drafting.prompts.feedback import called_instructions
from neuron_port.drafting.prompts.prompting import as_line, prompts_digest
from neuron_port.drafting.prompts.questions import Questions
from neuron_port.drafting.replies.extraction import ExtractionError, extract_code, normalised_digest
from neuron_port.drafting.replies.parts import without_thoughts
from neuron_port.drafting.spending.asking import resume_budget
from neuron_port.drafting.spending.budget import BudgetExhausted
from neuron_port.drafting.spending.cost import Cost
from neuron_port.drafting.trying import Trier
from neuron_port.drafting.workshop import Workshop
from neuron_port.errors import ParityError
from neuron_port.grading.verdict import Verdict
from neuron_port.llm.errors import LanguageModelError
from neuron_port.llm.messages import Reply, Request
from neuron_port.simulator.parsing import parse_python
from neuron_port.task import KernelTask
from neuron_port.types import digest, to_json

# Directions when the profile has no more advice to give; each is one sentence that a person would say.
MENU = (
    "Let loads overlap with computing: give each tile of a loop two buffers.",
    "Move fewer and larger pieces by DMA: whole rows, several tiles at once.",
    "Fuse instructions: scalar_tensor_tensor, activation with scale, bias and reduction, tensor_tensor_scan.",
    "Balance the engines: move work from the busiest one to one that is idle.",
    "Keep what is used again in SBUF instead of loading it again.",
    "Use wider tiles, so that fewer instructions do the same work.",
)


@dataclass(frozen=True, kw_only=True)
class OptimizeOptions:
    """What one optimisation does at most. `margin` is the part by which a kernel must be faster to count."""

    rounds: int = 5
    directions: int = 3  # tried side by side in one round
    beam: int = 4
    margin: float = 0.05
    roofline: float = 0.9  # good enough
    fruitless_rounds: int = 2  # in a row, after which it ends
    target: str = "trn2"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A kernel of the beam."""

    id: str  # of its candidate
    source: str
    measured: Measured
    verdict: Verdict
    directions: tuple[str, ...] = ()  # what made it what it is


@dataclass(frozen=True, kw_only=True)
class OptimizeResult:
    """The kernel before and after; the same one when nothing helped. `ledger` has a line for each attempt."""

    task: KernelTask
    run: str
    folder: Path
    before: Step
    after: Step
    outcome: str
    ledger: tuple[str, ...]
    spent: Cost
    notice: str = ""

    @property
    def speedup(self) -> float:
        """Predicted, of the latency of a call."""
        return self.before.measured.latency_ns / self.after.measured.latency_ns


def optimize_key(task: KernelTask, source: str, model: str, options: OptimizeOptions) -> str:
    """What a run is known by: equal keys go on with the same run."""
    return digest(task.key, source, model, to_json(options), prompts_digest(), "optimize")


def optimize(
    task: KernelTask,
    source: str,
    workshop: Workshop,
    options: OptimizeOptions,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> OptimizeResult:
    """Look for a faster kernel than `source`, or go on with the run that was interrupted.

    Raises:
        ParityError: the kernel to start from is not right.
        LanguageModelError: the endpoint fails for good; what is paid for is kept.
    """
    key = optimize_key(task, source, workshop.model.name, options)
    description = RunDescription(
        task=task.name, target=options.target, model=workshop.model.name, options=to_json(options)
    )
    with Journal(run_folder(workshop.home, key), description) as journal:
        return _Search(task, workshop, options, journal, key, progress).go(source)


class _Search:
    """The state of one optimisation."""

    def __init__(
        self,
        task: KernelTask,
        workshop: Workshop,
        options: OptimizeOptions,
        journal: Journal,
        key: str,
        progress: Callable[[str], None],
    ) -> None:
        self.task = task
        self.workshop = workshop
        self.options = options
        self.journal = journal
        self.key = key
        self.progress = progress
        self.log = RunLog(journal)
        seed = int(journal.decide("hidden seed", lambda: secrets.randbits(48)))
        self.trier = Trier(task, workshop, options.target, seed)
        self.questions = Questions(task=task, options=DraftOptions(target=options.target))
        self.budget = resume_budget(
            journal, workshop.replies, workshop.limits, price=workshop.model.price, say=workshop.say
        )
        self.asker = workshop.asker(journal)
        self.ledger: list[str] = []
        self.tried: set[tuple[str, str]] = set()  # (kernel, direction)
        self.seen: set[str] = set()
        self.attempts = 0
        self.probed = False

    def go(self, source: str) -> OptimizeResult:
        before = self._start(source)
        beam = [before]
        fruitless, outcome, notice = 0, "the rounds are used up", ""
        try:
            for round_number in range(1, self.options.rounds + 1):
                if beam[0].measured.roofline_fraction >= self.options.roofline:
                    outcome = f"it reaches {beam[0].measured.roofline_fraction:.0%} of the roofline"
                    break
                best_ns = beam[0].measured.latency_ns
                self._round(beam, round_number)
                fruitless = 0 if beam[0].measured.latency_ns < best_ns else fruitless + 1
                if fruitless == self.options.fruitless_rounds:
                    outcome = f"{fruitless} rounds in a row brought nothing"
                    break
        except BudgetExhausted as error:
            outcome, notice = error.message, error.hint or ""
        after = self._admitted(beam, before)
        self._learn(before, after)
        self.log.note("ended", reason=outcome, accepted=None)
        return OptimizeResult(
            task=self.task,
            run=self.key,
            folder=self.journal.folder,
            before=before,
            after=after,
            outcome=outcome,
            ledger=tuple(self.ledger),
            spent=self.budget.spent,
            notice=notice,
        )

    def _start(self, source: str) -> Step:
        """The kernel to begin with, which must be right: speed without correctness is nothing."""
        self.progress("verifying and measuring the kernel as it is")
        self.trier.freeze()
        verdict = self.trier.grade(source)
        self._note("0.0", None, "start", source, verdict)
        if not verdict.passed:
            self.log.note("ended", reason="the kernel to start from is not right", accepted=None)
            raise ParityError(
                f"Kernel `{self.task.name}` is not right, so it is not made faster: {verdict.message}",
                hint="`neuron-port verify` shows where.",
            )
        self.seen.add(normalised_digest(source))
        return Step(id="0.0", source=source, measured=self._measure(source), verdict=verdict)

    def _measure(self, source: str) -> Measured:
        value = self.journal.decide(
            f"measured {digest(source)}",
            lambda: asdict(measure(self.task, source, self.options.target, self.workshop.executor)),
        )
        return Measured(**{**value, "advice": tuple(value["advice"])})

    # ---- one round ---------------------------------------------------------------------------------------

    def _round(self, beam: list[Step], round_number: int) -> None:
        """Try directions on the kernels of the beam, and put what is better into it, fastest first."""
        work = list(self._work(beam))
        if not work:
            return
        self.progress(f"round {round_number}: {len(work)} directions, best so far {_us(beam[0])} (predicted)")
        notes = notes_on(self.workshop.memory, self.journal, self.task, "", "optimize")
        requests = [
            self.questions.optimize(
                step.source,
                {
                    "latency_us": round(step.measured.latency_ns / 1e3, 2),
                    "case": step.measured.case,
                    "profile": step.measured.profile,
                },
                direction,
                [*self.ledger[-12:], *notes],
                round_number,
            )
            for step, direction in work
        ]
        self._probe_once(requests[0])
        answers = self.asker.ask_all(requests, self.budget.child("optimize"), stage="optimize")
        for (step, direction), answer in zip(work, answers, strict=True):
            if isinstance(answer, LanguageModelError):
                raise answer
            better = self._consider(step, direction, answer) if isinstance(answer, Reply) else None
            if better is not None:  # at once: a budget that ends during this round must not lose it
                beam.append(better)
                beam.sort(key=lambda step: step.measured.latency_ns)
                del beam[self.options.beam :]
        if all(isinstance(answer, BudgetExhausted) for answer in answers):
            raise next(answer for answer in answers if isinstance(answer, BudgetExhausted))

    def _probe_once(self, first: Request) -> None:
        """Find a wrong key, name or address for a few tokens, before anything is asked of the model in this run."""
        known = self.workshop.replies.get(first.key(self.workshop.model.name)) is not None
        if self.probed or known or self.workshop.replay:
            return

        def probe() -> bool:
            self.asker.probe(self.budget)
            return True

        self.probed = self.journal.decide("probe", probe)

    def _work(self, beam: Sequence[Step]) -> Iterator[tuple[Step, str]]:
        """Directions not tried yet, those of the fastest kernel first."""
        left = self.options.directions
        for step in beam:
            kernel = digest(step.source)
            for direction in _directions(step.measured):
                if left and (kernel, direction) not in self.tried:
                    self.tried.add((kernel, direction))
                    left -= 1
                    yield step, direction

    def _consider(self, step: Step, direction: str, reply: Reply) -> Step | None:
        """The new step if the candidate is right, faster by the margin, and passed by the reviewer."""
        self.attempts += 1
        name = f"1.{self.attempts}"
        source, verdict, problem = self._tried(step, reply)
        self._note(name, step.id, f"optimize: {direction}", source, verdict, problem)
        if source is None or verdict is None or not verdict.passed:
            reason = problem or (f"refused, {verdict.error_class}" if verdict else "nothing")
            self._write(direction, reason)
            return None
        try:
            measured = self._measure(source)
        except UnmeasurableError as error:
            self._write(direction, error.message)
            return None
        gain = 1 - measured.latency_ns / step.measured.latency_ns
        if gain < self.options.margin:
            self._write(direction, f"right, {-gain:+.1%} predicted latency: below the margin")
            return None
        claim = (
            f"predicted latency {step.measured.latency_ns / 1e3:.2f} -> {measured.latency_ns / 1e3:.2f} us "
            f"({-gain:+.1%}) on {measured.case}, by the simulator's latency model"
        )
        objection = self._review(step, source, claim, measured)
        if objection:
            self._write(direction, f"{claim}; the reviewer refused: {objection}")
            return None
        self._write(direction, f"{claim}; accepted")
        directions = (*step.directions, direction)
        return Step(id=name, source=source, measured=measured, verdict=verdict, directions=directions)

    def _tried(self, step: Step, reply: Reply) -> tuple[str | None, Verdict | None, str]:
        text = without_thoughts(reply.text)
        if "NO CHANGE:" in text and "@nki.jit" not in text:
            return None, None, f"the model sees no gain: {as_line(text.partition('NO CHANGE:')[2])}"
        try:
            source = extract_code(reply.text, self.task.name, reply.finish)
        except ExtractionError as error:
            return None, None, error.message
        same = normalised_digest(source)
        if same in self.seen:
            return source, None, "a kernel that was tried before"
        self.seen.add(same)
        return source, self.trier.grade(source), ""

    def _review(self, step: Step, source: str, claim: str, measured: Measured) -> str:
        """The reviewer's objection, "" if there is none. An answer that is no answer counts as an objection."""
        request = self.questions.review(
            without_comments(step.source), without_comments(source), claim, measured.profile.splitlines()[:6]
        )
        reply = self.asker.ask(request, self.budget.child("review"), stage="review")
        return objection_in(reply.text)

    def _write(self, direction: str, result: str) -> None:
        self.ledger.append(f"{direction} Result: {result}")
        self.log.note("direction", attempt=self.attempts, direction=direction, result=result)

    def _note(
        self, name: str, parent: str | None, rung: str, source: str | None, verdict: Verdict | None,
        problem: str = "",
    ) -> None:  # fmt: skip
        candidate = Candidate(
            id=name,
            line=0,
            round=self.attempts,
            parent=parent,
            rung=rung,
            plan=None,
            source=source,
            problem=problem,
        )
        self.log.candidate(candidate)
        if verdict is not None:
            self.log.verdict(candidate, "graded", verdict)

    # ---- the end -----------------------------------------------------------------------------------------

    def _admitted(self, beam: Sequence[Step], before: Step) -> Step:
        """The fastest kernel that survives a clean run; the one that we began with, if none does."""
        for step in beam:
            if step is before:
                break
            self.progress(f"admitting the kernel of {_us(step)} (predicted)")
            verdict = self.trier.admit(step.source)
            self.log.note("verdict", candidate=step.id, check="admission", verdict=verdict)
            if verdict.passed:
                return replace(step, verdict=verdict)
            self.ledger.append(f"A faster kernel was not admitted: {verdict.message}")
        return before

    def _learn(self, before: Step, after: Step) -> None:
        memory = self.workshop.memory
        if memory is None or memory.frozen:
            return
        family, task = family_of(self.task), self.task.key
        primitives = called_instructions(after.source)
        if after is not before:
            metric = f"predicted latency {_us(before)} -> {_us(after)}, simulator tier"
            note = " ".join(after.directions)
            memory.remember(
                Lever(
                    family=family,
                    primitives=primitives,
                    task=task,
                    note=note,
                    metric=metric,
                    verdict=after.verdict,
                )
            )
        for line in self.ledger:
            if "below the margin" in line:
                memory.remember(DeadEnd(family=family, primitives=primitives, task=task, note=line))


def _directions(measured: Measured) -> Iterator[str]:
    """What the profile advises, by expected gain, then the menu."""
    for advice in measured.advice:
        yield str(as_line(f"{advice['change']} ({advice['measured']}, {advice['location']})"))
    yield from MENU


def objection_in(reply: str) -> str:
    """What a review objects to: the first answer that is not ok, or that the review cannot be read."""
    text = without_thoughts(reply)
    try:
        review = json.loads(text[text.index("{") : text.rindex("}") + 1])
        answers = review["answers"]
        for question in REVIEW_QUESTIONS:
            answer = answers[question["name"]]
            if answer["ok"] is not True:
                return f"{question['name']}: {as_line(answer.get('why', 'no reason given'))}"
        return "" if review["accept"] is True else "it answers every question with ok and does not accept"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "the review cannot be read"


def without_comments(source: str) -> str:
    """The code alone: a reviewer is not to be talked to by what it reviews. Docstrings and messages go too."""
    return ast.unparse(ast.fix_missing_locations(_Wordless().visit(parse_python(source)))) + "\n"


class _Wordless(ast.NodeTransformer):
    """Takes away what is said to people: strings that stand alone, and what an assert says."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.copy_location(ast.Pass(), node) if isinstance(node.value, ast.Constant) else node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.copy_location(ast.Assert(test=node.test, msg=None), node)


def _us(step: Step) -> str:
    return f"{step.measured.latency_ns / 1e3:.2f} µs"
