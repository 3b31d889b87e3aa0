"""A small drafting loop for the kill test: nine questions, verdicts computed from the replies, one result file.

    python kill_program.py HOME URL NAME [replay]

It is a function of its arguments and the replies alone: whatever a killed session did is found again by key.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
import time
from pathlib import Path

import openai.resources.chat  # noqa: F401  (the package imports it late; here, once, in the template process)

from neuron_port.drafting.keeping.files import replace_file
from neuron_port.drafting.keeping.journal import Journal, RunDescription, run_folder
from neuron_port.drafting.keeping.record_cache import RecordCache, open_replies, open_verdicts, verdict_key
from neuron_port.drafting.spending.asking import Asker, resume_budget
from neuron_port.drafting.spending.budget import BudgetLimits
from neuron_port.grading.verdict import Verdict
from neuron_port.llm.choose import choose_model
from neuron_port.llm.messages import Message, Price, Reply, Request

PRICE = Price(input_usd=1.0, output_usd=5.0)
DRAFTS = 4
REPAIRS = 3


def main(home_folder: str, url: str, name: str, replay: str = "") -> None:
    home = Path(home_folder)
    model = choose_model(f"{url}#scripted", api_key="k", price=PRICE, home=home)
    replies, verdicts = open_replies(home), open_verdicts(home)
    description = RunDescription(task=name, target="trn2", model=model.name)
    with Journal(run_folder(home, name), description) as journal:
        limits = BudgetLimits(usd=5.0, calls=500)
        budget = resume_budget(journal, replies, limits, price=model.price).child(f"layer {name}")
        asker = Asker(model, journal, replies, replay=bool(replay))
        # In every question, so that a run that forgot what it decided on would ask other questions.
        mark = journal.decide("mark", lambda: secrets.token_hex(4))

        plan = asker.ask(_question("plan", mark, f"Plan {name}."), budget.child("plan"))
        drafts = asker.ask_all(
            [
                _question("draft", mark, f"Draft {number} of this plan: {plan.text}")
                for number in range(DRAFTS)
            ],
            budget.child("draft"),
        )
        judged = [(reply.text, _judge(reply.text, verdicts)) for reply in drafts if isinstance(reply, Reply)]
        for _ in range(REPAIRS):
            text, verdict = min(judged, key=lambda pair: (pair[1].line or 0, pair[0]))
            request = _question("repair", mark, f"Line {verdict.line} of {len(judged)} is wrong: {text}")
            repaired = asker.ask(request, budget.child("repair"))
            judged.append((repaired.text, _judge(repaired.text, verdicts)))
        review = asker.ask(_question("review", mark, f"Review: {judged[-1][0]}"), budget.child("review"))
        result = {"judged": [(text, verdict.line) for text, verdict in judged], "review": review.text}
        replace_file(home / f"{name}.json", json.dumps(result).encode())
        if journal.state().ended is None:
            journal.append({"kind": "ended", "outcome": "kernel"})


def _question(purpose: str, mark: str, text: str) -> Request:
    message = Message(role="user", content=f"[{mark}] {text}")
    return Request(messages=(message,), max_output_tokens=300, purpose=purpose)


def _judge(text: str, verdicts: RecordCache[Verdict]) -> Verdict:
    """A verdict that takes a while and depends on the text alone, computed once."""
    key = verdict_key(text, oracle_key="oracle", check="hidden", tier="simulator", verifier_version="1")
    verdict = verdicts.get(key)
    if verdict is None:
        time.sleep(0.005)
        line = hashlib.sha256(text.encode()).digest()[0]
        verdict = Verdict(passed=False, stage="ran", error_class="wrong values", line=line)
        verdicts.keep(key, verdict)
    return verdict


if __name__ == "__main__":
    main(*sys.argv[1:])
