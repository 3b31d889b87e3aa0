"""torch.export program + interface -> the HloModuleProto bytes that neuronx-cc compiles and XLA-CPU executes.

One pass over the graph: placeholders become parameters, constants or nothing; each operator is lowered by the function
registered for it; `neuron_port` operators with a kernel become custom calls that XLA refuses to run as they stand.
The bytes hold no metadata, no 64-bit type and no id beyond 32 bits, and are equal in every process.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind

from neuron_port.errors import LoweringError
from neuron_port.lower import ops
from neuron_port.lower.builder import LITERAL_LIMIT_BYTES, Builder, Value
from neuron_port.lower.decomposition import NAMESPACE, decompose, is_decomposed
from neuron_port.lower.module import Alias, Computation, Instruction, Module, Shape
from neuron_port.lower.registry import IGNORED_KEYWORDS, LOWERINGS
from neuron_port.lower.schema import API_VERSION_STATUS_RETURNING
from neuron_port.types import GraphInput, GraphSpec, TensorSpec, to_json

assert ops  # importing it registers the lowerings

# 64-bit integers are 32-bit from the boundary on: a NeuronCore has no others (neuronx-cc --native-int64).
DTYPES = {
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
_NO_VALUE = frozenset(
    {
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten._assert_async.msg,
        torch.ops.aten.sym_constrain_range_for_size.default,
    }
)


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """A verified kernel that stands in for a custom operator: its entry point and the digest of its source."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ProgramInput:
    """A placeholder that becomes a parameter of the graph.

    `target` is the parameter's or buffer's path in the model, `tied` the other paths of the same tensor (torch.export
    reads a tied weight through the last of its names).
    """

    placeholder: str
    kind: str  # "parameter", "buffer", "constant" or "input"
    target: str | None
    spec: TensorSpec
    tied: tuple[str, ...] = ()


def program_inputs(program: ExportedProgram) -> tuple[ProgramInput, ...]:
    """The placeholders of `program` that become parameters, in order: one GraphInput is wanted for each.

    Not among them: buffers and constants of at most 1 KiB that the graph does not write (they become literals), weights
    that nothing reads (the second name of a tied weight), and arguments that are not tensors. Ask for the inputs of the
    decomposed program: decomposition removes dead code.
    """
    found = []
    names: dict[int, list[str]] = {}
    for name, tensor in program.state_dict.items():
        names.setdefault(id(tensor), []).append(name)
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for item in program.graph_signature.input_specs:
        if isinstance(item.arg, ConstantArgument):
            continue
        shape = _shape_of(nodes[item.arg.name])
        unused = item.kind != InputKind.USER_INPUT and not nodes[item.arg.name].users
        if shape is None or unused or _is_literal(program, item, shape):
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


def emit(program: ExportedProgram, spec: GraphSpec, *, kernels: Mapping[str, KernelCall]) -> bytes:
    """Serialized HloModuleProto of `program`, with the names, order and aliases of `spec`.

    Args:
        program: as torch.export gave it, or through `decompose` / `inline_references`.
        spec: one input for each of `program_inputs(program)` and one output for each result, in order.
        kernels: custom operator name (without namespace) -> the kernel that its custom call names.
    Raises: LoweringError for an operator without lowering, an interface that does not fit, a literal that is too large.
    """
    return emit_module(program, spec, kernels=kernels).to_bytes()


def emit_module(program: ExportedProgram, spec: GraphSpec, *, kernels: Mapping[str, KernelCall]) -> Module:
    """As `emit`, before serialisation."""
    if not is_decomposed(program):
        program = decompose(program)
    emitter = _Emitter(program, spec, kernels)
    emitter.placeholders()
    for node in program.graph.nodes:
        if node.op == "call_function":
            emitter.call(node)
        elif node.op == "get_attr":
            raise _node_error(node, f"Graph attribute `{node.target}` (control flow) has no lowering")
    return emitter.finish()


