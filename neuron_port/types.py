"""The records that pass between stages. Read this file first.

Frozen, keyword-only dataclasses with the field's standard names. Nothing here imports torch, so that listing and
planning stay light. `to_json` / `from_json` are one generic pair for all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pydantic

from neuron_port.errors import ParityError

# Names are the ones of safetensors' and torch's own spelling, without the `torch.` prefix.
DTYPE_BYTES = {
    "float64": 8, "complex64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip

Record = TypeVar("Record")
Tier = Literal["simulator", "xla-cpu", "official", "device"]
Decision = Literal["recipe", "draft", "compiler"]
Phase = Literal["prefill", "decode", "forward"]
Family = Literal["causal", "encoder", "sequence to sequence", "vision language"]
BundleState = Literal["portable", "compiled", "device-verified"]
# How a `Match.refusals` text begins that is not about a limit of the recipe's kernel.
DIFFERENT, EXCLUDED = "computes something else", "was excluded by the user"
GLUE = "only moves data"  # a `Match.reason`: padding, slicing, reshaping in a module of its own


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.size * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class ConvertedTensor:
    """What transformers makes a module's tensor of, where the files do not hold it as it is.

    `operations` are transformers' own, in order ("MergeModulelist(dim=0)"); none: only the name differs.
    """

    made_of: tuple[str, ...]
    operations: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model on local disk: configuration, tokenizer and, unless `random_weights`, safetensors files.

    `directory` is in Hugging Face layout. `weights` maps the modules' tensor names to specs; values are read lazily.
    `converted` has those of them that are not in the files under this name and in this shape. A quantised one
    is made of another, `unquantized`: `weights` has the quantised tensors, and `quantized` names their layers.
    """

    name: str
    source: str  # where it came from, for people: a hub id, a directory, a PyPI wheel
    revision: str  # digest of config and weights: equal revision means equal bytes
    directory: str
    architecture: str  # "LlamaForCausalLM"
    config: Mapping[str, Any]
    weights: Mapping[str, TensorSpec]
    random_weights: bool
    license: str | None = None
    converted: Mapping[str, ConvertedTensor] = field(default_factory=dict)
    weight_format: str | None = None  # "int8" or "fp8": linear layers are quantised
    quantized: Mapping[str, str] = field(default_factory=dict)  # layer -> transform of its weight to [N, K]
    unquantized: Checkpoint | None = None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call that the model makes: a module, or a function cut out of one.

    `name` is the module's path, followed for functions by `#` and what they are: `model.layers.0.self_attn#rope`.
    `parameters` are the module's own, by their name in it; the checkpoint knows them as `<layer name>.<parameter>`.
    """

    name: str
    operation: str  # one of neuron_port.recipe.OPERATIONS
    module_class: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, TensorSpec]
    attributes: Mapping[str, Any]
    flops: int
    hbm_bytes: int

    @property
    def signature(self) -> str:
        """Digest of everything that decides which kernel serves this layer; equal layers share it."""
        return digest(
            self.operation,
            self.module_class,
            self.inputs,
            self.outputs,
            dict(self.parameters),
            dict(self.attributes),
        )


@dataclass(frozen=True, kw_only=True)
class LayerGraph:
    """All layers of a model in the order in which they run, for one phase.

    `flops` are those of the whole step, whatever part of it is a layer: shares are of them.
    """

    checkpoint: str  # its revision
    phase: Phase
    batch: int
    sequence_length: int
    layers: tuple[Layer, ...]
    flops: int = 0

    def groups(self) -> dict[str, list[Layer]]:
        """Layers by signature, in order of first appearance."""
        groups: dict[str, list[Layer]] = {}
        for layer in self.layers:
            groups.setdefault(layer.signature, []).append(layer)
        return groups


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Where a kernel's weight comes from, and how it is laid out on the way: `transform` is applied once, at load.

    `name` is a parameter or a buffer of the layer's module.
    transform: "none", "transpose" (the last two axes change places: [N, K] in the checkpoint becomes [K, N] for the
    kernel) or "permute:2,3,1,0" (axis n of the result is the named axis of the checkpoint's tensor).
    """

    name: str
    transform: str = "none"

    def __post_init__(self) -> None:
        if self.transform not in ("none", "transpose") and not re.fullmatch(
            r"permute:\d(,\d)*", self.transform
        ):
            raise ValueError(
                f"Unknown transform `{self.transform}` of weight `{self.name}`: none, transpose or permute:<axes>"
            )


