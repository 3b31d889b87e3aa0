"""The remote build: upload, compile on a CPU instance, verify on the target, fetch; and nothing is left running.

Whoever runs it may be killed at any moment. The instance ends itself at its own deadline; its tags and its stack's are
found by `neuron-port deploy list`; and the same command goes on from what lies on S3. No AWS account has confirmed any
of this yet: it is exercised against moto's server over HTTP.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from neuron_port.deploy import machines, stacks
from neuron_port.deploy.archive import files_below, pack
from neuron_port.deploy.aws import Aws
from neuron_port.deploy.errors import NO_CAPACITY, QUOTA_REACHED, AwsError, DeployError
from neuron_port.deploy.job import Job, Market, Options, Phase, make_job
from neuron_port.deploy.job_store import JobStore, check_bucket
from neuron_port.deploy.ledger import Clock, Ledger, minutes_left
from neuron_port.deploy.machines import Machine
from neuron_port.deploy.network import Ground, check_offered, find_ground
from neuron_port.deploy.results import take_over
from neuron_port.deploy.tags import DEADLINE, PHASE, Mark, moment, stamp
from neuron_port.deploy.user_data import phase_script
from neuron_port.deploy.watch import ReclaimedError, Watch
from neuron_port.errors import NeuronPortError

LEAST_MINUTES = 5  # below this an instance would end before it has begun


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a remote build came to. `usd` is an upper bound: on-demand prices, by our own clock."""

    job: str
    home: str
    state: str
    usd: float
    reused: bool  # a finished job was found on S3 and nothing was started


def utc_now() -> datetime:
    return datetime.now(UTC)


def stack_name(job: str) -> str:
    return f"neuron-port-{job}"


def run(
    bundle: Path,
    options: Options,
    *,
    say: Callable[[str], None],
    aws: Aws | None = None,
    clock: Clock = utc_now,
    sleep: Callable[[float], None] = time.sleep,
    smallest_part_bytes: int | None = None,
    job_id: str | None = None,
) -> Result:
    """Build a bundle remotely and bring its NEFFs and its device's report home.

    Raises: UsageError (before anything is made), AwsError and DeployError (after cleaning up).
    """
    job = make_job(bundle, options, job_id=job_id)
    aws = aws or Aws()
    check_bucket(aws, options.remote)
    parts = {} if smallest_part_bytes is None else {"smallest_part_bytes": smallest_part_bytes}
    store = JobStore(aws, options.remote, job.id, **parts)
    ledger = Ledger(store, clock)
    say(f"job {job.id} at {store.home}")
    last = job.phases[-1].name
    build = _Build(aws=aws, job=job, store=store, ledger=ledger, clock=clock, sleep=sleep, say=say)
    status = _done(store, last)
    reused = status is not None
    if status is None:
        status = build.run()
    else:
        say(f"{last} is done already: {status['message']}")
        build.clean_up()  # what a run that was killed may have left
    state = _fetch(store, job, last, status)
    return Result(job=job.id, home=str(store.home), state=state, usd=ledger.usd(), reused=reused)


def _done(store: JobStore, phase: str) -> dict[str, Any] | None:
    status = store.read_json(f"{phase}/status.json")
    return status if status is not None and status["state"] == "done" else None


def _fetch(store: JobStore, job: Job, phase: str, status: dict[str, Any]) -> str:
    with tempfile.TemporaryDirectory(prefix="neuron-port-") as folder:
        archive = Path(folder) / "out.tar.gz"
        store.download(f"{phase}/out.tar.gz", archive, sha256=status["out"]["sha256"])
        return take_over(job.bundle, archive, job.options.target)


