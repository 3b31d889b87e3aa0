"""What was not proven, in plain words: before any result, and never empty while no device took part."""

from __future__ import annotations

from dataclasses import dataclass

from neuron_port.report.numbers import share_text
from neuron_port.report.proofs import proofs, split_subject
from neuron_port.report.records import Conversion

_CHIPS = {
    "inf2": "Inferentia2 (NeuronCore-v2)",
    "trn1": "Trainium1 (NeuronCore-v2)",
    "trn2": "Trainium2 (NeuronCore-v3)",
}


@dataclass(frozen=True, kw_only=True)
class OpenQuestion:
    """Something that the evidence does not settle: a short lead, and why."""

    lead: str
    text: str


def chip_text(target: str) -> str:
    """The chip behind a target: "inf2.xlarge" -> "Inferentia2 (NeuronCore-v2)"; unknown ones stay."""
    return _CHIPS.get(target.split(".")[0].removesuffix("n"), target)


def open_questions(conversion: Conversion) -> list[OpenQuestion]:
    """Everything that a careful reader should not conclude from this conversion, most important first."""
    return [
        *_from_missing_evidence(conversion),
        *_from_tiers(conversion),
        *_from_plan(conversion),
        *_from_reports(conversion),
    ]


def _from_missing_evidence(conversion: Conversion) -> list[OpenQuestion]:
    questions = []
    for proof in proofs(conversion):
        if proof.state == "not run":
            text = f"No case was run: {proof.means[0].lower()}{proof.means[1:]}."
            questions.append(OpenQuestion(lead=f"Proof {proof.number} was not run", text=text))
        elif proof.missing:
            text = f"No case was run for: {'; '.join(proof.missing)}."
            questions.append(OpenQuestion(lead=f"Proof {proof.number} is incomplete", text=text))
    dtypes = {case.dtype for report in conversion.kernel_reports for case in report.cases}
    if dtypes and conversion.dtype not in dtypes:
        tried = ", ".join(sorted(dtypes))
        text = f"The bundle is in {conversion.dtype}; the kernels were tried in {tried} only."
        questions.append(OpenQuestion(lead="The kernels were not tried in the bundle's dtype", text=text))
    return questions


def _from_tiers(conversion: Conversion) -> list[OpenQuestion]:
    reports = [*conversion.kernel_reports, *conversion.graph_reports, *conversion.model_reports]
    tiers = {case.tier for report in reports for case in report.cases}
    questions = []
    if "device" not in tiers:
        text = (
            f"No {chip_text(conversion.target)} took part. That neuronx-cc accepts the graphs, how fast they "
            "run and how the chip itself rounds are open until an instance has answered."
        )
        questions.append(OpenQuestion(lead="No device has run this model", text=text))
    if "simulator" in tiers and not tiers & {"official", "device"}:
        text = (
            "Kernels ran on neuron-port's simulator, which follows AWS's public documents. Where those are "
            "wrong or silent, the simulator may be too."
        )
        questions.append(OpenQuestion(lead="AWS's own simulator has not run the kernels", text=text))
    if "xla-cpu" in tiers:
        text = (
            "Proof 2 executes the graphs on a CPU with each kernel's reference arithmetic in its place. "
            "The kernels inside the compiled graph meet for the first time on a device."
        )
        questions.append(OpenQuestion(lead="Graphs and kernels were proven apart", text=text))
    if chip_text(conversion.target).endswith("(NeuronCore-v2)"):
        text = (
            "AWS's documents disagree on whether NKI kernels of version 0.3 and later are supported on Inf2 "
            "and Trn1. Only an instance can settle it."
        )
        questions.append(OpenQuestion(lead=f"NKI on {conversion.target} is contested", text=text))
    return questions


def _from_plan(conversion: Conversion) -> list[OpenQuestion]:
    questions = []
    if conversion.checkpoint.random_weights:
        text = "Agreement on random weights says little about the trained model's text."
        questions.append(OpenQuestion(lead="The weights are random", text=text))
    for cover, rows in conversion.phases:
        for decision, lead, text in (
            ("compiler", "Left to the compiler", "Not covered by proof 1; covered by proof 2"),
            ("undecided", "The plan is silent", "No decision was recorded"),
        ):
            chosen = [row for row in rows if row.decision == decision]
            if chosen:
                kinds = ", ".join(dict.fromkeys(row.kind for row in chosen))
                count = sum(row.count for row in chosen)
                shares = (
                    f"{share_text(sum(row.flops_share for row in chosen))} of FLOPs, "
                    f"{share_text(sum(row.bytes_share for row in chosen))} of HBM bytes"
                )
                layers = "layer" if count == 1 else "layers"
                questions.append(
                    OpenQuestion(
                        lead=f"{lead} ({cover.phase})", text=f"{count} {layers} ({kinds}; {shares}). {text}."
                    )
                )
    if conversion.plan.unused_parameters:
        text = f"No layer reads: {', '.join(conversion.plan.unused_parameters)}."
        questions.append(OpenQuestion(lead="Parameters that nothing uses", text=text))
    return questions


def _from_reports(conversion: Conversion) -> list[OpenQuestion]:
    """The reports' own reservations; equal ones are told once, with everyone who makes them."""
    sources: dict[str, list[str]] = {}
    for report in [*conversion.kernel_reports, *conversion.graph_reports, *conversion.model_reports]:
        for reservation in report.not_proven:
            sources.setdefault(reservation, []).append(split_subject(report.subject).recipe)
    return [
        OpenQuestion(lead=", ".join(dict.fromkeys(subjects)), text=reservation)
        for reservation, subjects in sources.items()
    ]
