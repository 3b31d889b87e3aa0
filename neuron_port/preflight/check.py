"""`neuron-port check`: from a model's name and a chip to a verdict, from the configuration alone.

    find_configuration ▶ anatomy ▶ trim ▶ sizes at every degree ▶ instances and speeds ▶ findings ▶ verdict

No weights are fetched or read, no SDK is needed, and nothing here was confirmed by a device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from neuron_port.checkpoint.source import Configuration, find_configuration
from neuron_port.errors import UsageError
from neuron_port.instances import (
    Instance,
    compile_hosts,
    compile_memory_gib,
    gpu_instances,
    instance,
    instances_of,
    table_date,
    table_region,
    with_prices,
)
from neuron_port.preflight import findings
from neuron_port.preflight.anatomy import anatomy, tables_of, weight_bytes
from neuron_port.preflight.blocks import meta_model, trim
from neuron_port.preflight.fitting import candidate, gpu_degree, speed
from neuron_port.preflight.records import (
    WEIGHT_FORMATS,
    Anatomy,
    Basis,
    Candidate,
    CheckOptions,
    CheckReport,
    CompileHost,
    Finding,
    Share,
    Speed,
    Work,
)
from neuron_port.preflight.roofline import machine_of
from neuron_port.preflight.sizing import LISTED_DEGREES, Sizes, hidden_size
from neuron_port.preflight.support import support_of
from neuron_port.preflight.verdict import notes_of, verdict_of
from neuron_port.store import Store

TARGETS = tuple(LISTED_DEGREES)
DEFAULT_CONTEXT = 4096
DEFAULT_TEXT = 128  # tokens of a text that an encoder reads


def check(
    options: CheckOptions, *, store: Store | None = None, say: Callable[[str], None] | None = None
) -> CheckReport:
    """Everything that can be said before a conversion.

    Raises:
        UsageError: an instance, batch or context that cannot be; and as `find_configuration`.
    """
    started, started_cpu = time.monotonic(), time.process_time()
    available = _instances(options)
    found = find_configuration(options.model, store=store or Store(), revision=options.revision, progress=say)
    whole = meta_model(found.config)
    made_of = anatomy(whole, found.config, name=found.name, source=found.source, license=found.license)
    context = _context(options, made_of)
    trimmed = trim(found.config, whole)
    sizes = Sizes(
        whole, trimmed, made_of, batch=options.batch, context=context, weight_format=options.weight_format
    )
    every = with_prices(instances_of(options.target), options.prices)
    shares = sizes.shares(options.target, max(machine_of(entry).ranks for entry in every))
    work = _work(sizes)
    candidates = tuple(candidate(entry, shares, options.batch) for entry in every)
    named = {entry.name for entry in available}
    chosen = next((one for one in candidates if one.fits and one.instance in named), None)
    per_slot, _ = sizes.state_parts()
    report = CheckReport(
        verdict="",
        fits=chosen is not None,
        options=options,
        context=context,
        anatomy=made_of,
        weight_bytes=work.weight_bytes,
        state_bytes=sizes.state_bytes(),
        state_bytes_per_token=per_slot,
        shares=shares,
        candidates=candidates,
        speeds=_speeds(candidates, options, sizes, work, shares),
        compile_host=_compile_host(made_of, options, chosen),
        findings=_findings(sizes, work, options.target, chosen),
        support=support_of(options.target, _model_type(found)),
        notes=notes_of(sizes, options, found.config),
        prices_date=table_date(),
        region=table_region(),
        seconds=time.monotonic() - started,
        cpu_seconds=time.process_time() - started_cpu,
    )
    return replace(report, verdict=verdict_of(report, sizes, chosen, every))


def _instances(options: CheckOptions) -> tuple[Instance, ...]:
    """The instance types that the user allows, cheapest first; refuses what does not go together."""
    if options.target not in TARGETS:
        raise UsageError(f"Unknown target: `{options.target}`", hint=f"One of {', '.join(TARGETS)}.")
    if options.weight_format not in WEIGHT_FORMATS:
        raise UsageError(
            f"Unknown weight format: `{options.weight_format}`", hint=f"One of {', '.join(WEIGHT_FORMATS)}."
        )
    if options.batch < 1:
        raise UsageError(f"The batch must be at least one: `{options.batch}`", hint="Use --batch 1.")
    for name in options.prices:
        instance(name)
    if options.instance is None:
        return with_prices(instances_of(options.target), options.prices)
    entry = instance(options.instance)
    if entry.target != options.target:
        has = f"{entry.accelerator}" if entry.accelerator else "no accelerator"
        names = ", ".join(one.name for one in instances_of(options.target))
        raise UsageError(
            f"{entry.name} has {has}: nothing compiled for {options.target} runs on it",
            hint=f"--target {entry.target}, or one of {names}."
            if entry.target
            else f"One of {names}; {entry.name} is compared with them by itself."
            if entry.kind == "gpu"
            else f"One of {names}.",
        )
    return with_prices([entry], options.prices)


def _context(options: CheckOptions, made_of: Anatomy) -> int:
    """The asked length, or the usual one within the model's positions. Raises UsageError beyond them."""
    known = made_of.positions
    if options.context is None:
        usual = DEFAULT_TEXT if made_of.family == "encoder" else DEFAULT_CONTEXT
        return min(usual, known or usual)
    if options.context < 1:
        raise UsageError(
            f"The context must be at least one token: `{options.context}`", hint="Use --context 4096."
        )
    if known is not None and options.context > known:
        raise UsageError(
            f"A context of {options.context} tokens is longer than the {known} positions of {made_of.architecture}",
            hint=f"Use --context {known}.",
        )
    return options.context


