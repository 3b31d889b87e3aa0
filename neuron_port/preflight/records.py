"""What `neuron-port check` is asked, and the records that its report is made of.

Every figure that is not arithmetic on the configuration carries where it comes from and how far it can be trusted. All
records are plain values: `to_json` gives the machine-readable report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from neuron_port.types import Family

Confidence = Literal["high", "medium", "low", "unknown"]
Severity = Literal["refused", "contested", "note"]
WEIGHT_FORMATS = ("float32", "bfloat16", "int8", "fp8")


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What the user asked: the model, the chip, and the load that it is to carry."""

    model: str
    target: str
    instance: str | None = None
    batch: int = 1
    context: int | None = (
        None  # tokens of a sequence, prompt and answer; None: 4096, or the model's positions
    )
    weight_format: str = "bfloat16"
    revision: str | None = None
    prices: Mapping[str, float] = field(default_factory=dict)  # instance type -> US$ per hour


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What a figure rests on."""

    source: str
    confidence: Confidence


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What the model is made of. Counts are parameters; tied ones count once."""

    name: str
    source: str
    architecture: str
    license: str | None
    family: Family
    embedding: int
    attention: int
    mlp: int
    experts: int
    other: int
    active: int  # that one token's way through the model multiplies with: no lookup table, k of the experts
    expert_count: int
    experts_per_token: int
    layers: int
    positions: int | None

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.mlp + self.experts + self.other


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one core holds when the model is cut over `degree` cores, in bytes."""

    degree: int
    weight_bytes: int
    state_bytes: int  # key/value caches and recurrent states of the whole batch
    scratch_bytes: int
    all_reduces: int  # per decode step
    listed: bool  # whether AWS's documents list this degree for the target

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.state_bytes + self.scratch_bytes


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step costs, whole model: the roofline's numerator."""

    linear_flops_per_token: int  # two for every active weight
    pair_flops: float  # attention, for one query and one key, all layers
    weight_bytes: int
    expert_bytes: int  # part of weight_bytes
    embedding_bytes: int  # part of weight_bytes that a step looks up and does not stream
    experts_share: float  # of a layer's experts, those that one token takes; 0 without experts
    hidden_bytes_per_token: int  # what one all-reduce carries for one token
    forward_flops: float  # of a model that answers in one pass: the whole batch


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What an instance would do with the load: predicted, no device has confirmed it."""

    instance: str
    kind: Literal["neuron", "gpu"]
    degree: int
    replicas: int
    usd_per_hour: float | None
    decode_tokens_per_second: float | None  # all replicas together
    milliseconds_per_token: float | None  # of one sequence
    prefill_tokens_per_second: float
    first_token_milliseconds: float
    items_per_second: float | None  # encoders: texts, pictures, clips
    usd_per_million_tokens: float | None  # decoded; of an encoder: read
    usd_per_million_prompt_tokens: float | None
    joules_per_token: float | None
    bound_by: Literal["memory", "compute", "links", "call"]
    price: Basis
    power: Basis
    speed: Basis


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An instance type of the target, and whether the model runs on it."""

    instance: str
    fits: bool
    degree: int | None
    replicas: int
    room: int | None  # sequences of the asked length that a replica's memory holds; None: states take none
    capacity_bytes_per_core: int
    needed_bytes_per_core: int | None  # at `degree`, or at the largest degree that the instance has cores for
    usd_per_hour: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something known to fail or to be disputed: the documented code, why, and what to do."""

    severity: Severity
    code: str
    cause: str
    cure: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Support:
    """One framework on the target: what its documents say about the chip and about this architecture."""

    framework: str
    chip: str
    architecture: str
    source: str


@dataclass(frozen=True, kw_only=True)
class CompileHost:
    """What the compiler needs of the machine that it runs on."""

    memory_gib: int
    instance: str
    usd_per_hour: float | None
    on_target: tuple[str, ...]  # instance types of the target with that much memory of their own
    basis: Basis


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All of it, the verdict first."""

    verdict: str
    fits: bool
    options: CheckOptions
    context: int
    anatomy: Anatomy
    weight_bytes: int
    state_bytes: int
    state_bytes_per_token: int  # of one sequence, for one more cached token; 0: states do not grow
    shares: tuple[Share, ...]
    candidates: tuple[Candidate, ...]
    speeds: tuple[Speed, ...]
    compile_host: CompileHost
    findings: tuple[Finding, ...]
    support: tuple[Support, ...]
    notes: tuple[str, ...]
    prices_date: str
    region: str
    seconds: float
    cpu_seconds: float
