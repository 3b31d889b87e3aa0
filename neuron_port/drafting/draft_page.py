"""The page of a draft: what it computes, where it comes from, the evidence with its tier, and what is not confirmed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neuron_port.drafting.subjects.code_layout import LINE_LENGTH
from neuron_port.recipe import NKI_VERSION
from neuron_port.task import KernelTask
from neuron_port.types import CaseResult

if TYPE_CHECKING:
    from neuron_port.drafting.folder import Provenance

STATE = "> **Draft.** A language model wrote `kernel.py`; no person has reviewed it. It runs in a sandbox.\n"
ADOPTED = "> **Adopted draft.** A language model wrote `kernel.py`; review it before you rely on it.\n"


def draft_page(task: KernelTask, serves: str, provenance: Provenance) -> str:
    """README.md of a draft."""
    parts = [
        f"# {task.name}\n",
        STATE,
        f"{task.summary} Serves {serves}, and every layer of the same structure that the numeric probe agrees on.\n",
        "## What it computes\n",
        _table(("tensor", "shape"), [(f"`{name}`", f"`{shape}`") for name, shape in task.layout.items()]),
        _sizes(task),
        "`reference.py` says what is right; `recipe.py` binds it. Both were generated from the layer.\n",
        "## Where it comes from\n",
        _origin(task, provenance),
        "## Evidence\n",
        _evidence(provenance),
        "## Not confirmed\n",
        _not_confirmed(provenance),
    ]
    return "\n".join(parts)


def adopted_page(page: str) -> str:
    """The page after a person has taken the draft among the recipes."""
    return page.replace(STATE, ADOPTED)


def _sizes(task: KernelTask) -> str:
    fixed = {
        name: size for case in task.cases[:1] for name, size in case.sizes.items() if name not in task.sizes
    }
    words = [f"{name} from {size.least} to {size.most}" for name, size in task.sizes.items()]
    words += [f"{name} = {size}" for name, size in fixed.items()]
    return f"Sizes: {', '.join(words)}. Dtypes: {', '.join(task.dtypes)}.\n" if words else ""


def _origin(task: KernelTask, provenance: Provenance) -> str:
    cost = provenance.cost
    price = "unknown price" if cost.usd is None else f"${cost.usd:.4f}"
    rows = [
        ("language model", provenance.model),
        ("date", provenance.date),
        ("cost", f"{price}, {cost.calls} calls, {cost.tokens} tokens"),
        ("NKI", NKI_VERSION),
        ("target", provenance.target),
        ("oracle", f"`{provenance.oracle_key}`"),
        ("hidden seed", str(provenance.verdict.hidden_seed)),
    ]
    for source in task.sources:
        note = ", shown although its licence is refused" if source.refusal_overridden else ""
        rows.append(
            (f"{source.language} source", f"{source.origin} ({source.license or 'no licence'}{note})")
        )
    return _table(("", ""), rows)


def _evidence(provenance: Provenance) -> str:
    verdict = provenance.verdict
    rows = []
    groups: dict[tuple[str, str], list[CaseResult]] = {}
    for case in verdict.cases:
        groups.setdefault((case.kind, case.dtype), []).append(case)
    for (kind, dtype), cases in groups.items():
        passed = sum(case.passed for case in cases)
        rows.append((kind, dtype, f"{passed} of {len(cases)}", _worst(cases), cases[0].tier))
    if provenance.in_graph is not None:
        cases = list(provenance.in_graph.cases)
        passed = sum(case.passed for case in cases)
        rows.append(("inside the model", "float32", f"{passed} of {len(cases)}", _worst(cases), "simulator"))
    table = _table(("cases", "dtype", "passed", "worst share of a limit", "tier"), rows)
    latency = ""
    if verdict.latency_ns is not None:
        latency = f"\nPredicted latency of the slowest ordinary case: {verdict.latency_ns / 1000:.1f} us (unmeasured).\n"
    isolation = f"Run in a sandbox: {', '.join(verdict.isolation)}.\n" if verdict.isolation else ""
    inside = ""
    if provenance.tried_in_a_model:
        inside = (
            "\nTried inside a model in place of the layers that it serves: prefill and decode in float32, logits and "
            "caches against transformers' own.\n"
        )
    return f"{table}{latency}{isolation}{inside}"


def _worst(cases: Sequence[CaseResult]) -> str:
    shares = [
        case.metrics[name] / limit
        for case in cases
        for name, limit in case.limits.items()
        if limit > 0 and name in case.metrics and case.kind != "sabotage"
    ]
    return f"{max(shares):.2f}" if shares else "-"


def _not_confirmed(provenance: Provenance) -> str:
    lines = ["* No Neuron device has run this kernel.", "* AWS's own compiler has not compiled it."]
    if not provenance.tried_in_a_model:
        lines.append("* It has not been tried inside a whole model.")
    if provenance.verdict.latency_ns is not None:
        lines.append("* Its latency is predicted, not measured.")
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def kernel_header(task: KernelTask, provenance: Provenance) -> str:
    """Comment lines above the model's own text in kernel.py."""
    verdict = provenance.verdict
    count = sum(case.passed for case in verdict.cases)
    sentences = [
        f"Drafted by {provenance.model} on {provenance.date} for {task.name}; NKI {NKI_VERSION}.",
        f"Verified: {count} cases, tier {verdict.tier}, hidden seed {verdict.hidden_seed}. No device has run it.",
    ]
    return "".join(f"# {_cut(sentence)}\n" for sentence in sentences)


def _cut(sentence: str) -> str:
    words = " ".join(sentence.split())
    return words if len(words) <= LINE_LENGTH - 2 else f"{words[: LINE_LENGTH - 5]}..."
