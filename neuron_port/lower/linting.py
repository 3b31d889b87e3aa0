"""What neuronx-cc would say about a graph, as far as its documented error codes can be predicted.

Each rule is one function from the module to findings. Codes are those of the SDK's `compiler/error-codes/`;
codes that start with `HLO_` are limits of the file format that have no code there. What cannot be predicted
is listed, not hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from neuron_port.errors import UsageError
from neuron_port.lower.module import MAX_ID, Computation, Instruction, Module, Shape, read_module
from neuron_port.lower.schema import LITERAL_FIELDS
from neuron_port.types import GraphSpec

# Memory that one graph can fill: inf2/trn1 32 GiB for two NeuronCore-v2; trn2 96 GiB for eight NeuronCore-v3,
# of which a logical core (LNC=2) has two
# (about-neuron/arch/neuron-hardware/{trainium,inferentia2,trainium2}.rst).
HBM_BYTES_PER_CORE = {"inf2": 16 << 30, "trn1": 16 << 30, "trn1n": 16 << 30, "trn2": 24 << 30}
GEN3_TARGETS = ("trn2",)
LITERAL_LIMIT_BYTES = 1024
# Recognized by the compiler (error-codes/EVRF015.rst).
CUSTOM_CALL_TARGETS = frozenset(
    {
        "AwsNeuronErf",
        "AwsNeuronGelu",
        "AwsNeuronGeluApprxTanh",
        "AwsNeuronGeluBackward",
        "AwsNeuronSilu",
        "AwsNeuronSiluBackward",
        "AwsNeuronRmsNorm",
        "AwsNeuronSoftmax",
        "AwsNeuronSoftmaxBackward",
        "AwsNeuronCollectiveMatmul",
        "AwsNeuronIntMatmult",
        "AwsNeuronArgMax",
        "AwsNeuronArgMin",
        "AwsNeuronTopK",
        "AwsNeuronDropoutMaskV1",
        "AwsNeuronCustomNativeKernel",
        "AwsNeuronCustomOp",
        "AwsNeuronDevicePrint",
        "ResizeNearest",
        "ResizeBilinear",
        "ResizeNearestGrad",
        "AwsNeuronLNCShardingConstraint",
        "AwsNeuronTransferWithStaticRing",
    }
)
PLACEHOLDER_PREFIX = "neuron_port."
# Named as unsupported in the SDK's documents (trace guide: sort; error-codes/EVRF001.rst: triangular solve),
# or without any counterpart in its operator tables.
UNSUPPORTED_OPCODES = {
    "sort": "Take the top k with k <= 64, which is lowered to reductions.",
    "triangular-solve": "Multiply by the inverse.",
    "cholesky": "Compute it on the host.",
    "fft": "Write it as a matrix product.",
    "while": "Unroll the loop.",
    "conditional": "Compute both branches and select.",
    "dynamic-reshape": "Use static shapes.",
    "set-dimension-size": "Use static shapes.",
}
NOT_PREDICTED = (
    "Instruction count after tiling (NCC_EVRF007, NCC_EXTP004, NCC_EBVF030)",
    "Activation memory (NCC_EOOM001, NCC_EXSP001)",
    "What a materialised kernel needs (NCC_EVRF059, NCC_EVRF065)",
    "HLO shape verification (NCC_EVRF064): XLA-CPU checks it when the graph is executed",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One predicted refusal: its documented code, how often, the first place, why, and what to do."""

    code: str
    cause: str
    cure: str
    count: int
    first: str


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """What is in a graph and what the compiler would refuse. `to_json(report)` gives plain values.

    `flops` counts matrix products and convolutions, two a multiply-add; kernel calls are counted apart.
    Without a GraphSpec, weights cannot be told from inputs and are counted in `input_bytes`.
    """

    graph: str
    target: str
    opcodes: Mapping[str, int]
    kernel_calls: Mapping[str, int]  # placeholder target -> count, still to be materialised on an instance
    flops: int
    weight_bytes: int
    state_bytes: int
    input_bytes: int
    output_bytes: int
    module_bytes: int
    findings: tuple[Finding, ...]
    not_predicted: tuple[str, ...] = NOT_PREDICTED

    @property
    def passed(self) -> bool:
        return not self.findings


