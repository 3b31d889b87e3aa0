"""EC2 instances: started with the mark that finds them again, looked at, ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from neuron_port.deploy import tags as names
from neuron_port.deploy.aws import Aws
from neuron_port.deploy.errors import NO_CAPACITY, AwsError
from neuron_port.deploy.job import Market
from neuron_port.deploy.network import default_subnets
from neuron_port.deploy.tags import tag_list, tag_map

PROFILE_PATIENCE_SECONDS = 60.0  # a new instance profile is not known everywhere at once
POLL_SECONDS = 5.0
END_PATIENCE_SECONDS = 300.0
TERMINATE_WAITS_SECONDS = (2.0, 5.0, 10.0)
ALIVE = ("pending", "running", "stopping", "stopped", "shutting-down")
SPENDING = ("pending", "running")
RECLAIMED = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An instance as AWS sees it now."""

    id: str
    type: str
    state: str
    reason: str  # why it is in that state, in AWS's words
    spot: bool
    launched: datetime
    tags: Mapping[str, str]

    @property
    def spending(self) -> bool:
        return self.state in SPENDING

    @property
    def reclaimed(self) -> bool:
        return self.reason.startswith(RECLAIMED)


def start(
    aws: Aws,
    *,
    instance_type: str,
    launch_template: str,
    user_data: str,
    market: Market,
    tags: Mapping[str, str],
    subnet: str | None,
    sleep: Callable[[float], None] = time.sleep,
) -> Machine:
    """Start one instance; without capacity in one zone, try the account's default subnets in the others.

    Raises: AwsError, whose `code` is in NO_CAPACITY when no zone has room.
    """
    places: list[str | None] = [subnet]
    refused: AwsError | None = None
    while places:
        place = places.pop(0)
        try:
            return _start_in(aws, place, instance_type, launch_template, user_data, market, tags, sleep)
        except AwsError as error:
            if error.code not in NO_CAPACITY:
                raise
            if refused is None and subnet is None:
                places = list(default_subnets(aws, instance_type))
            refused = error
    assert refused is not None
    raise refused


def _start_in(
    aws: Aws,
    subnet: str | None,
    instance_type: str,
    launch_template: str,
    user_data: str,
    market: Market,
    tags: Mapping[str, str],
    sleep: Callable[[float], None],
) -> Machine:
    parameters: dict[str, Any] = {
        "MinCount": 1, "MaxCount": 1, "InstanceType": instance_type, "UserData": user_data,
        "LaunchTemplate": {"LaunchTemplateId": launch_template, "Version": "$Latest"},
        "TagSpecifications": [{"ResourceType": kind, "Tags": tag_list(tags)} for kind in ("instance", "volume")],
    }  # fmt: skip
    if subnet is not None:
        parameters["SubnetId"] = subnet
    if market == "spot":
        parameters["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
        }
    waited = 0.0
    while True:
        try:
            answer = aws.call("ec2", "run_instances", f"start a {market} {instance_type}", **parameters)
            return _machine(answer["Instances"][0])
        except AwsError as error:
            fresh = error.code == "InvalidParameterValue" and "instance profile" in error.message.lower()
            if not fresh or waited >= PROFILE_PATIENCE_SECONDS:
                raise
        sleep(POLL_SECONDS)
        waited += POLL_SECONDS


def look(aws: Aws, identity: str) -> Machine | None:
    """The instance now; None when AWS has forgotten it (an hour after its end), or does not know it yet."""
    try:
        found = _found(aws, [{"Name": "instance-id", "Values": [identity]}])
    except AwsError as error:
        if error.code == "InvalidInstanceID.NotFound":
            return None
        raise
    return found[0] if found else None


def ours(aws: Aws, *, job: str | None = None, states: Sequence[str] = ALIVE) -> list[Machine]:
    """Instances that carry our tag, of one job or all."""
    mark = (
        {"Name": "tag-key", "Values": [names.JOB]}
        if job is None
        else {"Name": f"tag:{names.JOB}", "Values": [job]}
    )
    return _found(aws, [mark, {"Name": "instance-state-name", "Values": list(states)}])


def _found(aws: Aws, filters: list[dict[str, Any]]) -> list[Machine]:
    pages = aws.pages("ec2", "describe_instances", "look at instances", Filters=filters)
    return [
        _machine(entry) for page in pages for group in page["Reservations"] for entry in group["Instances"]
    ]


def _machine(entry: Mapping[str, Any]) -> Machine:
    reason = entry.get("StateReason") or {}
    return Machine(
        id=entry["InstanceId"], type=entry["InstanceType"], state=entry["State"]["Name"],
        reason=f"{reason.get('Code', '')} {reason.get('Message', '')}".strip(),
        spot=entry.get("InstanceLifecycle") == "spot", launched=entry["LaunchTime"], tags=tag_map(entry.get("Tags")),
    )  # fmt: skip


def terminate(aws: Aws, identities: Sequence[str], *, sleep: Callable[[float], None] = time.sleep) -> None:
    """End instances, each by itself, so that one which AWS does not know keeps none of the others alive.

    Raises: AwsError for the first that could not be ended, after all were tried.
    """
    problem: AwsError | None = None
    for identity in identities:
        try:
            _terminate(aws, identity, sleep)
        except AwsError as error:
            problem = problem or error
    if problem is not None:
        raise problem


def _terminate(aws: Aws, identity: str, sleep: Callable[[float], None]) -> None:
    for wait in (*TERMINATE_WAITS_SECONDS, None):
        try:
            aws.call("ec2", "terminate_instances", f"terminate {identity}", InstanceIds=[identity])
        except AwsError as error:
            if error.code != "InvalidInstanceID.NotFound":
                raise
            if wait is not None:  # an instance that has just been ordered is not known everywhere at once
                sleep(wait)
                continue
        return  # ended, or forgotten by AWS, as it forgets what ended an hour ago


def wait_until_ended(
    aws: Aws, identities: Sequence[str], *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Wait until instances hold nothing any more: a security group that one still uses cannot be deleted.

    Patience is limited; whoever deletes next says what is in the way.
    """
    waited = 0.0
    while waited < END_PATIENCE_SECONDS:
        found = [look(aws, identity) for identity in identities]
        if all(machine is None or machine.state == "terminated" for machine in found):
            return
        sleep(POLL_SECONDS)
        waited += POLL_SECONDS