def permutation(transform: str, rank: int) -> tuple[int, ...]:
    """The order of axes that a `WeightSource.transform` asks of a tensor of this rank."""
    axes = list(range(rank))
    if transform == "transpose":
        axes[-2:] = axes[:-3:-1]
    elif transform != "none":
        axes = [int(axis) for axis in transform.removeprefix("permute:").split(",")]
    return tuple(axes)


@dataclass(frozen=True, kw_only=True)
class Match:
    """What was decided for every layer of one signature, and why."""

    signature: str
    layers: tuple[str, ...]
    decision: Decision
    recipe: str | None  # recipe or draft name
    weights: Mapping[str, WeightSource]  # kernel role -> the module's own parameter name and its layout
    attributes: Mapping[str, Any]  # eps, head counts, scaling ...
    reason: str
    evidence: Mapping[str, float] = field(
        default_factory=dict
    )  # relative error of the numeric probe, per input scale
    refusals: Mapping[str, str] = field(
        default_factory=dict
    )  # for the compiler's layers: recipe that might have taken it -> why not


@dataclass(frozen=True, kw_only=True)
class MatchPlan:
    """The decision for every signature of a layer graph."""

    checkpoint: str
    target: str
    matches: tuple[Match, ...]
    unused_parameters: tuple[str, ...]  # consumed by no layer: must be empty, or is reported

    def by_layer(self, graph: LayerGraph) -> dict[str, Match]:
        """The decisions for one phase's layers, by layer name; layers inside a matched module have none."""
        decided = {match.signature: match for match in self.matches}
        return {
            layer.name: decided[layer.signature]
            for layer in graph.layers
            if layer.signature in decided and layer.name in decided[layer.signature].layers
        }


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel's source and where it came from."""

    name: str
    source: str
    entry_point: str
    origin: Literal["recipe", "draft"]
    nki_version: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One comparison of one output with its reference. Failure is `passed=False` with `detail`, never a magic number."""

    name: str
    kind: str  # "captured", "ordinary", "tail", "stress", "large", "sabotage" (which must fail)
    tier: Tier
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    seed: int | None
    metrics: Mapping[str, float]
    limits: Mapping[str, float]
    passed: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Every case that was run for one subject (a kernel on a signature, a graph, or the whole model)."""

    subject: str
    oracle: str  # "transformers 5.23.0, torch 2.13.0, cpu, float32"
    cases: tuple[CaseResult, ...]
    not_proven: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def worst(self) -> CaseResult | None:
        """The case closest to, or furthest beyond, one of its limits; a sabotage counts only if it was not refused."""
        judged = [case for case in self.cases if case.kind != "sabotage" or not case.passed]
        return max(judged, key=_limit_share, default=None)


def _limit_share(case: CaseResult) -> float:
    shares = [
        case.metrics[name] / limit
        for name, limit in case.limits.items()
        if limit > 0 and name in case.metrics
    ]
    return math.inf if not case.passed else max(shares, default=0.0)


@dataclass(frozen=True, kw_only=True)
class PromptCost:
    """How far a quantised model is from the unquantised one on one prompt; `places` are the tokens compared.

    `metrics`: kl_mean, kl_max, top1_agreement, equal_greedy_tokens, greedy_tokens, perplexity, perplexity_quantized; of
    models that answer in one pass relative_error and cosine (parity/quantization_cost.py).
    """

    name: str
    places: int
    metrics: Mapping[str, float]
    reference_text: str = ""
    quantized_text: str = ""


@dataclass(frozen=True, kw_only=True)
class QuantizationCost:
    """What a weight format costs and saves. No limit belongs to it: the proofs are of the quantised model."""

    weight_format: str
    unit: str  # "prompt" or "sample"
    oracle: str
    layers: int
    quantized_parameters: int
    parameters: int
    bytes_before: int
    bytes_after: int
    prompts: tuple[PromptCost, ...]

    @property
    def means(self) -> dict[str, float]:
        """Means over the prompts of what all of them have: of perplexity geometric ones, of kl_max the largest."""
        every = [cost.metrics for cost in self.prompts]
        names = [name for name in every[0] if all(name in metrics for metrics in every)]
        values = {name: [metrics[name] for metrics in every] for name in names}
        found = {name: sum(of_prompts) / len(of_prompts) for name, of_prompts in values.items()}
        for name, of_prompts in values.items():
            if name == "kl_max":
                found[name] = max(of_prompts)
            elif name.startswith("perplexity"):
                found[name] = math.exp(sum(map(math.log, of_prompts)) / len(of_prompts))
        return found