def lint(hlo: bytes, target: str, spec: GraphSpec | None = None) -> LintReport:
    """Predict what `neuronx-cc --target <target>` refuses, and measure the graph.

    Raises: UsageError for an unknown target, LoweringError for bytes that are no HLO module.
    """
    if target not in HBM_BYTES_PER_CORE:
        raise UsageError(
            f"Unknown target: `{target}`", hint="Known are " + ", ".join(HBM_BYTES_PER_CORE) + "."
        )
    module = _with_kernels(read_module(hlo))
    sizes = _sizes(module, spec)
    hits = [hit for rule in RULES for hit in rule(module, target)]
    hits += list(_memory(sizes, target))
    calls = [item.attributes.get("custom_call_target", "") for _, item in module.instructions()]
    placeholders = [name for name in calls if name.startswith(PLACEHOLDER_PREFIX)]
    return LintReport(
        graph=module.name,
        target=target,
        opcodes=module.opcodes(),
        kernel_calls={name: placeholders.count(name) for name in sorted(set(placeholders))},
        flops=sum(_flops(computation, item) for computation, item in _with_operands(module)),
        module_bytes=len(hlo),
        findings=_grouped(hits),
        weight_bytes=sizes["weight_bytes"],
        state_bytes=sizes["state_bytes"],
        input_bytes=sizes["input_bytes"],
        output_bytes=sizes["output_bytes"],
    )


def _with_kernels(module: Module) -> Module:
    """The module as it is compiled with all its kernels: without the references that placeholders carry along."""
    by_id = {computation.id: computation for computation in module.computations}
    kept, pending = set(), [module.entry_id]
    while pending:
        number = pending.pop()
        if number not in kept:
            kept.add(number)
            for item in by_id[number].instructions:
                if not item.attributes.get("custom_call_target", "").startswith(PLACEHOLDER_PREFIX):
                    pending += item.attributes.get("called_computation_ids", ())
    return replace(module, computations=tuple(one for one in module.computations if one.id in kept))


@dataclass(frozen=True)
class _Hit:
    code: str
    cause: str
    cure: str
    where: str


def _grouped(hits: list[_Hit]) -> tuple[Finding, ...]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for hit in hits:
        groups.setdefault((hit.code, hit.cause, hit.cure), []).append(hit.where)
    return tuple(
        Finding(code=code, cause=cause, cure=cure, count=len(places), first=places[0])
        for (code, cause, cure), places in groups.items()
    )


def _sizes(module: Module, spec: GraphSpec | None) -> dict[str, int]:
    sizes = dict.fromkeys(("weight_bytes", "state_bytes", "input_bytes", "output_bytes"), 0)
    written = {alias.parameter for alias in module.aliases}
    weights = {item.name for item in spec.inputs if item.role == "weight"} if spec else set()
    for number, (name, item) in enumerate(zip(module.input_names, module.entry.parameters, strict=True)):
        role = "state" if number in written else "weight" if name in weights else "input"
        sizes[f"{role}_bytes"] += item.shape.size_bytes
    aliased = {alias.output for alias in module.aliases}
    results = module.entry.root.shape.elements or (module.entry.root.shape,)
    sizes["output_bytes"] = sum(
        shape.size_bytes for index, shape in enumerate(results) if index not in aliased
    )
    return sizes


def _with_operands(module: Module) -> Iterator[tuple[Mapping[int, Instruction], Instruction]]:
    for computation in module.computations:
        by_id = {item.id: item for item in computation.instructions}
        for item in computation.instructions:
            yield by_id, item


def _flops(by_id: Mapping[int, Instruction], item: Instruction) -> int:
    if item.opcode not in ("dot", "convolution"):
        return 0
    right = by_id[item.operands[1]].shape.dimensions
    if item.opcode == "convolution":
        numbers = item.attributes.get("convolution_dimension_numbers", {})
        depth = math.prod(right) // right[numbers.get("kernel_output_feature_dimension", 0)]
    else:
        axes = item.attributes.get("dot_dimension_numbers", {}).get("rhs_contracting_dimensions", [])
        depth = math.prod(right[axis] for axis in axes)
    return 2 * math.prod(item.shape.dimensions) * depth


