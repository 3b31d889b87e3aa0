"""What a job has spent so far, kept on S3 beside it: instances of crashed runs count too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from neuron_port.deploy.job import Job, Phase
from neuron_port.deploy.job_store import JobStore
from neuron_port.deploy.tags import moment, stamp

NAME = "ledger.json"
Clock = Callable[[], datetime]


class Ledger:
    """Every instance that a job has started: when, at what price, and when it ended."""

    def __init__(self, store: JobStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._entries: list[dict[str, Any]] = (store.read_json(NAME) or {"instances": []})["instances"]

    def attempts(self, phase: str) -> int:
        return sum(entry["phase"] == phase for entry in self._entries)

    def began(self, phase: Phase, *, market: str, minutes: int) -> None:
        """Note an instance that is about to be started: the note comes first, a crash in between costs a guess."""
        self._entries.append(
            {"phase": phase.name, "type": phase.instance.name, "market": market, "instance": None,
             "usd_per_hour": phase.usd_per_hour, "minutes": minutes, "started": stamp(self._clock()), "ended": None}
        )  # fmt: skip
        self._write()

    def named(self, instance: str) -> None:
        self._entries[-1]["instance"] = instance
        self._write()

    def ended(self, instance: str | None) -> None:
        """Note the end of an instance; None is the last one, which never came to be."""
        for entry in self._entries:
            if entry["ended"] is None and (entry["instance"] == instance or instance is None):
                entry["ended"] = entry["started"] if instance is None else stamp(self._clock())
        self._write()

    def usd(self) -> float:
        """US$ so far, at on-demand prices: what was started and never noted as ended is counted to its hard end."""
        return sum(self._usd(entry) for entry in self._entries)

    def _usd(self, entry: dict[str, Any]) -> float:
        started = moment(entry["started"])
        last = started + timedelta(minutes=entry["minutes"])
        end = min(last, moment(entry["ended"]) if entry["ended"] else self._clock())
        return float(entry["usd_per_hour"]) * max(0.0, (end - started).total_seconds()) / 3600

    def _write(self) -> None:
        self._store.write_json(NAME, {"instances": self._entries})


def minutes_left(job: Job, phase: Phase, spent_usd: float) -> int:
    """How long an instance of this phase may run: its own limit, and what the ceiling still pays."""
    later = job.phases[[each.name for each in job.phases].index(phase.name) + 1 :]
    left = job.options.max_usd - spent_usd - sum(each.expected_usd for each in later)
    paid = int(left / phase.usd_per_hour * 60) if phase.usd_per_hour else phase.minutes
    return max(0, min(phase.minutes, paid))
