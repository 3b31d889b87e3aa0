"""Running a job: read the source, start a fresh confined process, make the calls, collect arrays and facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from neuron_port.sandbox.facts import check_facts, check_failure
from neuron_port.sandbox.frames import ABSENT, Frame, Kind, ProtocolError, to_wire
from neuron_port.sandbox.gate import inspect_source
from neuron_port.sandbox.job import CallOutcome, Failure, SandboxJob, SandboxOutcome
from neuron_port.sandbox.process import ProcessFailedError, SandboxProcess

# Called with a process when it runs (True) and when it has ended (False).
Watch = Callable[[SandboxProcess, bool], None]


def run_job(job: SandboxJob, *, watch: Watch | None = None) -> SandboxOutcome:
    """Run every call of the job, in order, in one process that is made for it and gone afterwards.

    Whatever the candidate does is in the outcome: a failure of one call leaves the others, a failure of the process
    ends the job. An interrupt of the caller ends the process and goes on.

    Raises:
        SandboxError: the sandbox itself does not work here.
        CancelledError: `watch` cancelled the process.
        TypeError: an attribute that is neither a number nor text.
    """
    refused = inspect_source(job.source, job.entry_point)
    if refused is not None:
        return SandboxOutcome(calls=(), failure=refused)
    return run_inspected(job, watch=watch)


def run_inspected(job: SandboxJob, *, watch: Watch | None = None) -> SandboxOutcome:
    """`run_job` without its first gate, which tests leave out to see that confinement stands alone."""
    calls: list[CallOutcome] = []
    failure: Failure | None = None
    advise = any(call.advise for call in job.calls)
    with SandboxProcess(job.source, job.entry_point, job.target, job.limits, advise=advise) as process:
        if watch is not None:
            watch(process, True)
        try:
            for call in job.calls:
                places = [ABSENT if array is None else None for array in call.arrays]
                body = call_body(places, call.attributes, predict=call.predict, advise=call.advise)
                sent = [array for array in call.arrays if array is not None]
                calls.append(call_outcome(process.ask(Kind.call, body, sent)))
        except ProcessFailedError as error:
            failure = error.failure
        finally:
            if watch is not None:
                watch(process, False)
    return SandboxOutcome(
        calls=tuple(calls), failure=failure, cpu_seconds=process.cpu_seconds, isolation=process.isolation
    )


def call_body(
    held: Sequence[int | None], attributes: Mapping[str, Any], *, predict: bool = False, advise: bool = False
) -> dict[str, Any]:
    """What the child is told about a call besides its arrays.

    Args:
        held: for each argument the number of an array that the child holds, None for one that comes now, or ABSENT.
        attributes: numbers and texts by name.
    """
    return {
        "held": list(held),
        "attributes": {name: to_wire(value) for name, value in attributes.items()},
        "predict": predict,
        "advise": advise,
    }


def call_outcome(answer: Frame) -> CallOutcome:
    """The outcome of one call, from a frame of which only the form is known.

    Raises:
        ProcessFailedError: it does not hold together.
    """
    try:
        if answer.kind is not Kind.result:
            raise ProtocolError(f"a frame `{answer.kind.name}` instead of a result")
        failure, facts = check_failure(answer.body.get("failure")), check_facts(answer.body.get("facts"))
        if (failure is None) != (facts is not None) or (failure is not None and answer.arrays):
            raise ProtocolError("a result that both failed and did not")
    except ProtocolError as error:
        raise ProcessFailedError(
            Failure(kind="protocol", error_class="forged output", message=f"the process sent {error}")
        ) from error
    return CallOutcome(outputs=answer.arrays, facts=facts, failure=failure)
