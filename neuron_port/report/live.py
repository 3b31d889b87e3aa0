"""The view of a conversion while it runs: a line for each stage, redrawn in a terminal, appended elsewhere.

Appended lines carry no escape codes and go to standard error, one for each event. Progress inside a stage is
an event too, but at most one in a few seconds, so that a log of a long run stays readable. The first lines of a
stage are held back for a moment: if it turns out that its stored result is reused, one line says so, and no other.
"""

from __future__ import annotations

import sys
import threading
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
_PATIENCE_SECONDS = 1.0  # reading a stored result takes less


@dataclass(kw_only=True)
class StageProgress:
    """One stage as it runs. Whoever runs it may set `detail`, which is kept in the stage's record.

    Whoever finds the stored result still valid calls `skip`: the stage ends as skipped instead of done.
    """

    name: str
    state: StageState = "waiting"
    detail: str = ""
    text: str = ""
    done: int = 0
    total: int = 0
    started_seconds: float = 0.0
    seconds: float = 0.0
    reused: bool = False

    def skip(self, reason: str) -> None:
        """Says that nothing was done, and why: the stored result is used."""
        self.reused, self.detail = True, reason


class LiveView:
    """Shows stages while they run; a context manager. Afterwards `records` holds what ran and what did not.

    Args:
        console: where to draw. Without a terminal, plain lines are written instead: to its own file, or to
            standard error if that file is standard output.
        enabled: False writes plain lines even in a terminal (--json, --quiet).
        stages: names that are known beforehand; they are shown as waiting.
        clock: seconds, for elapsed times.
        patience_seconds: how long a stage's first lines are held back.
    """

    def __init__(
        self,
        console: Console,
        enabled: bool = True,
        *,
        stages: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._console = console
        self._clock = clock
        self._stages = {name: StageProgress(name=name) for name in stages}
        self._current: StageProgress | None = None
        self._records: list[StageRecord] = []
        self._last_line_seconds = -float("inf")
        self._last_text = ""
        self._lines = _PlainLines(self._plain_stream, patience_seconds)
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
        self._lines.release()
        if self._live is not None:
            self._live.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[StageProgress]:
        """Runs one stage; an exception marks it as failed, Ctrl-C as interrupted, and both go on.

        A stage whose `skip` was called ends as skipped, in one plain line unless it took long to find out.
        """
        stage = self._stages.setdefault(name, StageProgress(name=name))
        stage.state, stage.started_seconds = "running", self._clock()
        self._current, self._last_line_seconds, self._last_text = stage, -float("inf"), ""
        if self._live is None:
            self._lines.hold()
        self._event(f"{name}: started")
        try:
            yield stage
        except BaseException as error:
            self._finish(stage, "failed" if isinstance(error, Exception) else "interrupted")
            raise
        self._finish(stage, "skipped" if stage.reused else "done")
        record = StageRecord(name=name, seconds=stage.seconds, reused=stage.reused, detail=stage.detail)
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
        """Marks a stage that was not even started: its inputs did not change, and the stored result is used."""
        stage = self._stages.setdefault(name, StageProgress(name=name))
        stage.skip(reason)
        stage.state = "skipped"
        self._records.append(StageRecord(name=name, seconds=0.0, reused=True, detail=reason))
        self._event(f"{name}: skipped, {reason}")

    def note(self, text: str) -> None:
        """Says something that stays: above the stages in a terminal, a line elsewhere."""
        if self._live is not None:
            self._console.print(Text(text))
        else:
            self._lines.release()
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
        if state == "skipped":
            self._lines.discard()
            self._event(f"{stage.name}: skipped{detail}")
            return
        self._lines.release()
        self._event(f"{stage.name}: {state} after {seconds_text(stage.seconds)}{detail}")

    def _event(self, line: str) -> None:
        if self._live is None and not self._console.quiet:
            self._lines.write(line.replace("\n", " "))

    def _plain_stream(self) -> TextIO:
        stream = self._console.file
        is_output = stream is sys.stdout or getattr(stream, "rich_proxied_file", None) is sys.stdout
        return sys.stderr if is_output else stream  # type: ignore[return-value]  # rich types it as IO[str]


class _PlainLines:
    """Writes lines at once or, while they are held, all together when released: by a timer at the latest."""

    def __init__(self, stream: Callable[[], TextIO], patience_seconds: float) -> None:
        self._stream = stream
        self._patience_seconds = patience_seconds
        self._lock = threading.RLock()
        self._held: list[str] | None = None
        self._timer: threading.Timer | None = None

    def write(self, line: str) -> None:
        with self._lock:
            if self._held is not None:
                self._held.append(line)
                return
            stream = self._stream()
            stream.write(line + "\n")
            stream.flush()

    def hold(self) -> None:
        """Keep what is written from now on, until `release` or `discard`, or the end of patience."""
        with self._lock:
            self.release()
            self._held = []
            self._timer = threading.Timer(self._patience_seconds, self._release_unless_newer, [self._held])
            self._timer.daemon = True
            self._timer.start()

    def release(self) -> None:
        """Write what was held."""
        with self._lock:
            for line in self._end():
                self.write(line)

    def discard(self) -> None:
        """Forget what was held."""
        with self._lock:
            self._end()

    def _release_unless_newer(self, held: list[str]) -> None:
        with self._lock:
            if self._held is held:
                self.release()

    def _end(self) -> list[str]:
        if self._timer is not None:
            self._timer.cancel()
        held, self._held, self._timer = self._held or [], None, None
        return held


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