@dataclass(frozen=True, kw_only=True)
class _Build:
    """One run of a job; everything that it starts is ended when it leaves, however it leaves."""

    aws: Aws
    job: Job
    store: JobStore
    ledger: Ledger
    clock: Clock
    sleep: Callable[[float], None]
    say: Callable[[str], None]
    started: list[str] = field(
        default_factory=list
    )  # not known to be ended; EC2's own listing may lag behind

    def run(self) -> dict[str, Any]:
        """The status of the last phase."""
        check_offered(self.aws, (phase.instance.name for phase in self.job.phases))
        ground = find_ground(self.aws, image=self.job.options.image, subnet=self.job.options.subnet)
        owner = self.aws.owner()
        self._upload(owner)
        try:
            template = self._stack(owner, ground)
            for phase in self.job.phases:
                status = self._once(phase, template, owner, ground)
        except BaseException as error:
            self._clean_up_after(error)
            raise
        self.clean_up()
        return status

    def clean_up(self) -> None:
        """End every instance of the job and delete its stack; a failure of one does not keep the other.

        Raises: AwsError, DeployError for the first thing that could not be removed.
        """
        ended: list[str] = []
        # Every step runs, the last entered first, whatever the others raise.
        with contextlib.ExitStack() as steps:
            steps.callback(stacks.delete, self.aws, stack_name(self.job.id), sleep=self.sleep)
            steps.callback(machines.wait_until_ended, self.aws, ended, sleep=self.sleep)
            for identity in list(self.started):
                steps.callback(self._end, identity)
                ended.append(identity)
            for machine in machines.ours(self.aws, job=self.job.id, states=machines.SPENDING):
                if machine.id not in ended:
                    steps.callback(self._end, machine.id)
                    ended.append(machine.id)

    def _clean_up_after(self, error: BaseException) -> None:
        """Clean up without hiding why the build ended; what could not be removed is said loudly."""
        try:
            self.clean_up()
        except NeuronPortError as second:
            self.say(f"WARNING: after this error, cleaning up failed too: {second.message}")
            self.say(
                f"WARNING: something may still be running and cost money until its own deadline. Run: "
                f"neuron-port deploy destroy {self.job.id}"
            )
            if isinstance(error, NeuronPortError):
                error.hint = f"First: neuron-port deploy destroy {self.job.id}. {error.hint or ''}".strip()

    def _upload(self, owner: str) -> None:
        """Bring the bundle to S3; job.json last, so that a job that can be read is whole."""
        bundle = self.job.bundle
        weights = [
            name
            for name in files_below(bundle)
            if name.startswith("weights/") and name.endswith(".safetensors")
        ]
        files = {}
        with tempfile.TemporaryDirectory(prefix="neuron-port-") as folder:
            archive = Path(folder) / "bundle.tar.gz"
            pack(bundle, set(files_below(bundle)) - set(weights), archive)
            sources = {"bundle.tar.gz": archive}
            if self.job.options.verify:
                sources |= {name: bundle / name for name in weights}
            for name, path in sources.items():
                done = self.store.upload(name, path)
                self.say(f"{name}: {done.size_bytes / 2**20:.1f} MiB, {done.sent_bytes / 2**20:.1f} MiB sent")
                files[name] = {"sha256": done.sha256, "bytes": done.size_bytes}
        self.store.write_json(
            "job.json",
            self.job.record(files, owner=owner, region=self.aws.region, created=stamp(self.clock())),
        )

    def _mark(self, owner: str, minutes: int) -> Mark:
        now = self.clock()
        return Mark(
            job=self.job.id, kind="build", owner=owner, created=now, deadline=now + timedelta(minutes=minutes)
        )

    def _stack(self, owner: str, ground: Ground) -> str:
        """The job's role and launch template; returns the template's id."""
        minutes = sum(phase.minutes for phase in self.job.phases)
        outputs = stacks.create(
            self.aws, stack_name(self.job.id), body=stacks.template("build_job"), sleep=self.sleep,
            parameters={"Bucket": self.store.home.bucket, "Prefix": self.store.home.prefix, "Image": ground.image,
                        "Vpc": ground.vpc, "DiskGiB": str(disk_gib(self.job))},
            tags=self._mark(owner, minutes).tags(remote=str(self.job.options.remote)),
        )  # fmt: skip
        return outputs["LaunchTemplate"]

    def _once(self, phase: Phase, template: str, owner: str, ground: Ground) -> dict[str, Any]:
        """The status of a phase, which is not run again when it is done."""
        status = _done(self.store, phase.name)
        if status is not None:
            self.say(f"{phase.name} is done already: {status['message']}")
            return status
        return self._phase(phase, template, owner, ground)

    def _phase(self, phase: Phase, template: str, owner: str, ground: Ground) -> dict[str, Any]:
        """Run a phase; a spot instance that is taken back or not to be had is replaced once, on demand."""
        market = self.job.options.market
        try:
            return self._attempt(phase, market, template, owner, ground)
        except (ReclaimedError, AwsError) as error:
            spot_trouble = isinstance(error, ReclaimedError) or error.code in (*NO_CAPACITY, *QUOTA_REACHED)
            if market != "spot" or not self.job.options.retry_on_demand or not spot_trouble:
                raise
            self.say(f"{error.message}; once more, on demand")
            return self._attempt(phase, "on-demand", template, owner, ground)

    def _attempt(
        self, phase: Phase, market: Market, template: str, owner: str, ground: Ground
    ) -> dict[str, Any]:
        machine = self._running(phase)
        if machine is None:
            machine, attempt, deadline = self._start(phase, market, template, owner, ground)
        else:
            attempt, deadline = self.ledger.attempts(phase.name), moment(machine.tags[DEADLINE])
            self.say(f"{phase.name}: {machine.id} of an earlier run is at it; waiting for it")
        watch = Watch(
            aws=self.aws, store=self.store, job=self.job, ledger=self.ledger, clock=self.clock,
            sleep=self.sleep, say=self.say,
        )  # fmt: skip
        try:
            status = watch.until_done(phase, machine, attempt=attempt, deadline=deadline)
        except ReclaimedError:
            self._end(machine.id)
            raise
        self._end(machine.id)
        return status

    def _end(self, identity: str) -> None:
        machines.terminate(self.aws, [identity], sleep=self.sleep)
        self.ledger.ended(identity)
        if identity in self.started:
            self.started.remove(identity)

    def _running(self, phase: Phase) -> Machine | None:
        """An instance that an earlier run of this job has started for the phase."""
        found = machines.ours(self.aws, job=self.job.id, states=machines.SPENDING)
        return next((machine for machine in found if machine.tags.get(PHASE) == phase.name), None)

    def _start(
        self, phase: Phase, market: Market, template: str, owner: str, ground: Ground
    ) -> tuple[Machine, int, datetime]:
        minutes = minutes_left(self.job, phase, self.ledger.usd())
        if minutes < LEAST_MINUTES:
            raise DeployError(
                f"The ceiling of ${self.job.options.max_usd:.2f} leaves {minutes} minutes for {phase.name} on "
                f"{phase.instance.name} (${self.ledger.usd():.2f} spent)",
                hint="Raise --max-usd and run the same command: what was finished is kept.",
            )
        self.ledger.began(phase, market=market, minutes=minutes)
        attempt = self.ledger.attempts(phase.name)
        mark = self._mark(owner, minutes)
        try:
            machine = machines.start(
                self.aws, instance_type=phase.instance.name, launch_template=template, market=market,
                user_data=phase_script(self.job, phase, region=self.aws.region, attempt=attempt, minutes=minutes),
                tags=mark.tags(phase=phase.name, price=f"{phase.usd_per_hour:.4f}", remote=str(self.job.options.remote)),
                subnet=ground.subnet, sleep=self.sleep,
            )  # fmt: skip
        except BaseException:
            self.ledger.ended(None)
            raise
        self.started.append(machine.id)
        self.ledger.named(machine.id)
        self.say(f"{phase.name}: {machine.id}, {market} {machine.type}, ends itself after {minutes} minutes")
        assert mark.deadline is not None
        return machine, attempt, mark.deadline


def disk_gib(job: Job) -> int:
    """Room for the image, the weights twice and the compiler's scratch files."""
    weights_gib = int(job.manifest["weights"]["bytes"]) / 2**30 if job.options.verify else 0.0
    return int(120 + 2 * weights_gib + 4 * len(job.manifest["graphs"]))