def _where(computation: Computation, item: Instruction) -> str:
    return f"{computation.name}/{item.name} {item.opcode} {item.shape}"


# -- rules --------------------------------------------------------------------------------------------------


def _types(module: Module, target: str) -> Iterator[_Hit]:
    """Element types that the target lacks."""
    for computation, item in module.instructions():
        for shape in item.shape.elements or (item.shape,):
            found = _type_problem(shape, target)
            if found:
                yield _Hit(*found, _where(computation, item))


def _type_problem(shape: Shape, target: str) -> tuple[str, str, str] | None:
    if shape.dynamic or any(size < 0 for size in shape.dimensions):
        return "NCC_EMOD025", "A dimension is dynamic", "Export one graph for each static shape."
    if shape.dtype in ("int64", "uint64"):
        return "NCC_EVRF062", "64-bit integers", "Use int32; our emitter does so by itself."
    if shape.dtype.startswith("complex"):
        return "NCC_EVRF004", "Complex numbers", "Keep real and imaginary parts in separate tensors."
    if shape.dtype == "float64":
        return "NCC_ESPP004", "float64", "Use float32."
    if shape.dtype == "float8_e4m3fn":
        return (
            "NCC_EVRF051",
            f"float8_e4m3fn on {target}",
            "Convert the weights to bfloat16, or target a later chip.",
        )
    return None


def _opcodes(module: Module, target: str) -> Iterator[_Hit]:
    """Operations that neuronx-cc documents as unsupported."""
    for computation, item in module.instructions():
        if item.opcode in UNSUPPORTED_OPCODES:
            cause = f"Unsupported operator `{item.opcode}`"
            yield _Hit("NCC_EVRF001", cause, UNSUPPORTED_OPCODES[item.opcode], _where(computation, item))


def _custom_calls(module: Module, target: str) -> Iterator[_Hit]:
    """Targets that neither the compiler knows nor we materialise, and integer top-k."""
    for computation, item in module.instructions():
        if item.opcode != "custom-call":
            continue
        name = item.attributes.get("custom_call_target", "")
        known = name in CUSTOM_CALL_TARGETS or name.startswith(
            (PLACEHOLDER_PREFIX, "AwsNeuronModuleMarker", "NeuronBoundaryMarker")
        )
        if not known:
            cure = "Use a target of error-codes/EVRF015, or outline the operation as a recipe."
            yield _Hit("NCC_EVRF015", f"Unknown custom call target `{name}`", cure, _where(computation, item))
        elif name == "AwsNeuronTopK" and "int" in (item.shape.elements or (item.shape,))[0].dtype:
            yield _Hit(
                "NCC_EVRF013", "Top-k of integers", "Convert to float32 first.", _where(computation, item)
            )


def _collectives(module: Module, target: str) -> Iterator[_Hit]:
    """Sums of integers over ranks, and ranks that do not all take part: one program is run by all of them."""
    for computation, item in module.instructions():
        if item.opcode not in ("all-reduce", "all-gather"):
            continue
        if item.opcode == "all-reduce" and "int" in item.shape.dtype:
            cure = "Convert to float32 first; values stay below 2^24."
            yield _Hit("NCC_EVRF061", "All-reduce of integers", cure, _where(computation, item))
        groups = [list(group.get("replica_ids", ())) for group in item.attributes.get("replica_groups", ())]
        if len(groups) != 1 or groups[0] != list(range(len(groups[0]))):
            cure = "Let all ranks 0 .. N - 1 meet in one group."
            yield _Hit("HLO_GROUPS", f"Groups of ranks: {groups}", cure, _where(computation, item))


def _integer_matmuls(module: Module, target: str) -> Iterator[_Hit]:
    """Integer products: TensorE of NeuronCore-v3 has no integer path."""
    for computation, item in module.instructions():
        if item.opcode == "dot" and item.shape.dtype == "int32" and target in GEN3_TARGETS:
            cure = "Convert the operands to float32."
            yield _Hit("NCC_EVRF035", "Matrix product of integers", cure, _where(computation, item))


