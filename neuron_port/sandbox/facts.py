"""What one simulated call did, as plain data: made in the child, checked in the parent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from neuron_port.sandbox.frames import ProtocolError
from neuron_port.sandbox.job import Failure, RunFacts

if TYPE_CHECKING:
    from neuron_port.simulator import KernelRun

SHOWN_LINES = 12
SHOWN_WARNINGS = 20
LONGEST_TEXT = 4000
FAILURE_KINDS = ("refused", "simulator", "python", "time", "memory", "crash", "protocol")
COUNTS = ("instructions", "matmul_macs", "hbm_read_bytes", "hbm_write_bytes", "computed_elements")
# Instructions that move or make values without computing them from others; DMAs that compute are not among them.
MOVES = ("dma_copy", "dma_transpose", "memset", "iota", "register_load", "register_store", "core_barrier")


def facts_of(run: KernelRun, name: str, *, predict: bool, advise: bool) -> dict[str, Any]:
    """The facts of a run as JSON values; with `predict` also latency and profile, with `advise` lines and advice."""
    by_opcode: Counter[str] = Counter()
    by_engine: Counter[str] = Counter()
    dtypes: set[str] = set()
    computed_elements = 0
    for trace in run.traces:
        by_opcode += trace.counts_by_opcode()
        by_engine += trace.counts_by_engine()
        for instruction in trace:
            if instruction.opcode not in MOVES:
                written = instruction.operands[: instruction.writes]
                computed_elements += sum(math.prod(operand.shape) for operand in written)
            if instruction.opcode.startswith("nc_matmul"):
                dtypes.update(str(operand.dtype) for operand in instruction.operands[1:3])
    facts: dict[str, Any] = {
        "instructions": sum(len(trace) for trace in run.traces),
        "by_opcode": dict(by_opcode),
        "by_engine": dict(by_engine),
        "matmul_macs": run.matmul_macs,
        "hbm_read_bytes": run.hbm_read_bytes,
        "hbm_write_bytes": run.hbm_write_bytes,
        "computed_elements": computed_elements,
        "matmul_dtypes": sorted(dtypes),
        "warnings": [warning[:LONGEST_TEXT] for warning in run.warnings[:SHOWN_WARNINGS]],
        "latency_ns": None,
        "profile": None,
    }
    if predict or advise:
        facts["latency_ns"], facts["profile"] = _predicted(run, name, advise)
    return facts


def _predicted(run: KernelRun, name: str, advise: bool) -> tuple[float, dict[str, Any]]:
    from neuron_port.simulator.timing import predict

    timeline = predict(run)
    profile: dict[str, Any] = {
        "device_ns": timeline.device_ns,
        "bound": timeline.bound_lane,
        "busy_ns": dict(timeline.busy_ns),
        "roofline": asdict(timeline.roofline),
        "roofline_fraction": timeline.roofline_fraction,
        "hbm_read_bytes": timeline.hbm_read_bytes,
        "hbm_write_bytes": timeline.hbm_write_bytes,
        "dma_bytes": timeline.dma_bytes,
        "peak_sbuf_bytes": run.peak_sbuf_bytes,
        "sbuf_bytes": run.target.sbuf_usable_bytes_per_partition,
        "peak_psum_banks": run.peak_psum_banks,
        "psum_banks": run.target.psum_banks,
    }
    if advise:
        from neuron_port.profiling.profile import make_profile
        from neuron_port.profiling.summary import profile_facts

        facts = profile_facts(make_profile(name, timeline, run.traces, run.target, run.warnings))
        profile["lanes"] = facts["lanes"]
        profile["lines"] = facts["lines"][:SHOWN_LINES]
        profile["advice"] = facts["advice"][:SHOWN_LINES]
    return timeline.latency_ns, profile


def check_facts(sent: Any) -> RunFacts | None:
    """The record of what a child says.

    Raises:
        ProtocolError: it is not what `facts_of` makes.
    """
    if sent is None:
        return None
    if not isinstance(sent, dict):
        raise ProtocolError("facts that are no object")
    counts = {name: sent.get(name) for name in COUNTS}
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count < 2**63:
            raise ProtocolError(f"the fact {name} is {count!r:.40}")
    latency_ns, profile = sent.get("latency_ns"), sent.get("profile")
    if latency_ns is not None and (not isinstance(latency_ns, float | int) or not 0 <= latency_ns < 1e18):
        raise ProtocolError(f"a latency of {latency_ns!r:.40} ns")
    if profile is not None and not isinstance(profile, dict):
        raise ProtocolError("a profile that is no object")
    return RunFacts(
        by_opcode=_counts(sent, "by_opcode"),
        by_engine=_counts(sent, "by_engine"),
        matmul_dtypes=_texts(sent, "matmul_dtypes"),
        warnings=_texts(sent, "warnings"),
        latency_ns=None if latency_ns is None else float(latency_ns),
        profile=profile,
        **{name: int(count) for name, count in counts.items() if type(count) is int},
    )


def _counts(sent: Mapping[str, Any], name: str) -> dict[str, int]:
    counts = sent.get(name)
    if not isinstance(counts, dict) or len(counts) > 200:
        raise ProtocolError(f"the fact {name} is {counts!r:.40}")
    for key, count in counts.items():
        if len(key) > 100 or type(count) is not int or not 0 <= count < 2**63:
            raise ProtocolError(f"the fact {name} holds {key!r:.40}: {count!r:.40}")
    return counts


def _texts(sent: Mapping[str, Any], name: str) -> tuple[str, ...]:
    texts = sent.get(name)
    if not isinstance(texts, list) or len(texts) > 200 or not all(isinstance(text, str) for text in texts):
        raise ProtocolError(f"the fact {name} is {texts!r:.40}")
    return tuple(text[:LONGEST_TEXT] for text in texts)


def check_failure(sent: Any) -> Failure | None:
    """The record of what a child says went wrong.

    Raises:
        ProtocolError: it is no failure.
    """
    if sent is None:
        return None
    if not isinstance(sent, dict) or sent.get("kind") not in FAILURE_KINDS:
        raise ProtocolError("a failure of an unknown kind")
    line, hint = sent.get("line"), sent.get("hint")
    if line is not None and (type(line) is not int or not 0 <= line < 10**7):
        raise ProtocolError(f"a failure on line {line!r:.40}")
    if not all(isinstance(text, str) for text in (sent.get("error_class"), sent.get("message"), hint or "")):
        raise ProtocolError("a failure without words")
    return Failure(
        kind=sent["kind"],
        error_class=sent["error_class"][:100],
        message=sent["message"][:LONGEST_TEXT],
        hint=None if hint is None else hint[:LONGEST_TEXT],
        line=line,
    )
