"""torch.export program + interface -> the HloModuleProto bytes that neuronx-cc compiles and XLA-CPU executes.

One pass over the graph: placeholders become parameters, constants or nothing; each operator is lowered by the
function registered for it; `neuron_port` operators with a kernel become custom calls that XLA refuses to run
as they stand. The bytes hold no metadata, no 64-bit type and no id beyond 32 bits, and are equal in every
process.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from neuron_port.errors import LoweringError
from neuron_port.lower import ops
from neuron_port.lower.builder import Builder, Value
from neuron_port.lower.decomposition import NAMESPACE, decompose, is_decomposed
from neuron_port.lower.interface import (
    ProgramInput,
    array_of,
    check_spec,
    node_error,
    program_inputs,
    shape_of,
    tensor_of,
    unique,
)
from neuron_port.lower.module import Alias, Module, Shape
from neuron_port.lower.numbering import needed, renumber
from neuron_port.lower.outlining import reference_key, reference_program
from neuron_port.lower.registry import CHIP_DTYPES, IGNORED_KEYWORDS, LOWERINGS
from neuron_port.lower.schema import API_VERSION_STATUS_RETURNING
from neuron_port.types import GraphInput, GraphSpec, to_json
from neuron_port.walk.calls import CONSTANT, content_name

# Our own operators that are no kernels: states become slices that are written in place, what ranks exchange collectives.
OWN_OPERATORS: Mapping[str, Callable[..., Value]] = {
    "kv_write": ops.indexing.kv_write,
    "row_write": ops.indexing.row_write,
    "all_reduce": ops.collectives.all_reduce,
    "all_gather": ops.collectives.all_gather,
}


@dataclass(frozen=True, kw_only=True)
class KernelCall:
    """A verified kernel that stands in for a custom operator: its entry point, its source's digest."""

    name: str
    sha256: str


def emit(
    program: ExportedProgram,
    spec: GraphSpec,
    *,
    kernels: Mapping[str, KernelCall],
    references: Mapping[str, Callable[..., Any]] | None = None,
) -> bytes:
    """Serialized HloModuleProto of `program`, with the names, order and aliases of `spec`.

    Args:
        program: as torch.export gave it, or through `decompose` / `inline_references`.
        spec: one input for each of `program_inputs(program)`, with or without the weights that nothing reads,
        and one
            output for each result, in order.
        kernels: custom operator name (without namespace) -> the kernel that its custom call names.
        references: the same names -> the plain-torch function that the custom call carries with it as a
            computation, so that whoever compiles the graph can take it instead of the kernel.
    Raises: LoweringError for an operator without lowering, an interface that does not fit, a literal that is
    too large.
    """
    return emit_module(program, spec, kernels=kernels, references=references).to_bytes()


def emit_module(
    program: ExportedProgram,
    spec: GraphSpec,
    *,
    kernels: Mapping[str, KernelCall],
    references: Mapping[str, Callable[..., Any]] | None = None,
) -> Module:
    """As `emit`, before serialisation."""
    if not is_decomposed(program):
        program = decompose(program)
    emitter = _Emitter(program, spec, kernels, references or {})
    emitter.placeholders()
    emitter.body()
    return emitter.finish()


