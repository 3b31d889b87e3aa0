"""What an exported program takes, in a graph's terms: which placeholders become parameters, of which type.

Static shapes and 32-bit integers are decided here, at the boundary, once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec

from neuron_port.errors import LoweringError
from neuron_port.lower.builder import LITERAL_LIMIT_BYTES
from neuron_port.lower.module import Shape
from neuron_port.types import TensorSpec

# 64-bit numbers are 32-bit from the boundary on: a NeuronCore has no others (neuronx-cc --native-int64, NCC_ESPP004).
# What float64 was for in a model (tables of angles, sums) is then as exact as float32; parity with torch tells.
NARROWED = {"int64": "int32", "float64": "float32"}
DTYPES = {
    torch.float64: "float32",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int64: "int32",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
}


@dataclass(frozen=True, kw_only=True)
class ProgramInput:
    """A placeholder that becomes a parameter of the graph.

    `target` is the parameter's or buffer's path in the model, `tied` the other paths of the same tensor
    (torch.export reads a tied weight through the last of its names).
    """

    placeholder: str
    kind: str  # "parameter", "buffer", "constant" or "input"
    target: str | None
    spec: TensorSpec
    tied: tuple[str, ...] = ()


def program_inputs(
    program: ExportedProgram, *, unread: bool = False, stored: Collection[str] = ()
) -> tuple[ProgramInput, ...]:
    """The placeholders of `program` that become parameters, in order: one GraphInput is wanted for each.

    Not among them: buffers and constants of at most 1 KiB that the graph does not write (they become
    literals, but for those that a checkpoint stores: `stored` has their targets), weights that nothing reads (the
    second name of a tied weight; kept with `unread`), and arguments that are not tensors.
    """
    found = []
    names: dict[int, list[str]] = {}
    for name, tensor in program.state_dict.items():
        names.setdefault(id(tensor), []).append(name)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for item in program.graph_signature.input_specs:
        if isinstance(item.arg, ConstantArgument):
            continue
        if item.kind not in _KINDS:
            raise LoweringError(
                f"Argument `{item.arg.name}` is a {item.kind.name.lower()}, which a graph cannot take",
                hint="Remove side effects and custom objects from the model before exporting it.",
            )
        shape = shape_of(nodes[item.arg.name])
        read = bool(nodes[item.arg.name].users) or item.kind == InputKind.USER_INPUT
        literal = item.target not in stored and _is_literal(program, item, nodes[item.arg.name])
        if shape is None or not (read or unread) or literal:
            continue
        same = names.get(id(program.state_dict.get(item.target or "")), [])
        found.append(
            ProgramInput(
                placeholder=item.arg.name,
                kind=_KINDS[item.kind],
                target=item.target,
                spec=shape.spec,
                tied=tuple(name for name in same if name != item.target),
            )
        )
    return tuple(found)


_KINDS = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "input",
}


def shape_of(node: torch.fx.Node) -> Shape | None:
    """The static shape of what a node returns; None when that is no tensor."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return Shape("tuple", (), tuple(_tensor_shape(node, item) for item in value))
    return _tensor_shape(node, value) if isinstance(value, torch.Tensor) else None


def array_of(node: torch.fx.Node) -> Shape:
    shape = shape_of(node)
    assert shape is not None, node
    return shape


def _tensor_shape(node: torch.fx.Node, tensor: torch.Tensor) -> Shape:
    if tensor.dtype not in DTYPES:
        cure = "Use float32" if tensor.dtype.is_floating_point else "Split it into real and imaginary parts"
        raise node_error(node, f"`{node.name}` is {tensor.dtype}, which a NeuronCore lacks", hint=f"{cure}.")
    sizes = tuple(_known_size(size) for size in tensor.shape)
    if any(size is None for size in sizes):
        raise node_error(
            node,
            f"`{node.name}` has a dynamic shape {tuple(tensor.shape)}",
            hint="Export without dynamic_shapes: one graph for each bucket of lengths.",
        )
    return Shape(DTYPES[tensor.dtype], tuple(size for size in sizes if size is not None))


def _known_size(size: int | torch.SymInt) -> int | None:
    """The number behind a size: one that depended on data may have been found equal to a static one."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def _is_literal(program: ExportedProgram, item: InputSpec, node: torch.fx.Node) -> bool:
    if item.kind not in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        return False
    written = item.target in program.graph_signature.buffers_to_mutate.values()
    tensor = node.meta["val"]
    return not written and tensor.numel() * tensor.element_size() <= LITERAL_LIMIT_BYTES


def tensor_of(program: ExportedProgram, item: InputSpec) -> torch.Tensor:
    """The real values of a small buffer or constant."""
    target = item.target or item.arg.name
    tensor = program.constants.get(target, program.state_dict.get(target))
    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.is_meta
        or type(tensor) not in (torch.Tensor, torch.nn.Parameter)
    ):
        raise LoweringError(
            f"Buffer `{target}` has no values (it is {type(tensor).__name__} on the meta device)",
            hint=f"Put its real values into program.constants[{target!r}] before lowering.",
        )
    return tensor.detach()


def check_spec(role: str, name: str, given: TensorSpec, shape: Shape) -> None:
    dtype = NARROWED.get(given.dtype, given.dtype)
    if (tuple(given.shape), dtype) != (shape.dimensions, shape.dtype):
        raise LoweringError(
            f"Graph {role} `{name}` is declared {given}, the program has {shape}",
            hint="The GraphSpec and the exported program must come from the same example inputs.",
        )


def unique(role: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen or not name or "," in name:
            problem = "twice" if name in seen else "but names are not empty and hold no comma"
            raise LoweringError(
                f"Graph {role} `{name}` is named {problem}", hint="Give every tensor a name of its own."
            )
        seen.add(name)


def node_error(node: torch.fx.Node, message: str, *, hint: str | None = None) -> LoweringError:
    """`message` with the place in the model where the operator was called."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, module = stack[-1] if stack else ("", None)
    place = ""
    if stack:
        class_name = module if isinstance(module, str) else getattr(module, "__name__", str(module))
        place = f" in module `{path or 'the model itself'}` ({class_name.rsplit('.', 1)[-1]})"
    cure = "Rewrite that module with operators that have one, or add a lowering in neuron_port/lower/ops."
    return LoweringError(message + place, hint=hint or cure)