@dataclass(frozen=True, kw_only=True)
class VerifiedKernel:
    """A kernel together with the report that proves it. Construction fails otherwise."""

    kernel: Kernel
    signature: str
    report: ParityReport

    def __post_init__(self) -> None:
        if not self.report.passed:
            worst = self.report.worst
            where = (
                "no case was run" if worst is None else f"case `{worst.name}` ({worst.dtype}): {worst.detail}"
            )
            raise ParityError(
                f"Kernel `{self.kernel.name}` failed parity on {self.report.subject}: {where}",
                hint="The kernel is not shipped. Correct it, or exclude the layer with --compiler NAME.",
            )


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Which part of a checkpoint's tensor (before any `transform`) each of several tensor-parallel ranks holds.

    `axis` is cut into `blocks` equal blocks (gate and up of a fused projection), each block into `units` equal units.
    Of every block a rank has its share of the units; where there are fewer units than ranks (key/value heads), one
    unit, the same as its neighbours. With `axis` None rank 0 has the whole tensor and the others zeros: what is added
    to every rank's part of a sum counts once.
    """

    ranks: int
    axis: int | None
    blocks: int = 1
    units: int = 1

    @property
    def copies(self) -> int:
        """How many ranks hold the same part."""
        return 1 if self.axis is None else max(1, self.ranks // self.units)

    def part(self, rank: int) -> int:
        """A number that ranks of equal parts share."""
        return min(rank, 1) if self.axis is None else rank // self.copies

    def local_size(self, size: int) -> int:
        """What a rank has of an axis of `size`."""
        return size * self.copies // self.ranks

    def ranges(self, size: int, rank: int) -> tuple[tuple[int, int], ...]:
        """(start, stop) along an axis of `size` for each block of what `rank` holds."""
        share = self.local_size(size) // self.blocks
        start = self.part(rank) * share
        block = size // self.blocks
        return tuple(
            (number * block + start, number * block + start + share) for number in range(self.blocks)
        )

    def local_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a rank's part of a tensor of `shape`."""
        if self.axis is None:
            return shape
        return (*shape[: self.axis], self.local_size(shape[self.axis]), *shape[self.axis + 1 :])


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """One parameter of a graph, in order. `weight` is read from `source` through `transform`; `state` is aliased.

    Of a graph that several ranks run, `spec` is one rank's and `shard` says which part of the whole it is: of the
    checkpoint's tensor for weights, of the model's own state for states. None: every rank has all of it.
    """

    name: str
    role: Literal["weight", "input", "state"]
    spec: TensorSpec
    source: str | None = None  # weights: the checkpoint's tensor name, or "derived:<name>"
    transform: str = "none"  # that of WeightSource
    shard: Shard | None = None


@dataclass(frozen=True, kw_only=True)
class GraphOutput:
    """One result of a graph, in order. A `state` output is written in place over the input `alias_of`."""

    name: str
    role: Literal["output", "state"]
    spec: TensorSpec
    alias_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """The interface of one graph: `prefill_b1_s128`, `decode_b1_t256`."""

    id: str
    phase: Phase
    batch: int
    sequence_length: int  # prefill: tokens of the bucket; decode: 1
    cache_length: int  # key/value slots
    fills_bucket: bool = (
        False  # prompts must have exactly `sequence_length` tokens: a recurrence runs on into padding
    )
    inputs: tuple[GraphInput, ...]
    outputs: tuple[GraphOutput, ...]

    @property
    def ranks(self) -> int:
        """How many tensor-parallel ranks run it, a core each."""
        return max((item.shard.ranks for item in self.inputs if item.shard is not None), default=1)


def digest(*parts: Any) -> str:
    """Sixteen hexadecimal characters that change when any part does. Parts are records or JSON values."""
    text = json.dumps([to_json(part) for part in parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_json(record: type[Record], value: Any) -> Record:
    """The record that `to_json` gave `value`; raises pydantic's ValidationError when it does not fit."""
    kind: Any = record
    checked: Record = _adapter(kind).validate_python(value)
    return checked


@functools.cache  # making one takes milliseconds, and journals hold hundreds of records
def _adapter(record: type[Any]) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(record)


def to_json(value: Any) -> Any:
    """Plain JSON values for a record, recursively."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"not JSON: {type(value).__name__} {value!r}")