class _Emitter:
    """The state of one emission: values by node, parameters in order."""

    def __init__(self, program: ExportedProgram, spec: GraphSpec, kernels: Mapping[str, KernelCall]) -> None:
        self.program, self.spec, self.kernels = program, spec, kernels
        self.builder = Builder()
        self.values: dict[torch.fx.Node, Any] = {}
        self.parameters: list[Value] = []

    def placeholders(self) -> None:
        wanted = program_inputs(self.program)
        if len(wanted) != len(self.spec.inputs):
            raise LoweringError(
                f"Graph `{self.spec.id}` names {len(self.spec.inputs)} inputs, the program has {len(wanted)}: "
                + ", ".join(item.placeholder for item in wanted),
                hint="Make one GraphInput for each item of program_inputs(program), in that order.",
            )
        _unique("input", [item.name for item in self.spec.inputs])
        named = {item.placeholder: given for item, given in zip(wanted, self.spec.inputs, strict=True)}
        nodes = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        for item in self.program.graph_signature.input_specs:
            node = nodes[item.arg.name]
            if isinstance(item.arg, ConstantArgument):
                self.values[node] = item.arg.value
            elif item.arg.name in named:
                self.values[node] = self._parameter(node, named[item.arg.name])
            elif node.users:
                self.values[node] = self.builder.constant(_tensor_of(self.program, item), _array(node).dtype)

    def _parameter(self, node: torch.fx.Node, given: GraphInput) -> Value:
        shape = _array(node)
        _check_spec("input", given.name, given.spec, shape)
        number = self.builder.add(
            "parameter",
            shape,
            parameter_number=len(self.parameters),
            frontend_attributes={"map": {"neff_input_names": given.name}},
        )
        self.parameters.append(Value(number, shape.dimensions, shape.dtype))
        return self.parameters[-1]

    def call(self, node: torch.fx.Node) -> None:
        """Lower one operator call."""
        if node.target in _NO_VALUE:
            return
        args = [self._operand(item) for item in node.args]
        kwargs = {key: self._operand(item) for key, item in node.kwargs.items() if key not in IGNORED_KEYWORDS}
        if node.target is operator.getitem:
            self.values[node] = args[0][args[1]]
            return
        out = _shape_of(node)
        if out is None:
            raise _node_error(node, f"Operator `{node.target}` returns no tensor")
        result = self._lower(node, out, args, kwargs)
        _check_result(node, out, result)
        self.values[node] = result

    def _lower(self, node: torch.fx.Node, out: Shape, args: list[Any], kwargs: dict[str, Any]) -> Any:
        target = node.target
        if getattr(target, "namespace", None) == NAMESPACE:
            name = target._schema.name.split("::")[1]  # type: ignore[union-attr]
            if name in self.kernels:
                return _kernel_call(self.builder, self.kernels[name], name, out, _bound(target, args, kwargs))
            if name == "kv_write":
                return ops.indexing.kv_write(self.builder, out, *args, **kwargs)
            raise _node_error(
                node,
                f"Operator `{NAMESPACE}::{name}` has no kernel",
                hint="Name its kernel in `kernels`, or pass the program through inline_references first.",
            )
        if target not in LOWERINGS:
            raise _node_error(node, f"Operator `{target}` has no lowering")
        try:
            return LOWERINGS[target](self.builder, out, *args, **kwargs)
        except LoweringError as error:
            raise _node_error(node, f"`{target}`: {error.message}", hint=error.hint) from error
        except NotImplementedError as error:
            raise _node_error(node, f"Operator `{target}` has no lowering for {error}") from error

    def _operand(self, item: Any) -> Any:
        if isinstance(item, torch.fx.Node):
            return self.values[item]
        if isinstance(item, (list, tuple)):
            return [self._operand(part) for part in item]
        return item

    def finish(self) -> Module:
        """The module: results in a tuple, unreachable instructions removed, ids counted anew from 1."""
        results = self._results()
        _unique("output", [item.name for item in self.spec.outputs])
        root = self.builder.add(
            "tuple",
            Shape("tuple", (), tuple(Shape(value.dtype, value.shape) for value in results)),
            [value.id for value in results],
            frontend_attributes={"map": {"neff_output_names": ",".join(item.name for item in self.spec.outputs)}},
        )
        return Module(
            self.spec.id,
            *_renumber(self.builder, root, tuple(item.name for item in self.spec.inputs)),
            aliases=self._aliases(),
        )

    def _results(self) -> list[Value]:
        output = next(node for node in self.program.graph.nodes if node.op == "output")
        nodes = [item for item in output.args[0] if isinstance(item, torch.fx.Node)]
        kinds = {item.kind for item in self.program.graph_signature.output_specs}
        unknown = kinds - {OutputKind.USER_OUTPUT, OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION}
        if unknown:
            raise LoweringError(f"Graph `{self.spec.id}` has results of kind {sorted(map(str, unknown))}")
        if len(nodes) != len(self.spec.outputs):
            raise LoweringError(
                f"Graph `{self.spec.id}` names {len(self.spec.outputs)} outputs, the program returns {len(nodes)}: "
                + ", ".join(node.name for node in nodes),
                hint="Make one GraphOutput for each result of the program; written buffers come first.",
            )
        results: list[Value] = [self.values[node] for node in nodes]
        for value, given in zip(results, self.spec.outputs, strict=True):
            _check_spec("output", given.name, given.spec, Shape(value.dtype, value.shape))
        return results

    def _aliases(self) -> tuple[Alias, ...]:
        numbers = {item.name: number for number, item in enumerate(self.spec.inputs)}
        found = []
        for index, item in enumerate(self.spec.outputs):
            if item.alias_of is None:
                continue
            if item.alias_of not in numbers:
                raise LoweringError(
                    f"Output `{item.name}` aliases `{item.alias_of}`, which is not an input",
                    hint="Inputs are " + ", ".join(numbers) + ".",
                )
            source = self.spec.inputs[numbers[item.alias_of]]
            if source.spec != item.spec:
                raise LoweringError(f"Output `{item.name}` {item.spec} aliases `{source.name}` {source.spec}")
            found.append(Alias(index, numbers[item.alias_of]))
        _unique("alias of", [self.spec.inputs[alias.parameter].name for alias in found])
        return tuple(found)


