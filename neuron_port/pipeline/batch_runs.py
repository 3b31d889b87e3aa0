"""Several prompts in the rows of one batch at once, each kept as if it had run alone.

Prompts come one at a time, between decode steps, so that rows stand at different positions; a row that one has left
is taken by the next. What each of them got is a `Recording`, which the checks of single sequences read like a session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from neuron_port.port.generate import Batch

Caches = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One prompt's stay in a row: `steps` tokens are appended, those of `forced`, or greedily where there are none.

    `bucket`: the one prefill graph that may be used; None: whichever fits.
    """

    prompt: int  # its number among the proof's prompts
    ids: tuple[int, ...]
    row: int
    steps: int
    forced: tuple[int, ...] | None = None
    bucket: int | None = None


@dataclass
class Recording:
    """What a visit got: logits [V] of the prompt and of each step, and the caches after the first and the last.

    Read by `start`, `advance` and `caches` it is a session that answers what was recorded.
    """

    visit: Visit
    logits: list[torch.Tensor] = field(default_factory=list)
    kept: dict[int, Caches] = field(default_factory=dict)
    read: int = 0

    @property
    def is_over(self) -> bool:
        return len(self.logits) == self.visit.steps + 1

    def token(self, number: int) -> int:
        """The token that followed the logits of that number."""
        forced = self.visit.forced
        return int(forced[number] if forced is not None else self.logits[number].argmax())

    def hear(self, logits: torch.Tensor, caches: Callable[[], Caches]) -> None:
        """Keep what a step answered, and the caches where a check will look at them."""
        self.logits.append(logits.clone())
        if len(self.logits) == 1 or self.is_over:
            self.kept[len(self.logits) - 1] = [(keys.clone(), values.clone()) for keys, values in caches()]

    def start(self, sample: Mapping[str, torch.Tensor]) -> torch.Tensor:
        assert tuple(sample["input_ids"][0].tolist()) == self.visit.ids, "another prompt was recorded"
        self.read = 0
        return self.logits[0]

    def advance(self, token: int) -> torch.Tensor:
        assert token == self.token(self.read), f"the run went on with {self.token(self.read)}, not {token}"
        self.read += 1
        return self.logits[self.read]

    def caches(self) -> Caches:
        return self.kept[self.read]


def run_visits(
    batch: Batch, visits: Sequence[Visit], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Recording]:
    """Run all visits together and return their recordings in the same order.

    They come in order, at most one before each decode step, each as soon as its row is idle.
    """
    recordings = [Recording(visit) for visit in visits]
    waiting = deque(recordings)
    present: dict[int, Recording] = {}
    total = sum(visit.steps + 1 for visit in visits)
    while waiting or present:
        if waiting and waiting[0].visit.row in batch.idle:
            coming = waiting.popleft()
            present[coming.visit.row] = coming
            first = batch.start(coming.visit.row, coming.visit.ids, only=coming.visit.bucket)
            if first is not None:
                _hear(batch, present, {coming.visit.row: first})
        tokens = {row: one.token(len(one.logits) - 1) for row, one in present.items() if one.logits}
        _hear(batch, present, batch.advance(tokens))
        progress(sum(len(one.logits) for one in recordings), total)
    return recordings


def _hear(batch: Batch, present: dict[int, Recording], answers: Mapping[int, torch.Tensor]) -> None:
    """Give every row's answer to its visit; those that are over leave."""
    for row, logits in answers.items():
        present[row].hear(logits, lambda row=row: batch.caches(row))  # type: ignore[misc]
        if present[row].is_over:
            batch.finish(row)
            del present[row]
