"""The verdict: one sentence that says whether the model fits, where, and at what price; and what should be known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuron_port.instances import Instance, instances_of
from neuron_port.preflight.fitting import candidate, gib
from neuron_port.preflight.records import Candidate, CheckOptions, CheckReport
from neuron_port.preflight.roofline import machine_of
from neuron_port.preflight.sizing import LISTED_DEGREES, Sizes

PREDICTED = "predicted, no device has confirmed it"
SMALLER_FORMAT = "int8"


def verdict_of(report: CheckReport, sizes: Sizes, chosen: Candidate | None, every: Sequence[Instance]) -> str:
    """One to three sentences, the answer first."""
    refused = sorted({one.code for one in report.findings if one.severity == "refused"})
    if chosen is not None and refused:
        return (
            f"{_fits(report, chosen)} But the compilation is predicted to be refused: {', '.join(refused)}."
        )
    if chosen is not None:
        return _fits(report, chosen)
    options = report.options
    if options.instance is not None:
        named = next(one for one in report.candidates if one.instance == options.instance)
        device = next(entry.device_memory_gib for entry in every if entry.name == named.instance)
        other = next((one for one in report.candidates if one.fits), None)
        if other is not None:
            return (
                f"Does not fit on {named.instance}: needs {_needs(report)}, has {device:.0f} GiB ({named.reason}). "
                f"The cheapest {options.target} that runs it: {_place(other)}."
            )
    why = _why_not(report, sizes)
    return f"Does not fit on any {options.target} instance: needs {_needs(report)}{why}. {_elsewhere(sizes, options)}"


def _fits(report: CheckReport, chosen: Candidate) -> str:
    speed = next((one for one in report.speeds if one.instance == chosen.instance), None)
    text = f"Fits on {_place(chosen)}: {chosen.reason}."
    if speed is None:
        return text
    cost = speed.usd_per_million_tokens
    price = f", ${money(cost)} per million {unit_of(report)}" if cost is not None else ""
    if speed.items_per_second is not None:
        return (
            f"{text} About {speed.items_per_second:,.0f} {items_of(report)} per second{price} ({PREDICTED})."
        )
    return (
        f"{text} About {speed.decode_tokens_per_second:,.0f} tokens per second, "
        f"{speed.milliseconds_per_token:,.1f} ms for each token of a sequence{price} ({PREDICTED})."
    )


def money(usd: float) -> str:
    """Two decimals, two digits below a cent."""
    return f"{usd:,.2f}" if usd >= 0.01 else f"{usd:.2g}"


def unit_of(report: CheckReport) -> str:
    """What prices and joules are counted by: tokens, or inputs of a model that reads no text."""
    no_text = report.anatomy.family == "encoder" and report.anatomy.positions is None
    return "inputs" if no_text else "tokens"


def items_of(report: CheckReport) -> str:
    """What a model that answers in one pass answers: texts, or whatever else goes in."""
    reads_text = report.anatomy.positions is not None and report.anatomy.positions >= report.context
    return f"texts of {report.context} tokens" if reads_text else "inputs"


def _place(one: Candidate) -> str:
    price = f", ${one.usd_per_hour:,.2f} per hour" if one.usd_per_hour is not None else ""
    over = f"degree {one.degree}" if one.degree and one.degree > 1 else "one core"
    replicas = f", {one.replicas} replicas" if one.replicas > 1 else ""
    return f"{one.instance} at {over}{replicas}{price}"


def _needs(report: CheckReport) -> str:
    return f"{gib(report.weight_bytes)} of weights and {gib(report.state_bytes)} of state"


def _why_not(report: CheckReport, sizes: Sizes) -> str:
    """Why no larger degree helps, where the model's own plan or heads are the reason."""
    widest = max((share.degree for share in report.shares), default=1)
    refused = sorted(degree for degree in sizes.refusals if degree > widest)
    return f", and {sizes.refusals[refused[0]]}" if refused else ""


def _elsewhere(sizes: Sizes, options: CheckOptions) -> str:
    """The cheapest way out: 8-bit weights on the same chip, else another chip."""
    if sizes.weight_format not in ("int8", "fp8"):
        found = _cheapest(sizes, options.target, SMALLER_FORMAT)
        if found is not None:
            return f"With --weight-format {SMALLER_FORMAT} it fits on {_place(found)}."
    for target in LISTED_DEGREES:
        if target != options.target and (found := _cheapest(sizes, target, None)) is not None:
            return f"It fits on {_place(found)} (--target {target})."
    return "No Neuron instance type of the table runs it."


def _cheapest(sizes: Sizes, target: str, weight_format: str | None) -> Candidate | None:
    """The cheapest instance type of a target that runs the model, in another format if one is named."""
    entries = instances_of(target)
    largest = max(machine_of(entry).ranks for entry in entries)
    shares = sizes.shares(target, largest, weight_format)
    found = [one for one in (candidate(entry, shares, sizes.batch) for entry in entries) if one.fits]
    return found[0] if found else None


def notes_of(sizes: Sizes, options: CheckOptions, config: Any) -> tuple[str, ...]:
    """What should be known about the figures of this model."""
    found = sizes.anatomy
    notes = []
    if found.family == "encoder":
        notes.append(
            "An encoder answers in one pass: its speed is in inputs per second; prices are for a million tokens read, "
            "or for a million inputs where it reads no text."
        )
    if found.family == "sequence to sequence":
        notes.append(
            "Tokens per second are those of the decoder; the encoder runs once for each input and is not in them."
        )
    if found.family == "vision language":
        notes.append(
            "Speeds are those of the language model; a picture costs its encoder once, which is not in them."
        )
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    types = getattr(text, "layer_types", None) or ()
    windowed = sum(kind == "sliding_attention" for kind in types)
    if window and windowed and window < sizes.context:
        notes.append(
            f"{windowed} of {len(types)} layers see only {window} tokens; our graphs keep all {sizes.context} slots for "
            "them too, and so do these figures."
        )
    if found.experts:
        share = found.active / found.total
        notes.append(
            f"{found.experts_per_token} of {found.expert_count} experts for each token: {share:.0%} of the weights are "
            f"used by one, all are in memory; a step of batch {sizes.batch} reads those that its tokens reach."
        )
    if sizes.weight_format in ("int8", "fp8"):
        notes.append(
            "8-bit weights are for storage: products are still made in bfloat16. Parity must be measured."
        )
    return tuple(notes)
