"""Waits for one phase of a job: its status on S3, its instance on EC2, the time and the money."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from neuron_port.deploy import machines
from neuron_port.deploy.aws import Aws
from neuron_port.deploy.errors import DeployError
from neuron_port.deploy.job import Job, Phase
from neuron_port.deploy.job_store import JobStore
from neuron_port.deploy.ledger import Clock, Ledger
from neuron_port.deploy.machines import Machine

POLL_SECONDS = 10.0
START_PATIENCE = timedelta(minutes=10)  # from the order to the state `running`
SILENCE_PATIENCE = timedelta(minutes=20)  # from the order to the script's first word


class ReclaimedError(DeployError):
    """AWS took a spot instance back."""


class PhaseFailedError(DeployError):
    """The instance did its work and says that the bundle could not be finished."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What waiting needs; `sleep` and `clock` are parameters so that tests need not wait."""

    aws: Aws
    store: JobStore
    job: Job
    ledger: Ledger
    clock: Clock
    sleep: Callable[[float], None]
    say: Callable[[str], None]

    def until_done(
        self, phase: Phase, machine: Machine, *, attempt: int, deadline: datetime
    ) -> dict[str, Any]:
        """The status of the finished phase.

        Raises: PhaseFailedError, ReclaimedError, DeployError (never started, silent, ended, out of time or money).
        """
        said = ""
        ordered = self.clock()
        while True:
            now = machines.look(self.aws, machine.id)  # before the status, so that a last word is not missed
            status = self._status(phase, attempt)
            if status is not None:
                if status["message"] != said:
                    said = status["message"]
                    self.say(f"{phase.name}: {status['state']}: {said}")
                if status["state"] == "done":
                    return status
                if status["state"] == "failed":
                    raise self._failure(phase, status)
            self._check_machine(phase, machine, now, status, self.clock() - ordered)
            self._check_limits(phase, deadline)
            self.sleep(POLL_SECONDS)

    def _status(self, phase: Phase, attempt: int) -> dict[str, Any] | None:
        status = self.store.read_json(f"{phase.name}/status.json")
        return status if status is not None and status["attempt"] >= attempt else None

    def _check_machine(
        self,
        phase: Phase,
        machine: Machine,
        now: Machine | None,
        status: dict[str, Any] | None,
        waited: timedelta,
    ) -> None:
        name = f"the {phase.name} instance {machine.id} ({machine.type})"
        if now is not None and now.reclaimed:
            raise ReclaimedError(f"AWS took back {name}: {now.reason}", hint="Run the same command again: what was "
                            "finished is kept. --market on-demand is not taken back.")  # fmt: skip
        if now is None and waited < START_PATIENCE:
            return  # a new instance is not visible everywhere at once
        if now is None or not now.spending:
            why = f" ({now.reason})" if now is not None and now.reason else ""
            where = f"while {status['state']}: {status['message']}" if status else "before its first word"
            raise DeployError(
                f"{name[0].upper()}{name[1:]} ended{why} {where}", hint=self._log_hint(phase),
            )  # fmt: skip
        if now.state == "pending" and waited >= START_PATIENCE:
            raise DeployError(
                f"{name[0].upper()}{name[1:]} has not started after {waited.total_seconds() / 60:.0f} minutes",
                hint="It was terminated. Try again, another --compile-instance or --verify-instance, or another region.",
            )
        if status is None and waited >= SILENCE_PATIENCE:
            raise DeployError(
                f"{name[0].upper()}{name[1:]} runs, but its script has said nothing for "
                f"{waited.total_seconds() / 60:.0f} minutes",
                hint="It was terminated. It needs the aws command and a way to S3 (a public subnet or an S3 endpoint).",
            )

    def _check_limits(self, phase: Phase, deadline: datetime) -> None:
        spent = self.ledger.usd()
        if spent >= self.job.options.max_usd:
            raise DeployError(
                f"The ceiling of ${self.job.options.max_usd:.2f} is reached during {phase.name} (${spent:.2f} spent)",
                hint="The instance was terminated. Raise --max-usd and run the same command: what was finished is kept.",
            )
        if self.clock() >= deadline:
            raise DeployError(
                f"The {phase.name} phase reached its limit of time (${spent:.2f} spent)",
                hint="The instance was terminated. Raise --timeout-minutes (and --max-usd) and run the same command: "
                "what was finished is kept.",
            )

    def _failure(self, phase: Phase, status: dict[str, Any]) -> PhaseFailedError:
        return PhaseFailedError(
            f"The {phase.name} phase failed: {status['message']}", hint=self._log_hint(phase)
        )

    def _log_hint(self, phase: Phase) -> str:
        lines = self.store.text(f"{phase.name}/log.txt").strip().splitlines()[-5:]
        tail = f" It ends with:\n    {(chr(10) + '    ').join(lines)}" if lines else ""
        return f"The log is {self.store.home}/{phase.name}/log.txt.{tail}"
