"""Which instance types run the model, cut over how many cores, and how fast each would be."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_port.instances import Instance
from neuron_port.preflight.records import Basis, Candidate, Share, Speed, Work
from neuron_port.preflight.roofline import Machine, Step, decode_step, machine_of, prefill_step, step
from neuron_port.preflight.sizing import Sizes

GIB = 2**30
GPU_DEGREES = (1, 2, 4, 8)


def candidate(instance: Instance, shares: Sequence[Share], batch: int) -> Candidate:
    """Whether a Neuron instance type runs the model, at the smallest degree that fits: the rest are replicas.

    A degree that AWS's documents list for the target wins over one that only the model's heads allow.
    """
    machine = machine_of(instance)
    possible = [share for share in shares if share.degree <= machine.ranks]
    fitting = [share for share in possible if share.total_bytes <= machine.capacity_bytes]
    chosen = next(iter(sorted(fitting, key=lambda share: (not share.listed, share.degree))), None)
    widest = max(possible, key=lambda share: share.degree)
    return Candidate(
        instance=instance.name,
        fits=chosen is not None,
        degree=chosen.degree if chosen else None,
        replicas=machine.ranks // chosen.degree if chosen else 0,
        room=_room(chosen, machine, batch) if chosen else None,
        capacity_bytes_per_core=machine.capacity_bytes,
        needed_bytes_per_core=(chosen or widest).total_bytes,
        usd_per_hour=instance.usd_per_hour,
        reason=_reason(chosen, widest, machine),
    )


def _room(share: Share, machine: Machine, batch: int) -> int | None:
    """How many sequences of the asked length a replica's memory holds."""
    if not share.state_bytes:
        return None
    free = machine.capacity_bytes - share.weight_bytes - share.scratch_bytes
    return free * batch // share.state_bytes


def _reason(chosen: Share | None, widest: Share, machine: Machine) -> str:
    capacity = f"{machine.capacity_bytes / GIB:.1f} GiB"
    if chosen is None:
        return f"needs {gib(widest.total_bytes)} on each of {widest.degree} cores, {capacity} are usable"
    unlisted = "" if chosen.listed else "; AWS's documents do not list this degree"
    return f"{gib(chosen.total_bytes)} of {capacity} usable on each core{unlisted}"


def gib(size_bytes: float) -> str:
    """`13.1 GiB`, or MiB below one."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / 2**20:.0f} MiB"


def gpu_degree(machine: Machine, sizes: Sizes, work: Work) -> int | None:
    """The fewest GPUs of an instance that hold the model; None: all of them do not."""
    for degree in GPU_DEGREES:
        needed = work.weight_bytes / degree + _states(sizes, degree) / degree + sizes.scratch_bytes(degree)
        if degree <= machine.ranks and needed <= machine.capacity_bytes:
            return degree
    return None


def _states(sizes: Sizes, degree: int) -> float:
    """Bytes of the states on all ranks: a head of keys and values that several ranks share counts for each."""
    heads = getattr(sizes.whole.config.get_text_config(), "num_key_value_heads", None) or degree
    return sizes.state_bytes() * max(1.0, degree / heads)


def speed(instance: Instance, degree: int, sizes: Sizes, work: Work, all_reduces: int) -> Speed:
    """What the instance would do with the load, full of replicas, each at the asked batch and context."""
    machine = machine_of(instance, float32=sizes.weight_format == "float32")
    if sizes.anatomy.family == "encoder":
        return _forward_speed(machine, sizes, work)
    decode = decode_step(
        machine,
        degree,
        work,
        batch=sizes.batch,
        context=sizes.context,
        state_bytes=_states(sizes, degree),
        all_reduces=all_reduces,
    )
    prompt = max(1, sizes.context // 2)
    prefill = prefill_step(machine, degree, work, tokens=prompt, all_reduces=all_reduces)
    replicas = machine.ranks // degree
    tokens = replicas * sizes.batch / decode.seconds
    prompt_tokens = replicas * prompt / prefill.seconds
    return _speed(
        machine,
        degree,
        step=decode,
        decode_tokens_per_second=tokens,
        prefill_tokens_per_second=prompt_tokens,
        milliseconds_per_token=decode.seconds * 1e3,
        first_token_milliseconds=prefill.seconds * 1e3,
        items_per_second=None,
        paid_tokens=tokens,
    )


def _forward_speed(machine: Machine, sizes: Sizes, work: Work) -> Speed:
    """A model that answers in one pass: every core works on its own batch."""
    one = step(
        machine,
        1,
        bytes_=work.weight_bytes - work.embedding_bytes,
        flops=work.forward_flops,
        peak_share=machine.efficiency.forward,
    )
    items = machine.ranks * sizes.batch / one.seconds
    # Of a picture or a sound nobody counts tokens: its unit is the input.
    tokens = items * (sizes.context if sizes.anatomy.positions is not None else 1)
    return _speed(
        machine,
        1,
        step=one,
        decode_tokens_per_second=None,
        prefill_tokens_per_second=tokens,
        milliseconds_per_token=None,
        first_token_milliseconds=one.seconds * 1e3,
        items_per_second=items,
        paid_tokens=tokens,
    )


def _speed(
    machine: Machine,
    degree: int,
    *,
    step: Step,
    decode_tokens_per_second: float | None,
    prefill_tokens_per_second: float,
    milliseconds_per_token: float | None,
    first_token_milliseconds: float,
    items_per_second: float | None,
    paid_tokens: float,
) -> Speed:
    instance = machine.instance

    def per_million(tokens_per_second: float) -> float | None:
        if instance.usd_per_hour is None:
            return None
        return instance.usd_per_hour / 3600 / tokens_per_second * 1e6

    price, power = instance.price_evidence, instance.power_evidence
    return Speed(
        instance=instance.name,
        kind="neuron" if instance.kind == "neuron" else "gpu",
        degree=degree,
        replicas=machine.ranks // degree,
        usd_per_hour=instance.usd_per_hour,
        decode_tokens_per_second=decode_tokens_per_second,
        milliseconds_per_token=milliseconds_per_token,
        prefill_tokens_per_second=prefill_tokens_per_second,
        first_token_milliseconds=first_token_milliseconds,
        items_per_second=items_per_second,
        usd_per_million_tokens=per_million(paid_tokens),
        usd_per_million_prompt_tokens=per_million(prefill_tokens_per_second),
        joules_per_token=instance.watts / paid_tokens if instance.watts is not None else None,
        bound_by=step.bound_by,
        price=Basis(source=f"{price.source} {price.date}".strip(), confidence=price.confidence),
        power=Basis(source=f"{power.source} {power.date}".strip(), confidence=power.confidence),
        speed=machine.efficiency.basis,
    )