def _renumber(builder: Builder, root: int, names: tuple[str, ...]) -> tuple[tuple[Computation, ...], int]:
    """All computations and the entry's id, with ids that count from 1 in order of appearance."""
    reached, pending = set(), [root]
    while pending:
        number = pending.pop()
        if number not in reached:
            reached.add(number)
            pending.extend(builder.instructions[number].operands)
    kept = [item for item in builder.instructions.values() if item.id in reached or item.opcode == "parameter"]
    called = {number for item in kept for number in item.attributes.get("called_computation_ids", ())}
    ids: dict[int, int] = {}
    functions = [
        _with_new_ids(function, ids) for function in builder.functions.values() if function.id in called
    ]
    entry = _with_new_ids(Computation(-1, "main", root, tuple(kept), names), ids)
    return (*functions, entry), entry.id


def _with_new_ids(computation: Computation, ids: dict[int, int]) -> Computation:
    instructions = []
    for item in computation.instructions:
        ids[item.id] = len(ids) + 1
        attributes = dict(item.attributes)
        if "called_computation_ids" in attributes:
            attributes["called_computation_ids"] = [ids[number] for number in attributes["called_computation_ids"]]
        operands = tuple(ids[number] for number in item.operands)
        instructions.append(Instruction(ids[item.id], item.opcode, item.shape, operands, attributes))
    ids[computation.id] = len(ids) + 1
    return Computation(
        ids[computation.id], computation.name, ids[computation.root_id], tuple(instructions), computation.parameter_names
    )


