"""How fast an instance would be: one roofline for Neuron chips and GPUs alike, with stated efficiencies.

    step = max(bytes / bandwidth, operations / TFLOPS) + all-reduces x (hops + bytes / link) + one call

Bytes are what a step streams from device memory: weights once (of experts those that the batch is expected to reach),
and the caches of every sequence at the asked length. Nothing here was confirmed by a device of ours; against what AWS
published for Inf2 and Trn1 see docs/preflight.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from neuron_port.instances import Instance
from neuron_port.preflight.records import Basis, Work

GIB = 2**30
CALL_SECONDS = 17e-6  # start and end of a call: 12 + 5 us (docs/latency.md); taken for GPUs too
LOGICAL_CORE = {"trn2": 2}  # physical cores of one logical core: LNC 2 is the compiler's default on Trn2
USABLE_SHARE = (
    0.9  # of device memory; vLLM's default on GPUs, taken for NeuronCores too: code, rings and runtime
)

Bound = Literal["memory", "compute", "links", "call"]


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The share of the published peak that a model reaches, and how long a hop of a collective takes."""

    memory: float
    prefill: float  # of TFLOPS, prompts of models that generate
    forward: float  # of TFLOPS, models that answer in one pass
    hop_seconds: float
    basis: Basis


# Memory, NeuronCore-v2: 272 of 440 GB/s is the sustained DMA rate of the documents (nki-dma-bandwidth-guide.rst). v3:
# what nki-library's tests state for decode of an MLP on two cores, 531 to 603 of 725 GB/s where weights exceed 80 MB.
# Prefill: the first tokens of prompts of 1,024 and 2,048 that AWS published for 70B on Inf2 and Trn1 (17 to 20 % of
# peak). Forward: BERT base and large on inf2.xlarge (31 and 39 %). Hops: 1 to 2 us on a ring
# (intranode-collective-comm.rst); Inf2 is a ring, Trn1 and Trn2 are tori.
EFFICIENCIES = {
    "inf2": Efficiency(memory=0.62, prefill=0.20, forward=0.31, hop_seconds=1.5e-6, basis=Basis(
        source="documented DMA rate and AWS's published benchmarks of Inf2", confidence="medium")),
    "trn1": Efficiency(memory=0.62, prefill=0.20, forward=0.31, hop_seconds=1.0e-6, basis=Basis(
        source="documented DMA rate and AWS's published benchmarks of Trn1", confidence="medium")),
    "trn2": Efficiency(memory=0.75, prefill=0.20, forward=0.31, hop_seconds=1.0e-6, basis=Basis(
        source="nki-library's stated MLP latencies on Trn2; compute as on Inf2", confidence="low")),
}  # fmt: skip
GPU_EFFICIENCY = Efficiency(memory=0.70, prefill=0.50, forward=0.50, hop_seconds=1.5e-6, basis=Basis(
    source="public reports: decode reaches 60 to 85 % of bandwidth, prefill about half of peak", confidence="low",
))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one rank of an instance has: a NeuronCore (on Trn2 a logical one), or a GPU."""

    instance: Instance
    ranks: int
    ranks_per_chip: int
    capacity_bytes: int
    bytes_per_second: float
    flops_per_second: float
    link_bytes_per_second: float | None  # one direction, of a chip
    efficiency: Efficiency


def machine_of(instance: Instance, *, float32: bool = False) -> Machine:
    """The instance as equal ranks."""
    ranks = instance.cores // LOGICAL_CORE.get(instance.target or "", 1)
    tflops = instance.tflops_fp32 if float32 else instance.tflops_bf16
    return Machine(
        instance=instance,
        ranks=ranks,
        ranks_per_chip=ranks // instance.accelerators,
        capacity_bytes=int(USABLE_SHARE * instance.device_memory_gib * GIB) // ranks,
        bytes_per_second=instance.bandwidth_gib_s * GIB / ranks,
        flops_per_second=tflops * 1e12 / ranks,
        link_bytes_per_second=instance.link_gib_s * GIB / 2 if instance.link_gib_s else None,
        efficiency=EFFICIENCIES.get(instance.target or "", GPU_EFFICIENCY),
    )


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of one step of one replica, by cause."""

    memory: float
    compute: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.memory, self.compute) + self.links + CALL_SECONDS

    @property
    def bound_by(self) -> Bound:
        causes: dict[Bound, float] = {
            "memory": self.memory if self.memory >= self.compute else 0.0,
            "compute": self.compute if self.compute > self.memory else 0.0,
            "links": self.links,
            "call": CALL_SECONDS,
        }
        return max(causes, key=lambda name: causes[name])


def step(
    machine: Machine,
    degree: int,
    *,
    bytes_: float,
    flops: float,
    peak_share: float,
    all_reduces: int = 0,
    reduced_bytes: float = 0.0,
) -> Step:
    """One step of a model cut over `degree` ranks: totals over all ranks, and what one all-reduce carries."""
    return Step(
        memory=bytes_ / degree / (machine.bytes_per_second * machine.efficiency.memory),
        compute=flops / degree / (machine.flops_per_second * peak_share),
        links=all_reduces * all_reduce_seconds(machine, degree, reduced_bytes),
    )


def all_reduce_seconds(machine: Machine, degree: int, size_bytes: float) -> float:
    """A ring over `degree` ranks, traversed twice; between chips over their links, within one over its memory."""
    if degree == 1:
        return 0.0
    links = machine.link_bytes_per_second
    within = degree <= machine.ranks_per_chip or links is None
    rate = machine.bytes_per_second * machine.efficiency.memory if within or links is None else links
    hops = 2 * (degree - 1)
    return hops * machine.efficiency.hop_seconds + hops / degree * size_bytes / rate


def streamed_bytes(work: Work, tokens: int) -> float:
    """Weights that a step over `tokens` tokens reads: of each layer's experts, those that the tokens reach."""
    reached = 1.0 - (1.0 - work.experts_share) ** tokens if work.experts_share else 1.0
    return work.weight_bytes - work.embedding_bytes - work.expert_bytes * (1.0 - reached)


def decode_step(
    machine: Machine,
    degree: int,
    work: Work,
    *,
    batch: int,
    context: int,
    state_bytes: float,
    all_reduces: int,
) -> Step:
    """One token for each of `batch` sequences that have `context` tokens in their cache.

    `state_bytes`: of all ranks together; heads that several ranks share count for each of them.
    """
    return step(
        machine,
        degree,
        bytes_=streamed_bytes(work, batch) + state_bytes,
        flops=batch * (work.linear_flops_per_token + work.pair_flops * context),
        peak_share=machine.efficiency.prefill,
        all_reduces=all_reduces,
        reduced_bytes=batch * work.hidden_bytes_per_token,
    )


def prefill_step(machine: Machine, degree: int, work: Work, *, tokens: int, all_reduces: int) -> Step:
    """A prompt of `tokens` tokens, one sequence."""
    return step(
        machine,
        degree,
        bytes_=streamed_bytes(work, tokens),
        flops=tokens * (work.linear_flops_per_token + work.pair_flops * tokens),
        peak_share=machine.efficiency.prefill,
        all_reduces=all_reduces,
        reduced_bytes=tokens * work.hidden_bytes_per_token,
    )
