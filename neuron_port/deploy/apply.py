"""Carries out a plan, whatever it plans."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from neuron_port.deploy.aws import Aws
from neuron_port.deploy.build_plan import apply_build
from neuron_port.deploy.ledger import Clock
from neuron_port.deploy.plan import Plan
from neuron_port.deploy.remote_build import utc_now
from neuron_port.deploy.standing import apply_standing
from neuron_port.errors import UsageError


def apply_plan(
    aws: Aws,
    plan: Plan,
    *,
    say: Callable[[str], None],
    clock: Clock = utc_now,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """What came of it: a build's result, or the outputs of what was made.

    Raises: UsageError when these credentials belong to another account than the plan.
    """
    if aws.account() != plan.account:
        raise UsageError(
            f"The plan is for account {plan.account}; these credentials belong to {aws.account()}",
            hint="Use the other credentials, or plan again.",
        )
    if plan.kind == "build":
        return vars(apply_build(aws, plan, say=say, clock=clock, sleep=sleep))
    outputs = apply_standing(aws, plan, say=say, now=clock(), sleep=sleep)
    return {"name": plan.name, **outputs, "destroy": f"neuron-port deploy destroy {plan.name}"}
