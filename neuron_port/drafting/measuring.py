"""How fast a kernel would be, as the latency model predicts it: a figure to rank variants by, never a claim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from neuron_port.drafting.prompts.briefing import case_line
from neuron_port.errors import NeuronPortError
from neuron_port.grading.oracle import case_seed, case_truth
from neuron_port.recipe import Case
from neuron_port.sandbox.executor import Executor
from neuron_port.sandbox.job import SandboxJob
from neuron_port.task import KernelTask

SHOWN_LINES = 8


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The prediction for one kernel on the task's largest ordinary case, in the dtype that ships."""

    latency_ns: float
    roofline_fraction: float  # 1: as fast as memory and TensorE allow
    case: str  # "T = 128, H = 576, bfloat16"
    profile: str  # in words, for the prompt and for people
    advice: tuple[Mapping[str, Any], ...] = field(default=())  # rules that found something, by expected gain


class UnmeasurableError(NeuronPortError):
    """A kernel that does not run to its end has no latency."""


def largest_case(task: KernelTask) -> Case:
    """The ordinary public case with the most elements: what the kernel is made for."""
    ordinary = [case for case in task.cases if case.kind == "ordinary"] or list(task.cases)
    return max(ordinary, key=lambda case: math.prod(case.sizes.values()))


def measure(task: KernelTask, source: str, target: str, executor: Executor) -> Measured:
    """Predict the latency of `source`. Raises UnmeasurableError with the kernel's failure when it does not run."""
    case = largest_case(task)
    dtype = "bfloat16" if "bfloat16" in task.dtypes else task.dtypes[0]
    call = case_truth(task, case, dtype, case_seed(task, case, None)).call
    job = SandboxJob(
        source=source, entry_point=task.name, calls=(replace(call, predict=True, advise=True),), target=target
    )
    outcome = executor.submit(job).result()
    ran = outcome.calls[0] if outcome.calls else None
    if ran is None or ran.facts is None or ran.facts.latency_ns is None or ran.facts.profile is None:
        failure = ran.failure if ran is not None and ran.failure else outcome.failure
        reason = failure.message if failure else "it gave no timeline"
        raise UnmeasurableError(f"Kernel `{task.name}` cannot be measured: {reason}")
    profile = ran.facts.profile
    return Measured(
        latency_ns=ran.facts.latency_ns,
        roofline_fraction=float(profile["roofline_fraction"]),
        case=f"{case_line(case)}, {dtype}",
        profile=_profile_words(profile),
        advice=tuple(profile.get("advice", ())),
    )


def _profile_words(profile: Mapping[str, Any]) -> str:
    """Engines, memory, and the lines on the critical path."""
    device_ns = profile["device_ns"] or 1.0
    lines = [
        f"device time {device_ns / 1e3:.2f} us, bound by {profile['bound']}; "
        f"{profile['roofline_fraction']:.0%} of the roofline ({profile['roofline']['bound']} bound)",
        f"HBM: {profile['hbm_read_bytes']:,} bytes read, {profile['hbm_write_bytes']:,} written",
        f"SBUF peak {profile['peak_sbuf_bytes']:,} of {profile['sbuf_bytes']:,} bytes per partition, "
        f"PSUM peak {profile['peak_psum_banks']} of {profile['psum_banks']} banks",
    ]
    lines += [
        f"{lane['lane']}: busy {lane['busy_ns'] / 1e3:.2f} us in {lane['instructions']} instructions, "
        f"alone {lane['exposed_ns'] / 1e3:.2f} us"
        for lane in profile.get("lanes", ())
    ]
    lines.append("lines by their part of the critical path:")
    lines += [
        f"  line {use['line']}: {use['critical_ns'] / device_ns:.0%}, {use['count']} times: {use['text'].strip()}"
        for use in profile.get("lines", ())[:SHOWN_LINES]
    ]
    return "\n".join(lines)
