"""Plain torch source for what a layer computes: exported once in float32 and once in bfloat16, printed as Python.

The printed file is the oracle of a draft. It runs in float64 (through the float32 function, whose dtype is that of its
inputs), under FakeTensor, and for any number of tokens where the layer's own code allows it.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from neuron_port.drafting.subjects.code_layout import call_lines
from neuron_port.drafting.subjects.torch_names import Expressions, used_names
from neuron_port.errors import NeuronPortError

TOKENS = "tokens"  # the variable that holds the free size
TABLE_LIMIT = 64  # elements of a constant that a reader can still read
ASSERTIONS = ("_assert_", "sym_constrain_range", "_functional_assert", "_functional_sym")


class NotDraftableError(NeuronPortError):
    """Why a layer cannot become a task; the sentence is for people."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A tensor argument of the reference: its name, and its shape with "T" for the axis whose size is free."""

    name: str
    shape: tuple[int | str, ...]
    is_float: bool = True

    @property
    def free_axis(self) -> int | None:
        return next((axis for axis, size in enumerate(self.shape) if isinstance(size, str)), None)

    def sized(self, tokens: int) -> tuple[int, ...]:
        return tuple(tokens if isinstance(size, str) else size for size in self.shape)

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class Body:
    """The statements of one dtype's function, the result included, and which arguments they use."""

    lines: tuple[str, ...]
    used: frozenset[str]
    results: int
    result_dtypes: tuple[torch.dtype, ...] = ()
    result_shapes: tuple[tuple[int | str, ...], ...] = ()
    needs_dtype: bool = False
    imports: frozenset[str] = field(default_factory=frozenset)