def _model_type(found: Configuration) -> str:
    return str(found.config.model_type)


def _work(sizes: Sizes) -> Work:
    """The model's step in numbers, at the asked batch, context and format."""
    found = sizes.anatomy
    cut = sizes.cut(1)
    weights = weight_bytes(cut.model, sizes.trimmed, sizes.weight_format, cut.tables)
    head = tables_of(sizes.whole).head
    sizes_by_name = dict(sizes.whole.named_parameters())
    head_size = sizes_by_name[head].numel() if head else 0
    linear, pair = 2.0 * found.active, 0.0
    if found.family != "encoder":
        tokens = sizes.walks[0].graph.batch * sizes.walks[0].graph.sequence_length
        flops = sizes.flops("prefill")
        outside = flops - 2.0 * (found.active - head_size) * tokens
        if any(one.graph.phase == "prefill" for one in sizes.walks) and sizes.state_parts()[0]:
            pair = max(0.0, outside) / tokens**2
    return Work(
        linear_flops_per_token=round(linear),
        pair_flops=pair,
        weight_bytes=sum(weights.values()),
        expert_bytes=weights["experts"] if found.expert_count else 0,
        embedding_bytes=weights["looked up"],
        experts_share=found.experts_per_token / found.expert_count if found.expert_count else 0.0,
        hidden_bytes_per_token=hidden_size(sizes.whole) * sizes.dtype.itemsize,
        forward_flops=sizes.flops("forward"),
    )


def _speeds(
    candidates: tuple[Candidate, ...],
    options: CheckOptions,
    sizes: Sizes,
    work: Work,
    shares: tuple[Share, ...],
) -> tuple[Speed, ...]:
    """Every instance of the target that runs the model (or the named one), then GPUs; cheapest token first."""
    sums = {share.degree: share.all_reduces for share in shares}
    usual = 2 * sizes.anatomy.layers  # of a GPU's own plan: one after attention, one after the MLP
    found = []
    for one in candidates:
        if one.degree is not None and options.instance in (None, one.instance):
            (entry,) = with_prices([instance(one.instance)], options.prices)
            found.append(speed(entry, one.degree, sizes, work, sums[one.degree]))
    for entry in with_prices(gpu_instances(), options.prices):
        degree = gpu_degree(machine_of(entry), sizes, work)
        if degree is not None:
            found.append(speed(entry, degree, sizes, work, usual))
    return tuple(sorted(found, key=_by_token))


def _by_token(one: Speed) -> tuple[bool, float]:
    return one.usd_per_million_tokens is None, one.usd_per_million_tokens or 0.0


def _compile_host(made_of: Anatomy, options: CheckOptions, chosen: Candidate | None) -> CompileHost:
    """The cheapest CPU instance with the memory that compiling wants, and which of the target's own have it."""
    needed = compile_memory_gib(made_of.total / ((chosen and chosen.degree) or 1))
    host = next(entry for entry in with_prices(compile_hosts(), options.prices) if entry.memory_gib >= needed)
    return CompileHost(
        memory_gib=needed,
        instance=host.name,
        usd_per_hour=host.usd_per_hour,
        on_target=tuple(entry.name for entry in instances_of(options.target) if entry.memory_gib >= needed),
        basis=Basis(
            source="public reports of killed compilations: 8B on 32 GiB (aws-neuron-sdk issue 1222), Stable Diffusion "
            "on 16 GiB (aws-neuron-samples issue 10); the rest interpolated",
            confidence="low",
        ),
    )


def _findings(sizes: Sizes, work: Work, target: str, chosen: Candidate | None) -> tuple[Finding, ...]:
    order: dict[str, int] = {"refused": 0, "contested": 1, "note": 2}
    found = [*findings.lowered(sizes, target), *findings.of_sizes(sizes, work, target, chosen)]
    return tuple(sorted(found, key=lambda one: order[one.severity]))
