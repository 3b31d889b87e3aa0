"""The part of NKI that one task needs, in words: generated from the simulator, so that the two cannot drift apart.

    task ─ primitives_of ─▶ {"softmax", "product"} ─ instructions_for ─▶ names ─ dialect_slice ─▶ text for the prompt

Signatures, docstrings, limits, rules and renames are read from the simulator when the slice is made; the kernels in
it are read from the recipes' files. What is written here is one table: which GPU operation needs which instruction.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from neuron_port.drafting.exemplars import RecipeCode, recipe_functions
from neuron_port.drafting.planning import Plan
from neuron_port.drafting.prompting import PromptError, render
from neuron_port.simulator.coverage import least_generation
from neuron_port.simulator.instructions.operators import COMPILE_NOT, OPERATORS, TOKENS_ONLY, Operator
from neuron_port.simulator.linting.catalogue import RULES
from neuron_port.simulator.linting.renames import DEPRECATED, REMOVED, REMOVED_PARAMETERS
from neuron_port.simulator.linting.signatures import ENUM_MEMBERS, ENUM_PARAMETERS
from neuron_port.simulator.nki import isa, language
from neuron_port.simulator.target import KIB, Target, find_target
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.task import KernelTask

MAXIMUM_CHARACTERS = 24_000
NKI_VERSION = "0.6"

# What nearly every kernel needs, whatever it computes.
BASICS = (
    "dma_copy", "memset", "tensor_copy", "tensor_tensor", "tensor_scalar", "scalar_tensor_tensor", "activation",
    "tensor_reduce", "reciprocal",
)  # fmt: skip
LANGUAGE_BASICS = ("ndarray", "shared_identity_matrix", "ds")
VIEWS = (
    "reshape", "permute", "expand_dim", "broadcast", "squeeze_dim", "reshape_dim", "flatten_dims", "slice", "ap", "view",
)  # fmt: skip
# Recipes, of which the first that may be shown serves as the worked kernel; then functions that show a product.
WORKED_KERNELS = ("residual_add", "embedding", "rms_norm")
PRODUCT_FUNCTIONS = (
    ("linear", "transpose_chunks"),
    ("linear", "accumulate"),
    ("gated_mlp", "transpose_chunks"),
    ("gated_mlp", "accumulate"),
)


@dataclass(frozen=True, kw_only=True)
class Primitive:
    """One kind of computation: how GPU code spells it (whole words), and the instructions that carry it out."""

    spellings: tuple[str, ...]
    instructions: tuple[str, ...]
    advice: str = ""


# In the order of their weight in a slice: when a slice grows too long, instructions of the last go first.
PRIMITIVES: Mapping[str, Primitive] = {
    "product": Primitive(
        spellings=(
            "@", "matmul", "mm", "bmm", "addmm", "baddbmm", "linear", "einsum", "dot", "scaled_dot_product_attention",
            "outer", "bilinear", "wmma", "mma_sync", "cublas", "gemm", "Linear",
        ),
        instructions=("nc_matmul", "nc_transpose", "dma_transpose"),
    ),
    "convolution": Primitive(
        spellings=("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "unfold", "Conv1d", "Conv2d"),
        instructions=("nc_matmul", "nc_transpose"),
        advice="A convolution is a sum of products, one for each tap: shifted views of the input as `moving`, the "
        "weights of the tap as `stationary`, all accumulated into one PSUM tile.",
    ),
    "softmax": Primitive(
        spellings=(
            "softmax", "log_softmax", "logsumexp", "scaled_dot_product_attention", "online_softmax", "cross_entropy",
        ),
        instructions=("tensor_reduce", "activation", "activation_reduce", "reciprocal"),
        advice="Softmax of rows: maximum by `nisa.tensor_reduce`, its negative as `bias` of `nisa.activation` with "
        "`nl.exp`, which also sums (`reduce_op=nl.add`), then `nisa.reciprocal` and a product.",
    ),
    "statistics": Primitive(
        spellings=(
            "layer_norm", "LayerNorm", "group_norm", "GroupNorm", "batch_norm", "instance_norm", "rms_norm", "RMSNorm",
            "var", "std", "var_mean", "normalize", "norm",
        ),
        instructions=("activation_reduce", "bn_stats", "bn_aggr", "tensor_reduce"),
        advice="Mean and variance of rows: `nisa.bn_stats` and `nisa.bn_aggr`, or sums by `nisa.activation_reduce`; "
        "subtract the mean before squaring, the difference of two large sums loses precision.",
    ),
    "reduction": Primitive(
        spellings=(
            "sum", "mean", "max", "min", "amax", "amin", "prod", "reduce", "__shfl_down_sync", "__shfl_xor_sync",
            "atomicAdd",
        ),
        instructions=("tensor_reduce", "activation_reduce", "tensor_scalar_reduce"),
    ),
    "transpose": Primitive(
        spellings=("transpose", "permute", "swapaxes", "movedim", "trans", "t", "T", "mT"),
        instructions=("nc_transpose", "dma_transpose"),
    ),
    "gather": Primitive(
        spellings=("embedding", "Embedding", "gather", "index_select", "take", "take_along_dim", "index"),
        instructions=("nc_n_gather", "local_gather"),
        advice="Rows by index: `nisa.dma_copy` from `table.ap(pattern=..., vector_offset=index_tile, indirect_dim=0)`.",
    ),
    "scatter": Primitive(
        spellings=("scatter", "scatter_add", "scatter_add_", "index_add", "index_add_", "index_put_", "index_copy_"),
        instructions=("dma_compute",),
        advice="Rows to indices: `nisa.dma_copy` into a view with `vector_offset`; `nisa.dma_compute` adds.",
    ),
    "mask": Primitive(
        spellings=("where", "masked_fill", "masked_fill_", "tril", "triu", "is_causal", "causal", "clamp", "clip"),
        instructions=("affine_select", "tensor_copy_predicated", "select_reduce", "range_select"),
        advice="Causal masks: `nisa.affine_select` keeps where `offset + channel_multiplier * partition + step * "
        "index` compares with 0.",
    ),
    "index": Primitive(
        spellings=("arange", "linspace", "iota", "rope", "positions"),
        instructions=("iota",),
    ),
    "search": Primitive(
        spellings=("argmax", "argmin", "topk", "sort", "argsort", "kthvalue", "multinomial"),
        instructions=("max8", "nc_find_index8", "nc_match_replace8", "topk"),
    ),
    "scan": Primitive(
        spellings=("cumsum", "cumprod", "cummax", "associative_scan", "cumulative_sum", "logcumsumexp", "scan", "ssm"),
        instructions=("tensor_tensor_scan", "tensor_scalar_cumulative"),
        advice="`nisa.tensor_tensor_scan` computes h[i] = (h[i-1] op0 data0[i]) op1 data1[i] along the free axis.",
    ),
    "shuffle": Primitive(
        spellings=("roll", "flip", "pixel_shuffle", "rotate_half", "interleave"),
        instructions=("nc_stream_shuffle",),
    ),
    "sequence": Primitive(
        spellings=("nonzero", "segment_ids", "cu_seqlens"),
        instructions=("nonzero_with_count", "sequence_bounds"),
    ),
    "random": Primitive(
        spellings=("dropout", "Dropout", "rand", "randn", "rand_like", "bernoulli"),
        instructions=("dropout", "rng", "set_rng_seed"),
    ),
    "quantised": Primitive(
        spellings=("float8_e4m3fn", "float8_e5m2", "float8", "fp8", "mxfp8", "mxfp4", "quantize", "_scaled_mm"),
        instructions=("nc_matmul_mx", "quantize_mx"),
    ),
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|(?<=[\w)\]] )@(?= [\w(])")


# ---- which instructions ----------------------------------------------------------------------------------


def primitives_of(task: KernelTask) -> tuple[str, ...]:
    """Names of PRIMITIVES that the task's reference and sources spell, in the table's order."""
    return primitives_in("\n".join([task.reference_text, *(source.text for source in task.sources)]))


def primitives_in(text: str) -> tuple[str, ...]:
    """Names of PRIMITIVES that the code spells as whole words, in the table's order.

    Words, not a parse: sources are Triton, CUDA and PyTorch, and an instruction too many costs a few lines.
    """
    words = set(_WORD.findall(text))
    return tuple(name for name, primitive in PRIMITIVES.items() if words & set(primitive.spellings))


def instructions_for(primitives: Iterable[str], target: str | Target) -> tuple[str, ...]:
    """Instructions of `nki.isa` for these primitives, basics first, without what the target does not have.

    Raises:
        PromptError: a primitive that is not in the table.
    """
    names = list(BASICS)
    for primitive in primitives:
        if primitive not in PRIMITIVES:
            raise PromptError(f"Unknown primitive: `{primitive}`", hint=f"Known: {', '.join(PRIMITIVES)}")
    for primitive, entry in PRIMITIVES.items():
        if primitive in set(primitives):
            names += entry.instructions
    generation = find_target(target).generation
    return tuple(name for name in dict.fromkeys(names) if available(name, generation))


def available(instruction: str, generation: int) -> bool:
    """Whether NeuronCores of that generation have the instruction."""
    return (_least_generation(instruction) or 2) <= generation


@cache
def _least_generation(instruction: str) -> int | None:
    return least_generation(inspect.unwrap(getattr(isa, instruction)))


# ---- one name --------------------------------------------------------------------------------------------


def instruction_entry(name: str) -> str:
    """Signature and docstring of an instruction, `nisa.tensor_copy(dst: NkiTensor, ...)`.

    Raises:
        PromptError: `nki.isa` has no such instruction.
    """
    if not is_instruction(name):
        raise PromptError(f"nki.isa has no instruction: `{name}`")
    return _entry(f"nisa.{name}", getattr(isa, name))


def is_instruction(name: str) -> bool:
    """Whether `nki.isa` has an instruction of that name."""
    return name in isa.__all__ and inspect.isfunction(getattr(isa, name))


def language_entry(name: str) -> str:
    """Signature and docstring of a function of `nki.language`."""
    if name not in language.__all__ or not inspect.isfunction(getattr(language, name)):
        raise PromptError(f"nki.language has no function: `{name}`")
    return _entry(f"nl.{name}", getattr(language, name))


def _entry(shown: str, function: Any, *, brief: bool = False) -> str:
    documentation = inspect.getdoc(function) or ""
    lines = documentation.splitlines()[:1] if brief else documentation.splitlines()
    return "\n".join([f"{shown}({signature_text(function)})", *(f"    {line}".rstrip() for line in lines)])


def signature_text(function: Any) -> str:
    """Parameters as a person writes them: no `self`, no `name` (all instructions take it), tiles without annotation."""
    return ", ".join(
        _parameter_text(parameter)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("self", "name")
    )


def _parameter_text(parameter: inspect.Parameter) -> str:
    text = parameter.name
    kind = str(parameter.annotation)
    if parameter.annotation is not parameter.empty and kind not in ("NkiTensor", "Any", parameter.name):
        text += f": {kind}"
    if parameter.default is not parameter.empty:
        text += (
            f" = {_default_text(parameter.default)}"
            if ":" in text
            else f"={_default_text(parameter.default)}"
        )
    return text


def _default_text(value: Any) -> str:
    """Enum members by the name under which a kernel finds them."""
    kind = type(value).__name__
    if hasattr(isa, kind) and hasattr(value, "name"):
        return f"nisa.{kind}.{value.name}"
    if kind == "MemoryRegion":
        return f"nl.{value.name}"
    return repr(value)


# ---- the slice -------------------------------------------------------------------------------------------


def dialect_slice(
    wanted: Iterable[str] | Plan,
    target: str | Target,
    *,
    without: Iterable[str] = (),
    maximum_characters: int = MAXIMUM_CHARACTERS,
) -> str:
    """What the language model must know of NKI for these primitives, or for the instructions that a plan names.

    `without` names recipes whose code may not be shown, because the task is one of them. A slice over
    `maximum_characters` leaves out whole instructions, the least basic first, and names them.

    Raises:
        PromptError: an unknown primitive, or not even the basics fit.
    """
    machine = find_target(target)
    planned = wanted.instructions if isinstance(wanted, Plan) else ()
    primitives = () if isinstance(wanted, Plan) else tuple(wanted)
    known = [name for name in planned if is_instruction(name) and available(name, machine.generation)]
    names = list(dict.fromkeys([*instructions_for(primitives, machine), *known]))
    hidden = frozenset(without)
    left_out: list[str] = []
    while True:
        text = "\n\n".join(slice_sections(names, primitives, machine, hidden, left_out).values())
        if len(text) <= maximum_characters:
            return text + "\n"
        if len(names) == len(BASICS):
            raise PromptError(
                f"The basics of NKI take {len(text)} characters, at most {maximum_characters} may be used"
            )
        left_out.insert(0, names.pop())


def slice_sections(
    instructions: Iterable[str],
    primitives: Iterable[str],
    target: Target,
    without: frozenset[str] = frozenset(),
    left_out: Iterable[str] = (),
) -> dict[str, str]:
    """The parts of a slice by name, in order; every section but "renames" speaks of names that exist."""
    names = list(instructions)
    sections = {
        "patterns": _patterns(target),
        "limits": _limits(target),
        "kernels": _kernels("nc_matmul" in names, without),
        "instructions": _instructions(names, left_out),
        "advice": _advice(primitives),
        "language": _language(target),
        "rules": _rules(),
        "renames": _renames(names),
    }
    return {name: text for name, text in sections.items() if text}


def _patterns(target: Target) -> str:
    return render(
        "patterns",
        nki_version=NKI_VERSION,
        partitions=target.partitions,
        sbuf_kib=target.sbuf_usable_bytes_per_partition // KIB,
        psum_banks=target.psum_banks,
        psum_bank_bytes=target.psum_bank_bytes,
        stationary_free=target.stationary_free_max,
        moving_free=target.moving_free_max,
        generation=target.generation,
    ).strip()


def _limits(target: Target) -> str:
    bank_values = target.psum_bank_bytes // 4
    rows = [
        f"partitions of SBUF and PSUM: {target.partitions}",
        f"SBUF: {target.sbuf_usable_bytes_per_partition} usable bytes per partition, all live tiles together",
        f"PSUM: {target.psum_banks} banks of {target.psum_bank_bytes} bytes ({bank_values} float32) per partition",
        f"nc_matmul: contraction {target.partitions}, stationary free {target.stationary_free_max}, "
        f"moving free {target.moving_free_max}",
        f"bfloat16 accumulation in PSUM: {'yes' if target.bf16_accumulation else 'no, float32 only'}",
        f"cores that one kernel may span: {', '.join(map(str, target.logical_core_sizes))}",
    ]
    return "\n".join([f"# Limits of NeuronCore-v{target.generation}", "", *(f"* {row}" for row in rows)])


def _kernels(product: bool, without: frozenset[str]) -> str:
    """A whole small kernel of ours, and with products the two functions that make one."""
    shown: list[RecipeCode] = []
    functions = recipe_functions(without)
    for recipe in WORKED_KERNELS:
        whole = [code for code in functions if code.recipe == recipe and code.function == ""]
        if whole:
            shown.append(whole[0])
            break
    if product:
        by_name = {
            code.function: code
            for code in reversed(functions)
            if (code.recipe, code.function) in PRODUCT_FUNCTIONS
        }
        shown += [by_name[name] for name in sorted(by_name, reverse=True)]
    if not shown:
        return ""
    parts = ["# Verified code"]
    for code in shown:
        what = f"The kernel `{code.recipe}`" if code.function == "" else f"From the kernel `{code.recipe}`"
        text = "\n".join(filter(None, [code.constants, code.text.strip()]))
        parts.append(f"{what}:\n\n```python\n{text}\n```")
    return "\n\n".join(parts)


def _instructions(names: list[str], left_out: Iterable[str]) -> str:
    """Signatures with docstrings, then the enums that they take."""
    entries = "\n".join(_entry(f"nisa.{name}", getattr(isa, name)) for name in names)
    parameters = {key for name in names for key in inspect.signature(getattr(isa, name)).parameters}
    enums = [
        f"* `{enum}`: {', '.join(ENUM_MEMBERS[parameter])}"
        for parameter, enum in ENUM_PARAMETERS.items()
        if parameter in parameters
    ]
    missing = ", ".join(f"`nisa.{name}`" for name in left_out)
    text = (
        "# Instructions\n\nA parameter without annotation is a tile. Every instruction also takes `name`.\n\n"
        f"```python\n{entries}\n```\n\n" + "\n".join(enums)
    )
    return f"{text}\n\nThere are also, not described here: {missing}." if missing else text


def _advice(primitives: Iterable[str]) -> str:
    """The table's sentences about these primitives."""
    chosen = [entry.advice for name, entry in PRIMITIVES.items() if name in set(primitives) and entry.advice]
    return "\n".join(["# Advice", "", *(f"* {advice}" for advice in chosen)]) if chosen else ""