def _bound(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of a custom operator by name, defaults included."""
    bound = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        else:
            bound[argument.name] = kwargs.get(argument.name, argument.default_value)
    return bound


def _kernel_call(builder: Builder, kernel: KernelCall, name: str, out: Shape, bound: Mapping[str, Any]) -> Any:
    """The placeholder that the instance replaces by the compiled kernel.

    Operands are the tensors in the operator's order; an optional tensor that was not given is null among the attributes.
    """
    operands = [value.id for value in bound.values() if isinstance(value, Value)]
    attributes = {key: value for key, value in bound.items() if not isinstance(value, Value)}
    config = {"kernel": kernel.sha256, "entry": kernel.name, "attributes": to_json(attributes)}
    number = builder.add(
        "custom-call",
        out,
        operands,
        custom_call_target=f"{NAMESPACE}.{name}",
        custom_call_api_version=API_VERSION_STATUS_RETURNING,
        backend_config=json.dumps(config, sort_keys=True, separators=(",", ":")).encode(),
    )
    if out.dtype != "tuple":
        return Value(number, out.dimensions, out.dtype)
    return tuple(
        Value(builder.add("get-tuple-element", part, [number], tuple_index=index), part.dimensions, part.dtype)
        for index, part in enumerate(out.elements)
    )


def _shape_of(node: torch.fx.Node) -> Shape | None:
    """The static shape of what a node returns; None when that is no tensor."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return Shape("tuple", (), tuple(_tensor_shape(node, item) for item in value))
    return _tensor_shape(node, value) if isinstance(value, torch.Tensor) else None


def _array(node: torch.fx.Node) -> Shape:
    shape = _shape_of(node)
    assert shape is not None, node
    return shape


def _tensor_shape(node: torch.fx.Node, tensor: torch.Tensor) -> Shape:
    if tensor.dtype not in DTYPES:
        cure = "Use float32" if tensor.dtype.is_floating_point else "Split it into real and imaginary parts"
        raise _node_error(node, f"`{node.name}` is {tensor.dtype}, which a NeuronCore lacks", hint=f"{cure}.")
    if any(not isinstance(size, int) for size in tensor.shape):
        raise _node_error(
            node,
            f"`{node.name}` has a dynamic shape {tuple(tensor.shape)}",
            hint="Export without dynamic_shapes: one graph for each bucket of lengths.",
        )
    return Shape(DTYPES[tensor.dtype], tuple(tensor.shape))


def _is_literal(program: ExportedProgram, item: InputSpec, shape: Shape) -> bool:
    if item.kind not in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        return False
    written = item.target in program.graph_signature.buffers_to_mutate.values()
    return not written and shape.size_bytes <= LITERAL_LIMIT_BYTES


def _tensor_of(program: ExportedProgram, item: InputSpec) -> torch.Tensor:
    """The real values of a small buffer or constant."""
    target = item.target or item.arg.name
    tensor = program.constants.get(target, program.state_dict.get(target))
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise LoweringError(
            f"Buffer `{target}` has no values (it is {type(tensor).__name__} on the meta device)",
            hint=f"Put its real values into program.constants[{target!r}] before lowering.",
        )
    return tensor.detach()


def _check_spec(role: str, name: str, given: TensorSpec, shape: Shape) -> None:
    dtype = "int32" if given.dtype == "int64" else given.dtype
    if (tuple(given.shape), dtype) != (shape.dimensions, shape.dtype):
        raise LoweringError(
            f"Graph {role} `{name}` is declared {given}, the program has {shape}",
            hint="The GraphSpec and the exported program must come from the same example inputs.",
        )


def _check_result(node: torch.fx.Node, out: Shape, result: Any) -> None:
    """A lowering that returns another shape than torch is our mistake; better found here than in a compiler."""
    pairs = zip(out.elements, result, strict=True) if out.dtype == "tuple" else [(out, result)]
    for expected, value in pairs:
        if (value.shape, value.dtype) != (expected.dimensions, expected.dtype):
            raise _node_error(node, f"The lowering of `{node.target}` made {value}, torch says {expected}")


def _unique(role: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen or not name or "," in name:
            problem = "twice" if name in seen else "but names are not empty and hold no comma"
            raise LoweringError(f"Graph {role} `{name}` is named {problem}", hint="Give every tensor a name of its own.")
        seen.add(name)


def _node_error(node: torch.fx.Node, message: str, *, hint: str | None = None) -> LoweringError:
    """`message` with the place in the model where the operator was called."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, module = stack[-1] if stack else ("", None)
    place = ""
    if stack:
        class_name = module if isinstance(module, str) else getattr(module, "__name__", str(module))
        place = f" in module `{path or 'the model itself'}` ({class_name.rsplit('.', 1)[-1]})"
    cure = "Rewrite that module with operators that have one, or add a lowering in neuron_port/lower/ops."
    return LoweringError(message + place, hint=hint or cure)