class _Body:
    """The lowering of a program's operators: values by node."""

    def __init__(
        self,
        program: ExportedProgram,
        builder: Builder,
        kernels: Mapping[str, KernelCall],
        references: Mapping[str, Callable[..., Any]],
    ) -> None:
        self.program, self.builder, self.kernels, self.references = program, builder, kernels, references
        self.values: dict[torch.fx.Node, Any] = {}

    def body(self) -> None:
        """Lower all operator calls, in order."""
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self.call(node)
            elif node.op == "get_attr":
                raise node_error(node, f"Graph attribute `{node.target}` (control flow) has no lowering")

    def call(self, node: torch.fx.Node) -> None:
        """Lower one operator call."""
        args = [self._operand(item) for item in node.args]
        kwargs = {
            key: self._operand(item) for key, item in node.kwargs.items() if key not in IGNORED_KEYWORDS
        }
        if node.target is operator.getitem:
            self.values[node] = args[0][args[1]]
            return
        out = shape_of(node)
        if out is None:
            raise node_error(node, f"Operator `{node.target}` returns no tensor")
        result = self._lower(node, out, args, kwargs)
        _check_result(node, out, result)
        self.values[node] = result

    def _lower(self, node: torch.fx.Node, out: Shape, args: list[Any], kwargs: dict[str, Any]) -> Any:
        target = node.target
        if getattr(target, "namespace", None) == NAMESPACE:
            name = target._schema.name.split("::")[1]  # type: ignore[union-attr]
            if name in self.kernels:
                bound, reference = _bound(target, args, kwargs), self._reference(node, name)
                return _kernel_call(self.builder, self.kernels[name], name, out, bound, reference)
            if name in OWN_OPERATORS:
                return OWN_OPERATORS[name](self.builder, out, *args, **kwargs)
            raise node_error(
                node,
                f"Operator `{NAMESPACE}::{name}` has no kernel",
                hint="Name its kernel in `kernels`, or pass the program through inline_references first.",
            )
        if target not in LOWERINGS:
            raise node_error(node, f"Operator `{target}` has no lowering")
        try:
            return LOWERINGS[target](self.builder, out, *args, **kwargs)
        except LoweringError as error:
            raise node_error(node, f"`{target}`: {error.message}", hint=error.hint) from error
        except NotImplementedError as error:
            raise node_error(node, f"Operator `{target}` has no lowering for {error}") from error

    def _operand(self, item: Any) -> Any:
        if isinstance(item, torch.fx.Node):
            return self.values[item]
        if isinstance(item, (list, tuple)):
            return [self._operand(part) for part in item]
        return item

    def _reference(self, node: torch.fx.Node, name: str) -> int | None:
        """The id of the computation that does what the kernel does, made once for equal operands."""
        if name not in self.references:
            return None
        assert isinstance(node.target, torch._ops.OpOverload)
        bound = _bound(node.target, node.args, node.kwargs)
        values = {
            key: item.meta["val"] if isinstance(item, torch.fx.Node) else item for key, item in bound.items()
        }
        key = reference_key(name, values)
        if key not in self.builder.functions:
            outlined = _Outlined(
                reference_program(self.references[name], values), Builder(self.builder), {}, {}
            )
            outlined.keep(self.builder, key)
        return self.builder.functions[key].id


class _Outlined(_Body):
    """The lowering of a kernel's reference to a computation of its own."""

    def keep(self, graph: Builder, name: str) -> None:
        """Lower the reference and keep it in the graph's builder as the function `name`."""
        nodes = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        parameters = 0
        for item in self.program.graph_signature.input_specs:
            node = nodes[item.arg.name]
            if item.kind is InputKind.USER_INPUT:
                shape = array_of(node)
                number = self.builder.add("parameter", shape, parameter_number=parameters)
                self.values[node] = Value(number, shape.dimensions, shape.dtype)
                parameters += 1
            elif node.users:
                self.values[node] = self.builder.constant(tensor_of(self.program, item), array_of(node).dtype)
        self.body()
        output = next(node for node in self.program.graph.nodes if node.op == "output")
        results: list[Value] = [self.values[node] for node in output.args[0]]
        root = results[0].id
        if len(results) > 1:
            shape = Shape("tuple", (), tuple(Shape(value.dtype, value.shape) for value in results))
            root = self.builder.add("tuple", shape, [value.id for value in results])
        graph.keep_function(name, parameters, root, needed(self.builder, root))


