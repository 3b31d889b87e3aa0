"""The part of NKI that one task needs, in words: generated from the simulator, so that the two cannot drift apart.

Signatures, docstrings, limits, rules and renames are read from the simulator when the slice is made, the kernels in it
from the recipes' files. What people write of it is the table in `primitives.py` and the text in `prompts/patterns.md`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from neuron_port.drafting.prompts.entries import entry, instruction_entry, is_instruction, language_entry
from neuron_port.drafting.prompts.exemplars import RecipeCode, recipe_functions
from neuron_port.drafting.prompts.primitives import (
    BASICS,
    PRIMITIVES,
    available,
    instructions_for,
    primitives_in,
    primitives_of,
)
from neuron_port.drafting.prompts.prompting import PromptError, render
from neuron_port.drafting.replies.planning import Plan
from neuron_port.simulator.instructions.operators import COMPILE_NOT, OPERATORS, TOKENS_ONLY, Operator
from neuron_port.simulator.linting.catalogue import RULES
from neuron_port.simulator.linting.renames import DEPRECATED, REMOVED, REMOVED_PARAMETERS
from neuron_port.simulator.linting.signatures import ENUM_MEMBERS, ENUM_PARAMETERS
from neuron_port.simulator.nki import isa, language
from neuron_port.simulator.target import KIB, Target, find_target
from neuron_port.simulator.tensor import NkiTensor

__all__ = [
    "BASICS", "MAXIMUM_CHARACTERS", "NKI_VERSION", "PRIMITIVES", "dialect_slice", "instruction_entry",
    "instructions_for", "is_instruction", "language_entry", "primitives_in", "primitives_of", "slice_sections",
]  # fmt: skip

MAXIMUM_CHARACTERS = 24_000
NKI_VERSION = "0.6"
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
    entries = "\n".join(entry(f"nisa.{name}", getattr(isa, name)) for name in names)
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
        entry(f"nl.{name}", getattr(language, name), brief=True) for name in LANGUAGE_BASICS
    )
    views = "\n".join(entry(f"t.{name}", getattr(NkiTensor, name), brief=True) for name in VIEWS)
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
