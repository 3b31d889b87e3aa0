"""Scripted replies: what a language model might answer to a task of the suite, mistakes included. No model wrote them.

Each is `scripted/<number>-<purpose>-<what>.md` in the task's folder, and opens with a header that says so:

    ---
    scripted: written by hand for tests; no language model wrote this
    purpose: draft
    mistake: no maximum is subtracted before exp
    error: non-finite
    ---

The rest is the reply, word for word. `mistake: none` marks a kernel that is right; `error` is the class of the
verdict on the others; `finish: length` a reply that the token limit cut. Served in order, they lead from a plan over
realistic mistakes to a kernel that passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuron_port.bench.suite import BenchTask
from neuron_port.errors import UsageError
from neuron_port.llm.messages import Finish

PURPOSES = ("plan", "draft", "repair")
FINISHES: tuple[Finish, ...] = ("stop", "length")


@dataclass(frozen=True, kw_only=True)
class ScriptedReply:
    """One reply. `mistake` and `error` are "" for a plan and for a kernel that is right."""

    name: str  # "draft-dropped-maximum"
    purpose: str
    text: str
    mistake: str = ""
    error: str = ""
    finish: Finish = "stop"


def scripted_replies(bench_task: BenchTask) -> tuple[ScriptedReply, ...]:
    """The replies of a task in the order in which they are to be given."""
    files = sorted((bench_task.folder / "scripted").glob("*.md"))
    if not files:
        raise UsageError(f"Task `{bench_task.name}` has no scripted replies", hint="Add scripted/1-plan.md")
    return tuple(_read(file) for file in files)


def exchange(bench_task: BenchTask) -> list[tuple[str, str]]:
    """(purpose, text) of every reply, in order: what a replay model is given."""
    return [(reply.purpose, reply.text) for reply in scripted_replies(bench_task)]


def _read(file: Path) -> ScriptedReply:
    _, _, rest = file.read_text().partition("---\n")
    header, mark, text = rest.partition("\n---\n")
    fields = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
    finish = next((known for known in FINISHES if known == fields.get("finish", "stop")), None)
    if not mark or "scripted" not in fields or fields.get("purpose") not in PURPOSES or finish is None:
        raise UsageError(
            f"{file}: the header is not that of a scripted reply",
            hint=f"It names `scripted`, `purpose` ({', '.join(PURPOSES)}), `mistake` and `error`.",
        )
    mistake = fields.get("mistake", "none")
    return ScriptedReply(
        name=file.stem.split("-", 1)[1],
        purpose=fields["purpose"],
        text=text,
        mistake="" if mistake == "none" else mistake,
        error=fields.get("error", ""),
        finish=finish,
    )