def _language(target: Target) -> str:
    """Allocation, views, dtypes and operators, as the simulator has them."""
    functions = "\n".join(
        _entry(f"nl.{name}", getattr(language, name), brief=True) for name in LANGUAGE_BASICS
    )
    views = "\n".join(_entry(f"t.{name}", getattr(NkiTensor, name), brief=True) for name in VIEWS)
    operators = [op for name, op in OPERATORS.items() if name not in (*TOKENS_ONLY, *COMPILE_NOT)]
    alu = [op for op in operators if op.alu is not None and op.since <= target.generation]
    lines = [
        "# Names of nki.language, and views of a tensor t",
        f"```python\n{functions}\n{views}\n```",
        f"* dtypes: {', '.join(f'`nl.{name}`' for name in _dtypes(target))}",
        f"* operators of `tensor_tensor`, `tensor_scalar` (two inputs): {_tokens(op for op in alu if not op.unary)}",
        f"* of `tensor_scalar` with one input: {_tokens(op for op in alu if op.unary)}",
        f"* that reduce: {_tokens(op for op in alu if op.reduce is not None)}",
        f"* functions of `activation`: {_tokens(op for op in operators if op.activation is not None)}",
        "* `nl.tile_size.pmax`, `nl.tile_size.psum_bank_fmax`, `nl.tile_size.gemm_moving_fmax`: sizes of the machine",
    ]
    return "\n".join([lines[0], "", lines[1], "", *lines[2:]])