class _Emitter(_Body):
    """The state of one emission: the graph's interface, parameters in order."""

    def __init__(
        self,
        program: ExportedProgram,
        spec: GraphSpec,
        kernels: Mapping[str, KernelCall],
        references: Mapping[str, Callable[..., Any]],
    ) -> None:
        super().__init__(program, Builder(), kernels, references)
        self.spec = spec
        self.parameters: list[Value] = []

    def placeholders(self) -> None:
        stored = {f"model.{item.name}" for item in self.spec.inputs if item.role == "weight"}
        wanted = program_inputs(self.program, stored=stored)
        if len(wanted) < len(self.spec.inputs):  # the spec may name weights that nothing reads
            wanted = program_inputs(self.program, unread=True, stored=stored)
        if len(wanted) != len(self.spec.inputs):
            raise LoweringError(
                f"Graph `{self.spec.id}` names {len(self.spec.inputs)} inputs, the program has "
                f"{len(wanted)}: " + ", ".join(item.placeholder for item in wanted),
                hint="Make one GraphInput for each item of program_inputs(program), in that order.",
            )
        unique("input", [item.name for item in self.spec.inputs])
        nodes = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        named = set()
        for item, given in self._paired(wanted):
            named.add(item.placeholder)
            self.values[nodes[item.placeholder]] = self._parameter(nodes[item.placeholder], given)
        for item in self.program.graph_signature.input_specs:
            node = nodes[item.arg.name]
            if isinstance(item.arg, ConstantArgument):
                self.values[node] = item.arg.value
            elif item.arg.name not in named and node.users:
                self.values[node] = self.builder.constant(tensor_of(self.program, item), array_of(node).dtype)

    def _paired(self, wanted: Sequence[ProgramInput]) -> Iterator[tuple[ProgramInput, GraphInput]]:
        """Which placeholder each input of the interface is, in the interface's order.

        Both have the same order, but for constants: torch numbers them anew when it decomposes a program, maybe in
        another order. An interface that names them by content (`content_name`) is read by it.
        """
        named = {(item.source or "").rpartition(".")[2]: item for item in self.spec.inputs if item.source}
        known: dict[str, ProgramInput] = {}
        if any(name.startswith(CONSTANT) for name in named):
            for item in wanted:
                if item.kind == "constant" and item.target in self.program.constants:
                    known[content_name(self.program.constants[item.target])] = item
        found = {given.name: known[name] for name, given in named.items() if name in known}
        others = iter([item for item in wanted if item not in found.values()])
        for given in self.spec.inputs:
            yield found.get(given.name) or next(others), given

    def _parameter(self, node: torch.fx.Node, given: GraphInput) -> Value:
        shape = array_of(node)
        check_spec("input", given.name, given.spec, shape)
        number = self.builder.add(
            "parameter",
            shape,
            parameter_number=len(self.parameters),
            frontend_attributes={"map": {"neff_input_names": given.name}},
        )
        self.parameters.append(Value(number, shape.dimensions, shape.dtype))
        return self.parameters[-1]

    def finish(self) -> Module:
        """The module: results in a tuple, unreachable instructions removed, ids counted anew from 1."""
        results = self._results()
        unique("output", [item.name for item in self.spec.outputs])
        root = self.builder.add(
            "tuple",
            Shape("tuple", (), tuple(Shape(value.dtype, value.shape) for value in results)),
            [value.id for value in results],
            frontend_attributes={
                "map": {"neff_output_names": ",".join(item.name for item in self.spec.outputs)}
            },
        )
        return Module(
            self.spec.id,
            *renumber(self.builder, root, tuple(item.name for item in self.spec.inputs)),
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
                f"Graph `{self.spec.id}` names {len(self.spec.outputs)} outputs, the program returns "
                f"{len(nodes)}: {', '.join(node.name for node in nodes)}",
                hint="Make one GraphOutput for each result of the program; written buffers come first.",
            )
        results: list[Value] = [self.values[node] for node in nodes]
        for value, given in zip(results, self.spec.outputs, strict=True):
            check_spec("output", given.name, given.spec, Shape(value.dtype, value.shape))
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
        unique("alias of", [self.spec.inputs[alias.parameter].name for alias in found])
        return tuple(found)


def _bound(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of a custom operator by name, defaults included."""
    bound = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        else:
            bound[argument.name] = kwargs.get(argument.name, argument.default_value)
    return bound


def _kernel_call(
    builder: Builder,
    kernel: KernelCall,
    name: str,
    out: Shape,
    bound: Mapping[str, Any],
    reference: int | None,
) -> Any:
    """The placeholder that the instance replaces by the compiled kernel, or by the computation `reference`.

    Operands are the tensors in the operator's order; an optional tensor that was not given is null among the
    attributes.
    """
    operands = [value.id for value in bound.values() if isinstance(value, Value)]
    attributes = {key: value for key, value in bound.items() if not isinstance(value, Value)}
    config = {"kernel": kernel.sha256, "entry": kernel.name, "attributes": to_json(attributes)}
    called = {} if reference is None else {"called_computation_ids": [reference]}
    number = builder.add(
        "custom-call",
        out,
        operands,
        **called,
        custom_call_target=f"{NAMESPACE}.{name}",
        custom_call_api_version=API_VERSION_STATUS_RETURNING,
        backend_config=json.dumps(config, sort_keys=True, separators=(",", ":")).encode(),
    )
    if out.dtype != "tuple":
        return Value(number, out.dimensions, out.dtype)
    return tuple(
        Value(
            builder.add("get-tuple-element", part, [number], tuple_index=index), part.dimensions, part.dtype
        )
        for index, part in enumerate(out.elements)
    )


def _check_result(node: torch.fx.Node, out: Shape, result: Any) -> None:
    """Refuse another shape than torch's: our mistake, better found here than in a compiler."""
    pairs = zip(out.elements, result, strict=True) if out.dtype == "tuple" else [(out, result)]
    for expected, value in pairs:
        if value.shape != expected.dimensions or value.dtype not in (
            expected.dtype,
            CHIP_DTYPES.get(expected.dtype),
        ):
            raise node_error(node, f"The lowering of `{node.target}` made {value}, torch says {expected}")
