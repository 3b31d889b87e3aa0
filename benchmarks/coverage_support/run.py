"""Measures architectures, each in a process of its own, and keeps every row as soon as it is known."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoo import Entry

from neuron_port.types import digest, from_json

from .measure import Settings, convert, last_words
from .record import Row, code_digest, keep, kept


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is asked of every architecture.

    `command`, with an architecture's name and the settings behind it, prints its row as JSON. `results` is the folder
    of kept rows; `any_kept` takes also those that other code or settings gave.
    """

    command: Sequence[str]
    settings: Settings
    results: Path
    convert: bool = False
    any_kept: bool = False
    limit_seconds: float = 1800.0

    @property
    def folder(self) -> Path:
        """Rows with and without conversions stand apart."""
        return self.results / ("conversions" if self.convert else "plans")

    def row(self, entry: Entry) -> Row:
        """The kept row, or a new one, which is kept from now on."""
        key = digest(code_digest(whole=self.convert), *vars(self.settings).values())
        found = kept(self.folder, None if self.any_kept else key, entry.name)
        if found is not None:
            _say(f"{entry.name}: kept from an earlier run")
            return found
        row = self._planned(entry)
        if self.convert and row.failure is None:
            place = self.folder / entry.name
            row = replace(row, converted=convert(entry, self.settings, place, self.limit_seconds))
        keep(self.folder, key, row)
        _say(f"{entry.name}: {sentence(row)}")
        return row

    def _planned(self, entry: Entry) -> Row:
        """The row as its process gives it; the failure of the process is the row's."""
        started = time.perf_counter()
        options = [part for name, value in vars(self.settings).items() for part in (f"--{name}", str(value))]
        try:
            done = subprocess.run(
                [*self.command, entry.name, *options],
                capture_output=True,
                text=True,
                timeout=self.limit_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            failure = f"not done after {self.limit_seconds:.0f} s"
        else:
            if done.returncode == 0:
                return from_json(Row, json.loads(done.stdout))
            failure = last_words(done.stderr, done.returncode)
        seconds = time.perf_counter() - started
        return Row(name=entry.name, family=entry.family, seconds=seconds, failure=failure)


def sentence(row: Row) -> str:
    """One row in one line, for whoever waits."""
    if row.failure is not None:
        return f"failed: {row.failure}"
    text = f"{row.total('kernel_layers')} of {row.total('layers')} layers in kernels, {row.seconds:.1f} s"
    if row.converted is not None:
        text += f"; conversion {row.converted.failure or row.converted.state}, {row.converted.seconds:.0f} s"
    return text


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
