"""The real drafting loop on a task so small that a verdict takes a fraction of a second; the kill test runs `main`.

    python loop_program.py HOME URL [replay]

`TASK`, its kernels and `Author`, a scripted language model by rules, also serve the tests of the loop in one process.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import openai.resources.chat  # noqa: F401  (the package imports it late; here, once, in the template process)

from neuron_port.drafting.keeping.files import replace_file
from neuron_port.drafting.keeping.journal import Journal, run_folder
from neuron_port.drafting.loop import draft, run_key
from neuron_port.drafting.memory.lessons import Memory
from neuron_port.drafting.options import DraftOptions
from neuron_port.drafting.spending.budget import BudgetLimits
from neuron_port.drafting.workshop import Workshop
from neuron_port.llm.choose import choose_model
from neuron_port.llm.messages import Price
from neuron_port.recipe import Case, Size
from neuron_port.sandbox.executor import LocalExecutor
from neuron_port.task import KernelTask
from tests.llm.scripted_server import Answer, Call, failure

PRICE = Price(input_usd=1.0, output_usd=5.0)
HIDDEN_SEED = 271828182845
OPTIONS = DraftOptions(drafts=2, repairs=4, show_exemplars=True)

REFERENCE = '''def reference(x, bias):
    """x * x + bias, row by row: x [T, H], bias [H]."""
    return x * x + bias
'''
GOOD = '''"""A row of x in each partition. Legend: T = tokens, H = features."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def square_plus(x, bias):
    """x * x + bias: x [T, H] @ HBM, bias [H] @ HBM. Returns [T, H]."""
    tokens, features = x.shape
    out = nl.ndarray((tokens, features), dtype=x.dtype, buffer=nl.shared_hbm)
    x_sbuf = nl.ndarray((tokens, features), dtype=x.dtype, buffer=nl.sbuf)
    bias_sbuf = nl.ndarray((tokens, features), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x)
    nisa.dma_copy(dst=bias_sbuf, src=bias.expand_dim(0).broadcast(0, tokens))
    squares = nl.ndarray((tokens, features), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=squares, data1=x_sbuf, data2=x_sbuf, op=nl.multiply)
    nisa.tensor_tensor(dst=x_sbuf, data1=squares, data2=bias_sbuf, op=nl.add)
    nisa.dma_copy(dst=out, src=x_sbuf)
    return out
