"""Everything of ours in a region, found by its tags alone, and its end: what crashed runs left behind included."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from neuron_port.deploy import machines, stacks
from neuron_port.deploy import tags as names
from neuron_port.deploy.aws import Aws
from neuron_port.deploy.errors import DeployError
from neuron_port.deploy.job_store import JobStore
from neuron_port.deploy.locations import Location, parse_location
from neuron_port.deploy.tags import moment
from neuron_port.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Item:
    """One instance or stack of ours."""

    job: str
    kind: str
    what: str  # "instance" or "stack"
    id: str
    detail: str
    state: str
    owner: str
    created: datetime
    deadline: datetime | None
    overdue: bool
    usd_per_hour: float | None  # of instances that spend
    usd: float | None
    remote: str | None


def inventory(aws: Aws, now: datetime) -> tuple[Item, ...]:
    """Everything of ours, oldest first."""
    found = [_instance_item(machine, now) for machine in machines.ours(aws)]
    found += [_stack_item(entry, now) for entry in stacks.ours(aws, names.JOB)]
    return tuple(sorted(found, key=lambda item: (item.created, item.what)))


def _instance_item(machine: machines.Machine, now: datetime) -> Item:
    price = float(machine.tags[names.PRICE]) if machine.spending and names.PRICE in machine.tags else None
    hours = (now - machine.launched).total_seconds() / 3600
    return _item(
        machine.tags, now, what="instance", id=machine.id, state=machine.state, created=machine.launched,
        detail=f"{machine.type}{' spot' if machine.spot else ''}{_phase(machine.tags)}",
        usd_per_hour=price, usd=price * max(0.0, hours) if price is not None else None,
    )  # fmt: skip


def _phase(tags: Any) -> str:
    return f", {tags[names.PHASE]}" if names.PHASE in tags else ""


def _stack_item(entry: dict[str, Any], now: datetime) -> Item:
    return _item(
        entry["tags"], now, what="stack", id=entry["name"], state=entry["status"], created=entry["created"],
        detail="CloudFormation", usd_per_hour=None, usd=None,
    )  # fmt: skip


def _item(tags: Any, now: datetime, **facts: Any) -> Item:
    deadline = moment(tags[names.DEADLINE]) if names.DEADLINE in tags else None
    return Item(
        job=tags[names.JOB], kind=tags.get(names.KIND, "unknown"), owner=tags.get(names.OWNER, "unknown"),
        deadline=deadline, overdue=deadline is not None and deadline <= now, remote=tags.get(names.REMOTE), **facts,
    )  # fmt: skip


def of_job(aws: Aws, job: str, now: datetime, *, or_files: bool = False) -> list[Item]:
    """The instances and stacks of one job. Raises UsageError when there are none, unless its files are meant."""
    everything = inventory(aws, now)
    mine = [item for item in everything if item.job == job]
    if not mine and not or_files:
        known = ", ".join(dict.fromkeys(item.job for item in everything)) or "nothing of neuron-port is there"
        raise UsageError(
            f"Nothing in {aws.region} belongs to: `{job}`",
            hint=f"Known: {known}. The files of a job that is done: --purge --remote s3://bucket/prefix.",
        )
    return mine


def destroy(
    aws: Aws,
    job: str,
    *,
    say: Callable[[str], None],
    purge: bool = False,
    remote: Location | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now: datetime,
) -> int:
    """End everything of one job: instances first, then stacks; with `purge` its files on S3 too.

    Returns how many instances and stacks were removed. `remote` is where the files of a job lie of which nothing else
    is left, as of one that is done: its tags went with its stack.

    Raises: UsageError when nothing is known by that name; DeployError for what cannot be removed.
    """
    mine = of_job(aws, job, now, or_files=purge and remote is not None)
    # A stopped instance still pays for its disk, and holds the security group that its stack would delete.
    running = [item.id for item in mine if item.what == "instance" and item.state != "shutting-down"]
    machines.terminate(aws, running, sleep=sleep)
    for identity in running:
        say(f"terminated: {identity}")
    machines.wait_until_ended(aws, running, sleep=sleep)
    standing = [item for item in mine if item.what == "stack"]
    for item in standing:
        stacks.delete(aws, item.id, sleep=sleep)
        say(f"deleted: {item.id}")
    if purge:
        remotes = {parse_location(item.remote) for item in mine if item.remote} | (
            {remote} if remote else set()
        )
        for place in sorted(remotes, key=str):
            count = JobStore(aws, place, job).remove_everything()
            say(f"deleted: {count} objects below {place}/{job}")
    return len(running) + len(standing)


def destroy_overdue(
    aws: Aws, *, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep, now: datetime
) -> int:
    """End every job that is past its deadline; one that cannot be ended does not keep the others alive."""
    jobs = dict.fromkeys(item.job for item in inventory(aws, now) if item.overdue)
    removed, problems = 0, []
    for job in jobs:
        try:
            removed += destroy(aws, job, say=say, sleep=sleep, now=now)
        except DeployError as error:
            problems.append(f"{job}: {error.message}")
    if problems:
        raise DeployError(
            f"Not everything could be removed: {'; '.join(problems)}", hint="Destroy it by name."
        )
    return removed
