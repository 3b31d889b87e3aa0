"""What was not proven, in plain words: before any result, and never empty while no device took part."""

from __future__ import annotations

from dataclasses import dataclass

from neuron_port.report.cases import split_subject
from neuron_port.report.coverage import Coverage, PlanRow
from neuron_port.report.numbers import share_text
from neuron_port.report.proofs import proofs
from neuron_port.report.records import Conversion

_NO_DEVICE = "No device has run this model"
# Reservations that the records make for every kernel, graph and model, and the general one that says so for all.
_SAID_BY = {
    "no Neuron device has run this kernel": _NO_DEVICE,
    "no Neuron device has run this model": _NO_DEVICE,
    "neuronx-cc has not compiled this graph": _NO_DEVICE,
}
_MOST_SUBJECTS = 3
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


def ranks_text(conversion: Conversion) -> str:
    """Of a model that is cut over several cores ", 4 tensor-parallel ranks", else nothing."""
    return f", {conversion.ranks} tensor-parallel ranks" if conversion.ranks > 1 else ""


def open_questions(conversion: Conversion) -> list[OpenQuestion]:
    """Everything that a careful reader should not conclude from this conversion, most important first."""
    general = [
        *_from_missing_evidence(conversion),
        *_from_tiers(conversion),
        *_from_plan(conversion),
    ]
    return [*general, *_from_reports(conversion, {question.lead for question in general})]


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
            f"No {chip_text(conversion.target)} took part. Whether neuronx-cc accepts the graphs, how fast they "
            "run and how the chip itself rounds stays open until an instance answers."
        )
        questions.append(OpenQuestion(lead=_NO_DEVICE, text=text))
    if "simulator" in tiers and not tiers & {"official", "device"}:
        text = (
            "Kernels ran on neuron-port's simulator, which follows AWS's public documents. Where those are "
            "wrong or silent, the simulator may be too."
        )
        questions.append(OpenQuestion(lead="AWS's own simulator has not run the kernels", text=text))
    if "xla-cpu" in tiers:
        text = (
            "Proof 2 runs the graphs on a CPU, with each kernel's reference arithmetic in its place. Proof 3 runs "
            "the kernels, called one by one. As one compiled program both run on a device for the first time."
        )
        questions.append(OpenQuestion(lead="Graphs and kernels were not run as one program", text=text))
    if conversion.ranks > 1 and "xla-cpu" in tiers:
        text = (
            f"All {conversion.ranks} ranks ran: on {conversion.ranks} devices of XLA-CPU for proof 2, taking turns on "
            "the simulator for proof 3. How chips add up the parts, in which order and how fast, no device has shown."
        )
        questions.append(OpenQuestion(lead="The ranks have met on a CPU only", text=text))
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
    for decision, lead, text in (
        (
            "compiler",
            "Left to the compiler",
            "Not covered by proof 1; covered by proof 2. The plan says what would cover them",
        ),
        ("undecided", "The plan is silent", "No decision was recorded"),
    ):
        chosen = [
            (cover, [row for row in rows if row.decision == decision]) for cover, rows in conversion.phases
        ]
        phases = [_phase_text(cover, rows) for cover, rows in chosen if rows]
        if phases:
            questions.append(OpenQuestion(lead=lead, text=f"{' '.join(phases)} {text}."))
    if conversion.plan.unused_parameters:
        text = f"No layer reads: {', '.join(conversion.plan.unused_parameters)}."
        questions.append(OpenQuestion(lead="Parameters that nothing uses", text=text))
    return questions


def _phase_text(cover: Coverage, rows: list[PlanRow]) -> str:
    kinds = ", ".join(dict.fromkeys(row.kind for row in rows))
    count = sum(row.count for row in rows)
    flops = share_text(sum(row.flops for row in rows) / cover.flops if cover.flops else 0.0)
    moved = share_text(sum(row.hbm_bytes for row in rows) / cover.hbm_bytes if cover.hbm_bytes else 0.0)
    layers = "layer" if count == 1 else "layers"
    return f"In {cover.label} {count} {layers}: {kinds} ({flops} of FLOPs, {moved} of HBM bytes)."


def _from_reports(conversion: Conversion, said: set[str]) -> list[OpenQuestion]:
    """The reports' own reservations, without those that were `said` for all; equal ones are told once."""
    sources: dict[str, list[str]] = {}
    for report in [*conversion.kernel_reports, *conversion.graph_reports, *conversion.model_reports]:
        for reservation in report.not_proven:
            if _SAID_BY.get(reservation) not in said:
                sources.setdefault(reservation, []).append(split_subject(report.subject).recipe)
    return [
        OpenQuestion(lead=_subjects_text(list(dict.fromkeys(subjects))), text=_sentence(reservation))
        for reservation, subjects in sources.items()
    ]


def _subjects_text(subjects: list[str]) -> str:
    more = len(subjects) - _MOST_SUBJECTS
    return ", ".join(subjects[:_MOST_SUBJECTS]) + (f" and {more} more" if more > 0 else "")


def _sentence(text: str) -> str:
    """The text with a full stop. Its beginning stays: it may be a name."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
