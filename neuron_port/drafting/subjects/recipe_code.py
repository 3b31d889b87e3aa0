"""Prints the `recipe.py` of a draft: how its kernel is bound to a layer, called, and tried. Never the model's words.

A draft is bound by structure alone: the operation, the names and shapes of the module's parameters, its own numbers,
and the shapes of its inputs. The numeric probe of the matcher has the last word, as for every recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuron_port.drafting.subjects.calling import Calling, Results, Weight, parameter_names
from neuron_port.drafting.subjects.code_layout import call_lines
from neuron_port.drafting.subjects.recipe_pieces import (
    Problem,
    flops_code,
    inputs_code,
    python,
    recipe_lines,
    text,
)


def layer_recipe_text(
    problem: Problem,
    calling: Calling,
    *,
    name: str,
    summary: str,
    page: str,
    attributes: Mapping[str, Any],
    used: frozenset[str],
) -> str:
    """The whole `recipe.py` of a draft that serves a layer.

    Args:
        page: the module's docstring.
        attributes: the layer's own numbers, which must be the same again.
        used: names of the kernel's arguments; tensors that the result does not depend on are left out.
    """
    is_module = calling.call.operation == "module"
    weights = [item for item in calling.weights if item.role in used]
    lines = [f'"""{page}\n"""', "", "from __future__ import annotations", ""]
    if calling.rows or problem.free:
        lines += ["import math", "from typing import Any", ""]
    else:
        lines += ["from typing import Any", ""]
    interface = ["Binding", "Case", "Recipe", *(["Size"] if problem.free else [])]
    interface += ["Tolerance"] if problem.reduction_length else []
    lines.append(f"from neuron_port.recipe import {', '.join(interface)}")
    if weights:
        lines.append("from neuron_port.types import WeightSource")
    lines.append("")
    if is_module:
        shapes = {name: tuple(value.shape) for name, value in calling.module.named_parameters()}  # type: ignore[union-attr]
        lines += _constant("PARAMETERS", shapes, "of the module, by name")
    lines += _constant("ATTRIBUTES", dict(attributes), "numbers and words of the layer's own")
    lines += _constant("ARGUMENTS", dict(calling.plain), "of the call, those that are no tensors")
    lines += _constant("INPUTS", _patterns(calling), "the call's tensors; None: counts tokens")
    for size in problem.free.values():
        multiple = f", multiple={size.multiple}" if size.multiple != 1 else ""
        lines.append(f"TOKENS = Size(least={size.least}, most={size.most}{multiple})")
    lines += ["", "", *_bind_code(calling, weights), "", "", *_fits_code(bool(problem.free))]
    lines += ["", "", *_forward_code(problem, calling, used), "", "", *inputs_code(problem)]
    lines += ["", "", *flops_code(problem), "", ""]
    axes = [
        None if calling.call.operation == "attention_decode" else item.token_axis for item in calling.tensors
    ]
    lines += recipe_lines(
        problem, name=name, summary=summary, operation=calling.call.operation, sequence_axes=axes
    )
    return "\n".join(lines) + "\n"


def _constant(name: str, value: Any, comment: str) -> list[str]:
    items = (
        [f"{text(key) if isinstance(key, str) else key}: {python(item)}" for key, item in value.items()]
        if isinstance(value, dict)
        else [python(item) for item in value]
    )
    opening, closing = ("{", "}") if isinstance(value, dict) else ("(", ",)" if len(items) == 1 else ")")
    together = f"{name} = {opening}{', '.join(items)}{closing}  # {comment}"
    if len(together) <= 110:
        return [together]
    return [f"{name} = {opening}  # {comment}", *(f"    {item}," for item in items), closing[-1]]


def _patterns(calling: Calling) -> tuple[tuple[str, tuple[int | None, ...]], ...]:
    """("float", (None, None, 48)): what each tensor of the call must look like."""
    patterns = []
    for item in calling.tensors:
        shape: list[int | None] = list(item.shape)
        for axis in range(calling.rows):
            shape[axis] = None
        if not calling.rows and item.token_axis is not None:
            shape[item.token_axis] = None
        patterns.append(("float" if item.is_float else "int", tuple(shape)))
    return tuple(patterns)


def _bind_code(calling: Calling, weights: Sequence[Weight]) -> list[str]:
    operation = calling.call.operation
    lines = [
        "def bind(call: Any) -> Binding | None:",
        '    """Accept a call of this structure; whether it computes the same is for the numeric probe."""',
    ]
    if operation == "module":
        lines += [
            "    module = call.module",
            '    if call.operation != "module" or module is None:',
            "        return None",
            "    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}",
            "    if shapes != PARAMETERS or dict(call.attributes) != ATTRIBUTES or not _fits(call):",
            "        return None",
        ]
    else:
        lines += [
            f"    if call.operation != {text(operation)} or dict(call.attributes) != ATTRIBUTES or not _fits(call):",
            "        return None",
        ]
    if not weights:
        return [*lines, "    return Binding()"]
    items = []
    for item in weights:
        turned = ', transform="transpose"' if item.source.transform == "transpose" else ""
        items.append(f"{text(item.role)}: WeightSource(name={text(item.source.name)}{turned})")
    together = f"    return Binding(weights={{{', '.join(items)}}})"
    if len(together) <= 110:
        return [*lines, together]
    return [
        *lines,
        "    return Binding(",
        "        weights={",
        *(f"            {item}," for item in items),
        "        }",
        "    )",
    ]


def _fits_code(is_free: bool) -> list[str]:
    lines = [
        "def _fits(call: Any) -> bool:",
        '    """Whether the call has these tensors, for a number of tokens that the kernel was tried on."""',
        "    given = {**dict(enumerate(call.args)), **call.kwargs}",
        "    plain = {place: value for place, value in given.items() if isinstance(value, bool | int | float | str)}",
        "    if plain != ARGUMENTS or len(call.inputs) != len(INPUTS):",
        "        return False",
    ]
    if is_free:
        lines.append("    tokens = set()")
    lines += [
        "    for spec, (kind, shape) in zip(call.inputs, INPUTS, strict=True):",
        "        if kind not in spec.dtype or len(spec.shape) != len(shape):",
        "            return False",
        "        if any(fixed not in (None, size) for size, fixed in zip(spec.shape, shape, strict=True)):",
        "            return False",
    ]
    if not is_free:
        return [*lines, "    return True"]
    return [
        *lines,
        "        free = [size for size, fixed in zip(spec.shape, shape, strict=True) if fixed is None]",
        "        tokens |= {math.prod(free)} if free else set()",
        "    return len(tokens) == 1 and tokens.pop() in TOKENS",
    ]


def _forward_code(problem: Problem, calling: Calling, used: frozenset[str]) -> list[str]:
    header = ["operator: Any", "weights: Any", "attributes: Any", *_forward_parameters(calling)]
    lines = call_lines("def forward(", header, ") -> Any:")
    rows, first = calling.rows, calling.tensors[0]
    lines.append(
        f'    """Call the operator as the layer is called{", its rows flattened" if rows else ""}."""'
    )
    passed = []
    for item in calling.tensors:
        if item.name not in used:
            continue
        value = item.parameter
        if rows:
            width = ", ".join(map(str, item.shape[rows:]))
            value += f".reshape(-1{', ' if width else ''}{width})"
        passed.append(value if item.is_float else f"{value}.int()")
    passed += [f'weights["{item.role}"]' for item in calling.weights if item.role in used]
    names = (
        ["result"]
        if len(problem.result_shapes) == 1
        else [f"result_{number}" for number in range(len(problem.result_shapes))]
    )
    if rows:
        lines.append(
            f"    rows = {first.parameter}.shape[:{rows}]"
            if rows < len(first.shape)
            else f"    rows = {first.parameter}.shape"
        )
    lines += [f"    {line}" for line in call_lines(f"{', '.join(names)} = operator(", passed, ")", indent=4)]
    made = []
    for name, shape in zip(names, problem.result_shapes, strict=True):
        width = "".join(f", {size}" for size in shape[1:])
        made.append(f"{name}.reshape(*rows{width})" if rows else name)
    returned = _returned(calling.results, made)
    if len(made) == 1 and calling.results.container == "tensor" and not rows:
        last = lines[-1]
        if last.startswith("    result = "):
            lines[-1] = last.replace("result = ", "return ", 1)
            return lines
    return [*lines, f"    return {returned}"]


def _forward_parameters(calling: Calling) -> list[str]:
    """The layer's own parameters, as far as the call gives them; what is no tensor is accepted and not looked at."""
    call = calling.call
    places = {item.place for item in calling.tensors}
    last = max((place for place in places if isinstance(place, int)), default=-1)
    names = parameter_names(call)[: len(call.args)]
    parts = [f"{name}: Any" if place <= last else f"{name}: Any = None" for place, name in enumerate(names)]
    named = [item for item in calling.tensors if isinstance(item.place, str)]
    if len(parts) > last + 1 and named:
        parts.append("*")
    parts += [f"{item.parameter}: Any" for item in named]
    return [*parts, "**options: Any"] if any(name not in places for name in call.kwargs) else parts


def _returned(results: Results, made: Sequence[str]) -> str:
    if results.container == "tensor":
        return made[0]
    items = ["None" if slot is None else made[slot] for slot in results.slots]
    inside = ", ".join(items)
    if results.container == "list":
        return f"[{inside}]"
    return f"({inside},)" if len(items) == 1 else inside
