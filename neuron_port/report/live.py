"""The view of a conversion while it runs: a line for each stage, redrawn in a terminal, appended elsewhere.

Appended lines carry no escape codes and go to standard error, one for each event. Progress inside a stage is
an event too, but at most one in a few seconds, so that a log of a long run stays readable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from neuron_port.report.numbers import seconds_text
from neuron_port.report.records import StageRecord

StageState = Literal["waiting", "running", "done", "skipped", "failed", "interrupted"]
_STYLE = {"waiting": "dim", "running": "bold", "done": "green", "skipped": "dim", "failed": "bold red"}
_PLAIN_INTERVAL_SECONDS = 5.0


@dataclass(kw_only=True)
class StageProgress:
    """One stage as it runs. Whoever runs it may set `detail`, which is kept in the stage's record."""

    name: str
    state: StageState = "waiting"
    detail: str = ""
    text: str = ""
    done: int = 0
    total: int = 0
    started_seconds: float = 0.0
    seconds: float = 0.0


class LiveView:
    """Shows stages while they run; a context manager. Afterwards `records` holds what ran and what did not.

    Args:
        console: where to draw. Without a terminal, plain lines are written instead: to its own file, or to
            standard error if that file is standard output.
        enabled: False writes plain lines even in a terminal (--json, --quiet).
        stages: names that are known beforehand; they are shown as waiting.
        clock: seconds, for elapsed times.
    """

    def __init__(
        self,
        console: Console,
        enabled: bool = True,
        *,
        stages: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._clock = clock
        self._stages = {name: StageProgress(name=name) for name in stages}
        self._current: StageProgress | None = None
        self._records: list[StageRecord] = []
        self._last_line_seconds = -float("inf")
        self._last_text = ""
        self._live: Live | None = None
        if enabled and console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(self, console=console, refresh_per_second=8, vertical_overflow="visible")

    @property
    def records(self) -> tuple[StageRecord, ...]:
        """Every stage that finished or was skipped, in order."""
        return tuple(self._records)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the last picture on the screen and gives the cursor back, also after Ctrl-C."""
        if self._live is not None:
            self._live.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[StageProgress]:
        """Runs one stage; an exception marks it as failed, Ctrl-C as interrupted, and both go on."""
        stage = self._stages.setdefault(name, StageProgress(name=name))
        stage.state, stage.started_seconds = "running", self._clock()
        self._current, self._last_line_seconds, self._last_text = stage, -float("inf"), ""
        self._event(f"{name}: started")
        try:
            yield stage
        except BaseException as error:
            self._finish(stage, "failed" if isinstance(error, Exception) else "interrupted")
            raise
        self._finish(stage, "done")
        record = StageRecord(name=name, seconds=stage.seconds, reused=False, detail=stage.detail)
        self._records.append(record)

    def update(self, text: str, done: int = 0, total: int = 0) -> None:
        """Says what the running stage is doing: the layer or prompt, and how many of all are finished."""
        if self._current is None:
            raise AssertionError(f"update({text!r}) outside of a stage")
        stage = self._current
        stage.text, stage.done, stage.total = text, done, total
        now = self._clock()
        is_last = total > 0 and done >= total
        if is_last or now - self._last_line_seconds >= _PLAIN_INTERVAL_SECONDS:
            self._last_line_seconds = now
            line = f"{stage.name}: {text}" + (f" ({done}/{total})" if total else "")
            if line != self._last_text:
                self._last_text = line
                self._event(line)

    def skip(self, name: str, reason: str) -> None:
        """Marks a stage as not run: its inputs did not change, and the stored result is used."""
        stage = self._stages.setdefault(name, StageProgress(name=name))
        stage.state, stage.detail = "skipped", reason
        self._records.append(StageRecord(name=name, seconds=0.0, reused=True, detail=reason))
        self._event(f"{name}: skipped, {reason}")

    def note(self, text: str) -> None:
        """Says something that stays: above the stages in a terminal, a line elsewhere."""
        if self._live is not None:
            self._console.print(Text(text))
        else:
            self._event(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The stages as they are now."""
        now = self._clock()
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column("stage", no_wrap=True)
        grid.add_column("state", no_wrap=True, min_width=len("interrupted"))
        grid.add_column("text", ratio=1, no_wrap=True, overflow="ellipsis")
        grid.add_column("progress", width=max(10, min(24, options.max_width // 5)))
        grid.add_column("count", justify="right", no_wrap=True)
        grid.add_column("time", justify="right", no_wrap=True, min_width=8)
        for stage in self._stages.values():
            grid.add_row(*_row(stage, now))
        yield grid

    def _finish(self, stage: StageProgress, state: StageState) -> None:
        stage.state, stage.seconds = state, self._clock() - stage.started_seconds
        self._current = None
        detail = f", {stage.detail}" if stage.detail else ""
        self._event(f"{stage.name}: {state} after {seconds_text(stage.seconds)}{detail}")

    def _event(self, line: str) -> None:
        if self._live is None:
            stream = self._plain_stream()
            stream.write(line.replace("\n", " ") + "\n")
            stream.flush()

    def _plain_stream(self) -> TextIO:
        stream = self._console.file
        is_output = stream is sys.stdout or getattr(stream, "rich_proxied_file", None) is sys.stdout
        return sys.stderr if is_output else stream  # type: ignore[return-value]  # rich types it as IO[str]


def _row(stage: StageProgress, now: float) -> tuple[Text | ProgressBar | str, ...]:
    style = _STYLE.get(stage.state, "bold red")
    name, state = Text(stage.name, style=style), Text(stage.state, style=style)
    if stage.state == "running":
        progress = ProgressBar(total=stage.total, completed=stage.done) if stage.total else ""
        count = f"{stage.done}/{stage.total}" if stage.total else ""
        return name, state, Text(stage.text), progress, count, seconds_text(now - stage.started_seconds)
    text = Text(stage.detail or (stage.text if stage.state in ("failed", "interrupted") else ""), style="dim")
    return (
        name,
        state,
        text,
        "",
        "",
        seconds_text(stage.seconds) if stage.state not in ("waiting", "skipped") else "",
    )
