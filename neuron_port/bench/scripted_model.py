"""A `LanguageModel` that gives a task's scripted replies: it shows that the loop works, and nothing about any model.

Replies depend on the request alone, never on what was asked before, so drafts may be asked for side by side, and a run
that was killed gets the same ones. A repair is answered with the script's next reply after the one that it quotes.
"""

from __future__ import annotations

from collections.abc import Sequence

from neuron_port.bench.scripts import ScriptedReply, scripted_replies
from neuron_port.bench.suite import BenchTask
from neuron_port.drafting.prompts.questions import REDRAFT, REPEAT
from neuron_port.drafting.replies.extraction import ExtractionError, extract_code
from neuron_port.llm.failures import estimated_usage
from neuron_port.llm.messages import MayRetry, OnText, Price, Reply, Request, Usage
from neuron_port.types import digest

NAME = "scripted"


class ScriptedModel:
    """The script of one task. The first run begins with its first draft, the second with the reply after that ..."""

    def __init__(self, task: BenchTask) -> None:
        replies = scripted_replies(task)
        self._plans = [reply for reply in replies if reply.purpose == "plan"]
        self._kernels = [reply for reply in replies if reply.purpose != "plan"]
        self._sources = [_source(reply, task.name) for reply in self._kernels]
        script = digest([(reply.purpose, reply.text, reply.finish) for reply in replies])
        self.name = f"{NAME}:{task.name}@{script}"  # a script that was changed is another model to the caches

    @property
    def price(self) -> Price | None:
        return None

    def complete(
        self, request: Request, *, on_text: OnText | None = None, may_retry: MayRetry | None = None
    ) -> Reply:
        reply = self._plan(request) if request.purpose == "plan" else self._kernel(request)
        if on_text is not None:
            on_text(reply.text)
        usage = estimated_usage(request.messages, reply.text)
        return Reply(text=reply.text, usage=usage, finish=reply.finish, model=NAME)

    def probe(self) -> Reply:
        """There is nothing to reach."""
        return Reply(text="", usage=Usage(input_tokens=0, output_tokens=0), finish="stop", model=NAME)

    def _plan(self, request: Request) -> ScriptedReply:
        """The first plan, or the one after that which was refused."""
        quoted = _quoted([reply.text for reply in self._plans], request)
        return self._plans[min(quoted + 1, len(self._plans) - 1)]

    def _kernel(self, request: Request) -> ScriptedReply:
        """A reply for a new draft; for a repair, or a question asked again, the one after that which is quoted."""
        quoted = max(
            _quoted([reply.text for reply in self._kernels], request),
            _shown(self._sources, request) if request.purpose != "draft" else -1,
        )
        if quoted >= 0:
            return self._kernels[min(quoted + 1, len(self._kernels) - 1)]
        draws = request.sample // REPEAT + request.sample % REPEAT // REDRAFT
        return self._kernels[draws % len(self._kernels)]


def _source(reply: ScriptedReply, entry_point: str) -> str | None:
    try:
        return extract_code(reply.text, entry_point, reply.finish)
    except ExtractionError:
        return None


def _quoted(texts: Sequence[str], request: Request) -> int:
    """The number of the last text that the request repeats as the model's own words; -1 when it repeats none."""
    spoken = [message.content for message in request.messages if message.role == "assistant"]
    return max(
        (number for number, text in enumerate(texts) for said in spoken if text.startswith(said)), default=-1
    )


def _shown(sources: Sequence[str | None], request: Request) -> int:
    """The number of the last kernel whose source stands in the question; -1 when none does."""
    asked = request.messages[-1].content
    return max(
        (number for number, source in enumerate(sources) if source and source.strip() in asked), default=-1
    )
