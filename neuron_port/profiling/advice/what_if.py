"""What a change would gain: the same work with the change in it, scheduled again.

Only changes that touch the critical path are tried: nothing else can gain. Kernels of hundreds of thousands of
instructions take seconds to schedule, so of those only the most promising changes are tried, and the others are
estimated by what they save on the critical path as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from neuron_port.profiling.advice.evidence import Candidate, Change, Evidence, Key
from neuron_port.simulator.timing.constants import COSTS
from neuron_port.simulator.timing.costs import Cost
from neuron_port.simulator.timing.dependencies import REUSE
from neuron_port.simulator.timing.dma import Transfer
from neuron_port.simulator.timing.predict import WINDOW
from neuron_port.simulator.timing.schedule import Scheduler
from neuron_port.simulator.timing.state import Work
from neuron_port.simulator.trace import NkiInstruction, engine

NOTHING = Cost(occupied_ns=0.0, latency_ns=0.0, elements=0, on_chip_bytes=0, locks=())
# Instructions that are scheduled for all what-ifs of a profile together: some seconds.
MOST_INSTRUCTIONS = 150_000


def gains_ns(evidence: Evidence, candidates: Sequence[Candidate], least_ns: float) -> list[float]:
    """The device time that each candidate would gain; what cannot gain `least_ns` is not looked at closely."""
    estimates = [_estimate(evidence, candidate.effect) for candidate in candidates]
    tries = MOST_INSTRUCTIONS // max(1, len(evidence.timeline.scheduled))
    promising = [
        number
        for number, candidate in enumerate(candidates)
        if estimates[number] >= (least_ns if _is_bounded(candidate.effect) else 1e-9)
    ]
    promising.sort(key=lambda number: -estimates[number])
    for number in promising[:tries]:
        estimates[number] = evidence.timeline.device_ns - device_ns(evidence, candidates[number].effect)
    return estimates


def _is_bounded(change: Change) -> bool:
    """Whether the estimate bounds the gain: an instruction gains no more than its own part of the critical path.

    Not so for waits that go away: what was waited for overlaps then, whatever it was.
    """
    return not change.own_copies and change.memory_factor == 1


def device_ns(evidence: Evidence, change: Change) -> float:
    """The predicted device time with the change made."""
    target = dataclasses.replace(
        evidence.target,
        tensor_clock_gates=evidence.target.tensor_clock_gates and not change.is_warm,
        sbuf_usable_bytes_per_partition=evidence.target.sbuf_usable_bytes_per_partition
        * change.memory_factor,
        psum_banks=evidence.target.psum_banks * change.memory_factor,
    )
    costs = COSTS[target.generation]
    costs = dataclasses.replace(costs, table_load_ns=costs.table_load_ns * change.table_share)
    traces = [
        [_instead(change, (core, index), instruction) for index, instruction in enumerate(trace.instructions)]
        for core, trace in enumerate(evidence.traces)
    ]
    work = Work(traces, target, costs)
    for (core, index), saved in change.saved_ns.items():
        work.plans[core][index] = _shortened(work.plans[core][index], saved)
    for core, index in change.left_out:
        work.plans[core][index] = NOTHING
    if change.own_copies:
        _forget_reuse(work, change)
    return Scheduler(work, WINDOW).run()


def _instead(change: Change, key: Key, instruction: NkiInstruction) -> NkiInstruction:
    if key in change.left_out:  # takes a place in the program, and nothing else
        return NkiInstruction(
            key[1], "left_out", engine.sync, instruction.code, instruction.line, [], None, 0, 0, 0, {}
        )
    return change.replaced.get(key, instruction)


def _shortened(plan: Transfer | Cost, saved_ns: float) -> Transfer | Cost:
    if isinstance(plan, Transfer):
        return plan._replace(engine_ns=max(0.0, plan.engine_ns - saved_ns))
    return plan._replace(
        occupied_ns=max(0.0, plan.occupied_ns - saved_ns), latency_ns=max(0.0, plan.latency_ns - saved_ns)
    )


def _forget_reuse(work: Work, change: Change) -> None:
    """Take out the waits for former users of the tiles that would have copies of their own."""
    for core, trace in enumerate(work.traces):
        edges = work.dependencies[core].edges
        touched = [
            change.own_copies & {operand.allocation for operand in instruction.operands}
            for instruction in trace
        ]
        for index, producers in enumerate(edges):
            if touched[index]:
                edges[index] = [
                    (producer, kind)
                    for producer, kind in producers
                    if kind != REUSE or not touched[index] & touched[producer]
                ]
        for consumers in work.consumers[core]:
            consumers.clear()
        for index, producers in enumerate(edges):
            for producer, kind in producers:
                work.consumers[core][producer].append((index, kind))


def _estimate(evidence: Evidence, change: Change) -> float:
    """What is saved on the critical path as it is."""
    critical, by_key = evidence.critical, evidence.by_key
    gain = sum(min(saved, critical.get(key, 0.0)) for key, saved in change.saved_ns.items())
    gain += sum(critical.get(key, 0.0) for key in change.left_out)
    gain += sum(critical.get(key, 0.0) for key in change.replaced)
    if change.own_copies or change.memory_factor > 1:
        causes = ("reuse",) if change.own_copies else ("buffers",)
        gain += sum(time for key, time in critical.items() if by_key[key].cause in causes)
    gain += (1 - change.table_share) * evidence.timeline.table_load_ns
    if change.is_warm:
        gain += sum(min(by_key[key].cold_ns, time) for key, time in critical.items())
    return gain