def _dtypes(target: Target) -> list[str]:
    names = [name for name in vars(language) if isinstance(getattr(language, name), language.DType)]
    return [name for name in names if target.generation >= 4 or not name.endswith("_x4")]


def _tokens(operators: Iterable[Operator]) -> str:
    return ", ".join(f"`nl.{op.name}`" for op in operators)


def _rules() -> str:
    """What the lint refuses, in its own words."""
    kinds = {
        "error": "refused by the compiler",
        "hardware": "fails on the device",
        "warning": "to be avoided",
    }
    lines = ["# What the checker reports"]
    for severity, meaning in kinds.items():
        listed = [f"{rule.title} ({rule.id})" for rule in RULES.values() if rule.severity == severity]
        lines.append(f"\n{meaning.capitalize()}: " + "; ".join(listed) + ".")
    return "\n".join(lines)


def _renames(names: Iterable[str]) -> str:
    """Names of earlier versions that models remember, and what 0.6 has instead."""
    short = {"nki.isa.": "nisa.", "nki.language.": "nl."}
    rows = [(name, cure) for name, (_, cure) in REMOVED.items()]
    rows += [
        (f"{'any instruction' if function == '*' else f'nisa.{function}'} with {parameter}=", cure)
        for (function, parameter), (_, cure) in REMOVED_PARAMETERS.items()
        if function == "*" or function in set(names)
    ]
    rows += list(DEPRECATED.items())
    lines = ["# Earlier versions of NKI had, and 0.6 writes instead", ""]
    for old, new in rows:
        for long, prefix in short.items():
            old = old.replace(long, prefix)
        lines.append(f"* {old}: {new}")
    return "\n".join(lines)