'''


def variant(old: str, new: str) -> str:
    """The good kernel with one change."""
    assert old in GOOD
    return GOOD.replace(old, new)


SUBTRACTS = variant("op=nl.add", "op=nl.subtract")  # wrong values
HBM_OPERAND = variant(
    "nisa.tensor_tensor(dst=squares, data1=x_sbuf", "nisa.tensor_tensor(dst=squares, data1=x"
)
TOO_WIDE = variant("squares = nl.ndarray((tokens, features)", "squares = nl.ndarray((256, features)")
UNKNOWN_CALL = variant("nisa.tensor_tensor(dst=x_sbuf", "nisa.tensor_plus(dst=x_sbuf")
NO_STORE = variant("    nisa.dma_copy(dst=out, src=x_sbuf)\n", "")
OTHER_GOOD = variant("squares", "products")
# Right up to four tokens: the public cases have no more, so only hidden cases and admissions see what is wrong.
FEW_TOKENS_ONLY = variant(
    "    squares = nl.ndarray",
    "    bias_sbuf = bias_sbuf if tokens < 5 else x_sbuf\n    squares = nl.ndarray",
)

PLAN = {
    "summary": "A token in each partition.",
    "partition_axis": "tokens",
    "free_axis": "features",
    "tiling": [
        {"size": "T", "tile": 6, "axis": "partition", "tail": "slice"},
        {"size": "H", "tile": 8, "axis": "free", "tail": "slice"},
    ],
    "tiles": [{"name": "x_sbuf", "memory": "sbuf", "shape": [6, 8], "dtype": "float32", "buffers": 1}],
    "products": [],
    "steps": [
        {"what": "load and store", "instruction": "nisa.dma_copy", "engine": "dma"},
        {"what": "square and add", "instruction": "nisa.tensor_tensor", "engine": "vector"},
    ],
    "edges": "Slices have the sizes of the tensors.",
    "numerics": "float32 throughout.",
    "source_map": [],
}


def reference(x: Any, bias: Any) -> Any:
    """x * x + bias, row by row: x [T, H], bias [H]."""
    return x * x + bias


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H], bias [H]."""
    return draw.normal((sizes["T"], sizes["H"])), draw.weight((sizes["H"],))


TASK = KernelTask(
    name="square_plus",
    summary="The square of each element, plus a bias for each feature.",
    schema="(Tensor x, Tensor bias) -> Tensor",
    layout={"x": "[T, H]", "bias": "[H]", "return": "[T, H]"},
    reference=reference,
    reference_text=REFERENCE,
    inputs=inputs,
    cases=(
        Case(name="small", kind="ordinary", sizes={"T": 4, "H": 8}),
        Case(name="one token", kind="tail", sizes={"T": 1, "H": 5}),
    ),
    sizes={"T": Size(least=1, most=6), "H": Size(least=1, most=8)},
    dtypes=("float32",),
)


def fenced(code: str, words: str = "The cause was a mistake in one line.") -> str:
    return f"{words}\n\n```python\n{code}```\n"


def plan_reply(**changes: Any) -> str:
    return f"```json\n{json.dumps({**PLAN, **changes})}\n```"


def purpose_of(call: Call) -> str:
    """What a question of the loop asks for, by the words of its template."""
    text = call.last_message
    for words, purpose in (
        ("Your last reply could not be used", "reask"),
        ("Make another plan", "new plan"),
        ("Plan the kernel; do not write it yet", "plan"),
        ("You did not write either kernel", "review"),
        ("Make it faster in one way", "optimize"),
        ("make it simple", "simplify"),
        ("Find the cause, and correct it", "repair"),
        ("Write the kernel by this plan", "draft"),
    ):
        if words in text:
            return purpose
    return "probe"


def in_turn(*replies: str | Answer) -> Callable[[Call], str | Answer]:
    """Replies one after the other, for runs that ask one question at a time; the last one stays."""
    rest = list(replies)
    return lambda call: rest.pop(0) if len(rest) > 1 else rest[0]


@dataclass
class Author:
    """A language model by rules: `plan`, `draft` ... are replies, or functions of the call that return one.

    Drafts and repairs wait a little that depends on the question, so that replies arrive in another order than asked.
    """

    replies: Mapping[str, str | Answer | Callable[[Call], str | Answer]] = field(default_factory=dict)
    longest_delay_seconds: float = 0.0

    def __call__(self, call: Call) -> Answer | str:
        purpose = purpose_of(call)
        reply = {"probe": "ok", "plan": plan_reply(), **self.replies}.get(purpose)
        if reply is None:
            return failure(400, f"Nothing is scripted for a question of kind {purpose}.")
        answer = reply(call) if callable(reply) else reply
        if isinstance(answer, str):
            answer = Answer(text=answer)
        share = hashlib.sha256(json.dumps(call.body["messages"]).encode()).digest()[0] / 255
        return replace(answer, delay_seconds=answer.delay_seconds + share * self.longest_delay_seconds)


def fix_hidden_seed(home: Path, key: str) -> None:
    """Decide the run's hidden seed, which is drawn otherwise, so that verdicts can be compared and kept."""
    with Journal(run_folder(home, key)) as journal:
        journal.decide("hidden seed", lambda: HIDDEN_SEED)


def main(home_folder: str, url: str, replay: str = "") -> None:
    """Draft a kernel for TASK, and write down what came of it."""
    home = Path(home_folder)
    model = choose_model(f"{url}#scripted", api_key="k", price=PRICE, home=home)
    with (
        LocalExecutor(workers=2) as executor,
        Memory(home / "memory.sqlite", dialect="0.6", verifier_version="1") as memory,
    ):
        workshop = Workshop(
            home=home, model=model, executor=executor, memory=memory, replay=bool(replay),
            limits=BudgetLimits(usd=50.0, calls=500),
        )  # fmt: skip
        fix_hidden_seed(home, run_key(TASK, model.name, OPTIONS))
        result = draft(TASK, workshop, OPTIONS)
        lessons = [(lesson.kind, lesson.note, lesson.successes) for lesson in memory.rows()]
    told = {
        "outcome": result.outcome,
        "source": result.source,
        "line": [judged.candidate.id for judged in result.line],
        "candidates": [
            (one.candidate.id, one.candidate.sha256, [(check, verdict.error_class) for check, verdict in one.verdicts])
            for one in result.candidates
        ],
        "lessons": lessons,
    }  # fmt: skip
    replace_file(home / "result.json", json.dumps(told, indent=1).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