class _Flat(torch.nn.Module):
    """A function of flat tensors in the form that torch.export takes. It holds no parameters of its own."""

    def __init__(self, function: Callable[..., Sequence[torch.Tensor]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.function(*tensors))


def export_body(
    function: Callable[..., Sequence[torch.Tensor]],
    arguments: Sequence[Argument],
    examples: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> Body:
    """The code of `function` in one dtype.

    Args:
        function: flat tensors in, flat tensors out.
        examples: one tensor for each argument, floating point ones in `dtype`.
    Raises:
        NotDraftableError: it cannot be exported, keeps state, or returns what a kernel cannot.
    """
    free = torch.export.Dim(TOKENS)
    shapes = tuple(None if item.free_axis is None else {item.free_axis: free} for item in arguments)
    try:
        with torch.no_grad():
            program = torch.export.export(
                _Flat(function), tuple(examples), dynamic_shapes=(shapes,), strict=False
            )
            if any(_mutates(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
    except Exception as error:  # torch.export raises whatever the layer's own code does under it
        if "is mutated in the forward" in str(error):
            raise NotDraftableError("changes a buffer as it runs, which is state") from error
        reason = " ".join(str(error).split()[:30])
        raise NotDraftableError(f"cannot be exported: {type(error).__name__}: {reason}") from error
    return _Printer(program, arguments, dtype).body()


def _mutates(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


class _Printer:
    """Turns one exported program into statements."""

    def __init__(
        self, program: torch.export.ExportedProgram, arguments: Sequence[Argument], dtype: torch.dtype
    ) -> None:
        self.program = program
        self.arguments = arguments
        self.lines: list[str] = []
        anchor = next((item.name for item in arguments if item.is_float), arguments[0].name)
        self.words = Expressions(dtype, anchor, taken={item.name for item in arguments})

    def body(self) -> Body:
        graph = self.program.graph_module.graph
        for node in reversed(list(graph.nodes)):
            is_assertion = node.op == "call_function" and any(mark in str(node.target) for mark in ASSERTIONS)
            if is_assertion:
                graph.erase_node(node)
        graph.eliminate_dead_code()
        self._refuse_state()
        self._placeholders()
        for node in graph.nodes:
            if node.op == "call_function":
                self._statement(node)
            elif node.op == "get_attr":
                raise NotDraftableError("has control flow inside that cannot be written as plain code")
        return self._finish(next(iter(reversed(graph.nodes))))

    def _refuse_state(self) -> None:
        for item in self.program.graph_signature.output_specs:
            if item.kind is not OutputKind.USER_OUTPUT:
                raise NotDraftableError(f"changes `{item.target}` as it runs, which is state")

    def _placeholders(self) -> None:
        names = iter(self.arguments)
        values = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        for item in self.program.graph_signature.input_specs:
            node = values[item.arg.name]
            if item.kind is InputKind.USER_INPUT:
                argument = next(names)
                self.words.names[node] = argument.name
                if argument.free_axis is not None and not self.words.tokens:
                    self.words.tokens = f"{argument.name}.shape[{argument.free_axis}]"
            elif node.users:
                self._constant(node, str(item.target))

    def _constant(self, node: torch.fx.Node, target: str) -> None:
        """A small table of numbers that the module keeps beside its parameters."""
        value = self.program.constants.get(target, self.program.state_dict.get(target))
        assert isinstance(value, torch.Tensor), f"{target} has no value"
        name = target.rsplit(".", 1)[-1]
        if value.numel() > TABLE_LIMIT:
            raise NotDraftableError(f"reads a table of {value.numel()} values that is no parameter")
        if value.dtype in (torch.bfloat16, torch.float16):
            raise NotDraftableError(
                f"reads a constant that was rounded to {self.words.dtype_text(value.dtype)}, "
                "so that the float32 model computes something else"
            )
        if value.is_complex():
            raise NotDraftableError("computes with complex numbers")
        dtype = self.words.dtype_text(value.dtype)
        options = f"dtype={dtype}, device={self.words.anchor}.device"
        made = self.words.define(node, name if name.isidentifier() else "constant")
        if value.ndim == 0:
            self.lines.append(f"{made} = torch.full((), {value.item()!r}, {options})")
        else:
            self.lines += call_lines(
                f"{made} = torch.tensor(", [repr(value.tolist()), options], ")", indent=4
            )

    def _statement(self, node: torch.fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_complex():
            raise NotDraftableError("computes with complex numbers")
        if free_unbacked_symbols(value):
            raise NotDraftableError("has shapes that depend on values")
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float)):
            self.words.symbol(node)
            return
        text = self.words.expression(node)
        if isinstance(text, str):
            self.words.names[node] = text  # the same value under its earlier name
            return
        name = self.words.define(node, node.name)
        self.lines += call_lines(f"{name} = {text[0]}", list(text[1]), text[2], indent=4)

    def _finish(self, output: torch.fx.Node) -> Body:
        results = list(output.args[0])  # type: ignore[arg-type]
        values = [node.meta["val"] for node in results]
        names = [self.words.names[node] for node in results]
        if any(name in {item.name for item in self.arguments} for name in names):
            raise NotDraftableError("returns its input unchanged: there is nothing to compute")
        self.lines += call_lines(
            f"return {names[0]}" if len(names) == 1 else f"return {', '.join(names)}", [], ""
        )
        if len(self.lines) > 1 and self.lines[-1] == f"return {names[0]}":
            self._return_directly(names[0])
        lines = list(self.lines)
        if self.words.uses_tokens:
            lines.insert(0, f"{TOKENS} = {self.words.tokens}")
        if self.words.uses_dtype:
            lines.insert(0, f"dtype = {self.words.anchor}.dtype")
        text = "\n".join(lines)
        return Body(
            lines=tuple(lines),
            used=frozenset(item.name for item in self.arguments if item.name in used_names(text)),
            results=len(results),
            result_dtypes=tuple(value.dtype for value in values),
            result_shapes=tuple(
                tuple(size if isinstance(size, int) else "T" for size in value.shape) for value in values
            ),
            needs_dtype=self.words.uses_dtype,
        )

    def _return_directly(self, name: str) -> None:
        """`return f(x)` where the last statement is `y = f(x)` on one line."""
        last = self.lines[-2]
        if last.startswith(f"{name} = ") and not last.rstrip().endswith((",", "(")):
            self.lines[-2:] = [f"return {last.removeprefix(f'{name} = ')}"]


def reference_text(
    name: str, summary: str, arguments: Sequence[Argument], in_float32: Body, in_bfloat16: Body
) -> str:
    """The whole file: the function `name`, and one function per dtype where the two differ."""
    parts = [
        f'"""{summary}\n\nPrinted by neuron-port from what torch.export saw of the layer. T = tokens.\n"""',
        "",
    ]
    parts += ["import torch"]
    text = "\n".join((*in_float32.lines, *in_bfloat16.lines))
    if "functional" in used_names(text):
        parts += ["from torch.nn import functional"]
    result = "torch.Tensor" if in_float32.results == 1 else _tuple_type(in_float32.results)
    signature = [f"{item.name}: torch.Tensor" for item in arguments]
    header = call_lines(f"def {name}(", signature, f") -> {result}:")
    shapes = ", ".join(f"{item.name} {item}" for item in arguments)
    returns = ", ".join(f"[{', '.join(map(str, shape))}]" for shape in in_float32.result_shapes)
    page = _docstring(f"{shapes}. Returns {returns}.")
    if in_float32.lines == in_bfloat16.lines:
        return "\n".join([*parts, "", "", *header, *page, *_indented(in_float32.lines)]) + "\n"
    anchor = next(item.name for item in arguments if item.is_float)
    passed = [item.name for item in arguments]
    dispatch = [f"if {anchor}.dtype == torch.bfloat16:"]
    dispatch += _indented(call_lines("return _in_bfloat16(", passed, ")", indent=8))
    dispatch = _indented([*dispatch, *call_lines("return _in_float32(", passed, ")", indent=4)])
    parts += ["", "", *header, *page, *dispatch]
    for function, body, sentence in (
        ("_in_float32", in_float32, "In float32, and in float64 as the oracle of float32."),
        ("_in_bfloat16", in_bfloat16, "In bfloat16, rounded where the layer rounds."),
    ):
        parts += ["", "", *call_lines(f"def {function}(", signature, f") -> {result}:")]
        parts += [f'    """{sentence}"""', *_indented(body.lines)]
    return "\n".join(parts) + "\n"


def _tuple_type(count: int) -> str:
    return f"tuple[{', '.join(['torch.Tensor'] * count)}]"


def _docstring(text: str) -> list[str]:
    if len(text) <= 100:
        return [f'    """{text}"""']
    arguments, _, returns = text.rpartition(" Returns ")
    lines = ['    """Compute it for these shapes.', ""]
    lines += [f"    {item.strip()}" for item in arguments.replace("], ", "],\n").split("\n")]
    return [*lines, f"    Returns {returns}", '    """']


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def compile_function(text: str, name: str, file: str) -> Callable[..., Any]:
    """The function `name` of a printed reference; `file` is what tracebacks call it."""
    return run_text(text, file)[name]


def run_text(text: str, file: str) -> Mapping[str, Any]:
    """Run a file that we have printed, from memory."""
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": file.replace("/", ".").removesuffix(".py")}
    exec(compile(text, file, "exec"), namespace)
    return namespace