def _scatters(module: Module, target: str) -> Iterator[_Hit]:
    """Integer scatter, and scatter that combines integers."""
    functions = {computation.id: computation for computation in module.computations}
    for computation, item in module.instructions():
        if item.opcode != "scatter" or item.shape.dtype in ("float32", "bfloat16", "float16"):
            continue
        called = functions.get(next(iter(item.attributes.get("called_computation_ids", ())), 0))
        if called is not None and called.root.opcode != "parameter":
            cure = "Convert operand and updates to float32."
            yield _Hit(
                "NCC_EVRF016", f"Scatter-reduce of {item.shape.dtype}", cure, _where(computation, item)
            )
        elif target in GEN3_TARGETS and item.shape.dtype != "bool":
            cure = "Convert operand and updates to float32; values stay below 2^24."
            yield _Hit("NCC_EVRF060", f"Scatter into {item.shape.dtype}", cure, _where(computation, item))


def _gather_bounds(module: Module, target: str) -> Iterator[_Hit]:
    """A gather whose positions count further than the table is long."""
    for by_id, item in _with_operands(module):
        if item.opcode != "gather":
            continue
        source = by_id[item.operands[1]]
        while source.opcode in ("reshape", "convert", "broadcast"):
            source = by_id[source.operands[0]]
        axes = item.attributes.get("gather_dimension_numbers", {}).get("start_index_map", [])
        if source.opcode != "iota" or len(axes) != 1:
            continue
        count = source.shape.dimensions[source.attributes.get("dimensions", [0])[0]]
        size = by_id[item.operands[0]].shape.dimensions[axes[0]]
        if count > size:
            cause = f"Gather at positions 0..{count - 1} of an axis of size {size}"
            yield _Hit("NCC_EVRF056", cause, "Keep the sequence within max_position_embeddings.", item.name)


def _ids(module: Module, target: str) -> Iterator[_Hit]:
    """Ids beyond 32 bits crash XLA before 2025 and the Neuron compiler (pytorch/xla#9685)."""
    for computation, item in module.instructions():
        if not 0 < item.id <= MAX_ID:
            yield _Hit(
                "HLO_ID",
                "Instruction id beyond 32 bits",
                "Number instructions anew.",
                _where(computation, item),
            )


def _literals(module: Module, target: str) -> Iterator[_Hit]:
    """Literals that should be parameters, and infinities, which Neuron's transposes turn into NaN."""
    for computation, item in module.instructions():
        if item.opcode != "constant":
            continue
        if item.shape.size_bytes > LITERAL_LIMIT_BYTES:
            cure = "Make it an input: a serialized module is limited to 2 GiB."
            yield _Hit(
                "HLO_LITERAL", f"Literal above {LITERAL_LIMIT_BYTES} bytes", cure, _where(computation, item)
            )
        if _infinite(item):
            cure = "Use torch.finfo(dtype).min, or compile with --enable-saturate-infinity."
            yield _Hit("HLO_INFINITY", "Infinite constant", cure, _where(computation, item))


def _infinite(item: Instruction) -> bool:
    kinds: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
    raw = item.attributes.get("literal", {}).get(LITERAL_FIELDS.get(item.shape.dtype, ""), b"")
    if item.shape.dtype not in kinds:
        return False
    return bool(np.isinf(np.frombuffer(raw, dtype=kinds[item.shape.dtype]).astype(np.float32)).any())


def _memory(sizes: Mapping[str, int], target: str) -> Iterator[_Hit]:
    total, limit = sum(sizes.values()), HBM_BYTES_PER_CORE[target]
    if total > limit:
        cause = (
            f"Weights, states and results need {total >> 20} MiB, a core of {target} has {limit >> 20} MiB"
        )
        yield _Hit("NCC_EVRF009", cause, "Shard over more cores, or use a smaller batch or dtype.", "main")


RULES: tuple[Callable[[Module, str], Iterator[_Hit]], ...] = (
    _types,
    _opcodes,
    _custom_calls,
    _collectives,
    _integer_matmuls,
    _scatters,
    _gather_bounds,
    _ids,
    _literals,
)
