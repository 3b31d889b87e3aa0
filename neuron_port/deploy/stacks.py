"""CloudFormation stacks: made, explained when they fail, deleted. A stack that failed is not left behind."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from neuron_port.deploy.aws import Aws
from neuron_port.deploy.errors import AwsError, DeployError
from neuron_port.deploy.tags import tag_list, tag_map
from neuron_port.errors import UsageError
from neuron_port.registry import data_folder

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 1800.0
STANDS = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")


def template(name: str) -> str:
    """A template of `infra/`."""
    return (data_folder("infra") / f"{name}.yaml").read_text(encoding="utf-8")


def template_sha256(name: str) -> str:
    return hashlib.sha256(template(name).encode()).hexdigest()


def stack(aws: Aws, name: str) -> dict[str, Any] | None:
    """The stack of that name, or None."""
    try:
        found = aws.call("cloudformation", "describe_stacks", f"look at the stack `{name}`", StackName=name)[
            "Stacks"
        ]
    except AwsError as error:
        if error.code == "ValidationError":  # CloudFormation's way to say that there is none
            return None
        raise
    return dict(found[0])


def create(
    aws: Aws,
    name: str,
    *,
    body: str,
    parameters: Mapping[str, str],
    tags: Mapping[str, str],
    sleep: Callable[[float], None] = time.sleep,
    as_planned: bool = False,
) -> dict[str, str]:
    """Create a stack, wait for it and return its outputs; one that stands already is taken as it is.

    Args:
        as_planned: take one that stands only if it was made with the same parameters.

    Raises:
        UsageError: another stack stands there (`as_planned`).
        DeployError: names the resource that failed and why; what had been created is deleted again.
    """
    found = stack(aws, name)
    if found is not None and found["StackStatus"] not in (*STANDS, "CREATE_IN_PROGRESS"):
        delete(aws, name, sleep=sleep)  # the ruin of an earlier run
        found = None
    if found is not None and as_planned:
        _check_same(name, found, parameters)
    if found is None:
        try:
            aws.call(
                "cloudformation", "create_stack", f"create the stack `{name}`", StackName=name, TemplateBody=body,
                Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
                Tags=tag_list(tags), Capabilities=["CAPABILITY_IAM"], OnFailure="ROLLBACK",
            )  # fmt: skip
        except AwsError as error:
            if error.code == "AlreadyExistsException":
                pass  # another run of ours was a moment earlier
            elif stack(aws, name) is None:
                raise
            else:  # refused, and yet there: do not leave it
                _give_up(aws, name, error.message, sleep)
    done = _settled(aws, name, sleep)
    if done is None or done["StackStatus"] not in STANDS:
        _give_up(aws, name, _first_failure(aws, name, done), sleep)
    assert done is not None
    return {output["OutputKey"]: output["OutputValue"] for output in done.get("Outputs", [])}


def _check_same(name: str, found: Mapping[str, Any], parameters: Mapping[str, str]) -> None:
    """Refuse a stack that was made with other parameters: it would go on as it is, whatever the plan said."""
    has = {item["ParameterKey"]: item.get("ParameterValue", "") for item in found.get("Parameters", [])}
    other = sorted(key for key, value in parameters.items() if has.get(key) != value)
    if other:
        raise UsageError(
            f"The stack `{name}` stands already, with another {', '.join(other)}",
            hint="End it first with `neuron-port deploy destroy`, or plan under another name.",
        )


def _give_up(aws: Aws, name: str, why: str, sleep: Callable[[float], None]) -> None:
    delete(aws, name, sleep=sleep)
    raise DeployError(
        f"The stack `{name}` could not be created: {why}",
        hint="Everything that it had created was deleted again. Fix the cause and run the same command.",
    )


def _first_failure(aws: Aws, name: str, found: Mapping[str, Any] | None) -> str:
    """The first resource that failed, in CloudFormation's words: the others only follow from it."""
    pages = aws.pages("cloudformation", "describe_stack_events", f"ask why `{name}` failed", StackName=name)
    events = [event for page in pages for event in page["StackEvents"]]
    failed = [event for event in events if event.get("ResourceStatus", "").endswith("_FAILED")
              and event.get("ResourceType") != "AWS::CloudFormation::Stack"
              and "cancelled" not in event.get("ResourceStatusReason", "").lower()]  # fmt: skip
    if failed:
        first = min(failed, key=lambda event: event["Timestamp"])
        why = first.get("ResourceStatusReason", "no reason given")
        return f"{first['LogicalResourceId']} ({first['ResourceType']}): {why}"
    if found is None:
        return "it vanished"
    return str(found.get("StackStatusReason") or found["StackStatus"])


def _settled(aws: Aws, name: str, sleep: Callable[[float], None]) -> dict[str, Any] | None:
    """The stack once nothing is in progress any more."""
    waited = 0.0
    while True:
        found = stack(aws, name)
        if found is None or not found["StackStatus"].endswith("_IN_PROGRESS"):
            return found
        if waited >= PATIENCE_SECONDS:
            raise DeployError(
                f"The stack `{name}` is still {found['StackStatus']} after {PATIENCE_SECONDS / 60:.0f} minutes",
                hint=f"Look at it in the CloudFormation console, or `neuron-port deploy destroy {name}`.",
            )
        sleep(POLL_SECONDS)
        waited += POLL_SECONDS


def delete(aws: Aws, name: str, *, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Delete a stack and wait until it is gone; False when there was none.

    Raises: DeployError naming the resource that cannot be deleted.
    """
    if stack(aws, name) is None:
        return False
    aws.call("cloudformation", "delete_stack", f"delete the stack `{name}`", StackName=name)
    left = _settled(aws, name, sleep)
    if left is not None and left["StackStatus"] != "DELETE_COMPLETE":
        raise DeployError(
            f"The stack `{name}` could not be deleted: {_first_failure(aws, name, left)}",
            hint="Remove what blocks it (a bucket must be empty) and destroy again.",
        )
    return True


def ours(aws: Aws, key: str) -> list[dict[str, Any]]:
    """Stacks that carry the tag `key`, each as {"name", "status", "created", "tags"}."""
    pages = aws.pages("cloudformation", "describe_stacks", "list stacks")
    return [
        {"name": item["StackName"], "status": item["StackStatus"], "created": item["CreationTime"],
         "tags": tag_map(item.get("Tags"))}
        for page in pages for item in page["Stacks"]
        if key in tag_map(item.get("Tags")) and item["StackStatus"] != "DELETE_COMPLETE"
    ]  # fmt: skip
