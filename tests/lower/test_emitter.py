"""What stands in the emitted bytes: names, order, aliases, ids, types, literals; and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_port.errors import LoweringError
from neuron_port.lower import decompose, emit, program_inputs, read_module
from neuron_port.lower.module import MAX_ID, Alias
from neuron_port.types import GraphSpec, TensorSpec

Lower = Callable[..., Any]


class Block(torch.nn.Module):
    """Embedding, norm, linear, tied head, a small and a large buffer, and an unread parameter."""

    def __init__(self, buffer_length: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(16, 8)
        self.gamma = torch.nn.Parameter(torch.rand(8))
        self.unread = torch.nn.Parameter(torch.rand(3))
        self.inner = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("frequencies", torch.arange(float(buffer_length)), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gamma
        return self.head(self.inner(x) + self.frequencies[:8])


IDS = torch.arange(6).reshape(2, 3)


def _program(module: torch.nn.Module, *inputs: torch.Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return decompose(torch.export.export(module.eval(), inputs, strict=False))


def test_graph_equals_module(lower: Lower) -> None:
    """A small model with a tied head gives torch's result on XLA-CPU, fed by name."""
    block = Block()
    (actual,) = lower(block, (IDS,)).run(IDS)
    torch.testing.assert_close(actual, block(IDS), rtol=1e-5, atol=1e-6)


def test_inputs_are_weights_then_arguments(lower: Lower) -> None:
    """Parameters in program order, a tied weight once, unread weights never, small buffers as literals."""
    module = read_module(lower(Block(), (IDS,)).hlo)
    assert module.input_names == ("gamma", "inner.weight", "inner.bias", "head.weight", "ids")
    assert module.output_names == ("out0",)
    assert module.entry.parameter_names == module.input_names
    assert [item.attributes.get("parameter_number", 0) for item in module.entry.parameters] == list(range(5))


def test_tied_weight_knows_its_other_names() -> None:
    """The parameter that stands for a tied weight lists the checkpoint's other name for it."""
    found = {item.target: item for item in program_inputs(_program(Block(), IDS))}
    assert found["head.weight"].tied == ("embedding.weight",)
    assert found["gamma"].tied == ()


def test_unread_weights_may_be_named(lower: Lower) -> None:
    """A spec that names weights which nothing reads keeps them as parameters."""
    program = _program(Block(), IDS)
    wanted = program_inputs(program, unread=True)
    graph = lower(Block(), (IDS,))
    inputs = tuple(replace(graph.spec.inputs[0], name=item.placeholder, spec=item.spec) for item in wanted)
    module = read_module(emit(program, replace(graph.spec, inputs=inputs), kernels={}))
    assert len(module.input_names) == 7
    assert "p_unread" in module.input_names


def test_large_buffer_becomes_an_input() -> None:
    """Up to 1 KiB a buffer is a literal; one element more makes it a parameter."""
    small, large = (program_inputs(_program(Block(length), IDS)) for length in (256, 257))
    assert "frequencies" not in [item.target for item in small]
    assert [item.kind for item in large if item.target == "frequencies"] == ["buffer"]


def test_integers_are_32_bit(lower: Lower) -> None:
    """int64 inputs, constants and results are s32 in the graph; no 64-bit type is left anywhere."""
    graph = lower(lambda ids: (ids * 3, torch.arange(4)), (IDS,))
    module = read_module(graph.hlo)
    dtypes = {
        shape.dtype for _, item in module.instructions() for shape in (item.shape, *item.shape.elements)
    }
    assert dtypes == {"int32", "tuple"}


def test_ids_are_unique_and_small(lower: Lower) -> None:
    """Ids of instructions and computations are distinct, positive and count up from 1."""
    module = read_module(lower(Block(), (IDS,)).hlo)
    ids = [item.id for _, item in module.instructions()] + [item.id for item in module.computations]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    assert max(ids) <= MAX_ID


def test_operands_precede_users(lower: Lower) -> None:
    """Every instruction stands after what it reads, and every called computation before its caller."""
    module = read_module(lower(Block(), (IDS,)).hlo)
    seen: set[int] = set()
    for computation in module.computations:
        for item in computation.instructions:
            assert seen.issuperset(item.operands)
            assert seen.issuperset(item.attributes.get("called_computation_ids", ()))
            seen.add(item.id)
        seen.add(computation.id)


def test_nothing_unused_is_left(lower: Lower) -> None:
    """Apart from parameters, every instruction is reached from the result."""
    entry = read_module(lower(Block(), (IDS,)).hlo).entry
    used = {operand for item in entry.instructions for operand in item.operands} | {entry.root_id}
    assert [
        item.name for item in entry.instructions if item.id not in used and item.opcode != "parameter"
    ] == []


def test_equal_instructions_are_shared(lower: Lower) -> None:
    """The same subexpression written twice is computed once."""
    module = read_module(lower(lambda x: x.exp() + x.exp(), (torch.rand(4),)).hlo)
    assert module.opcodes()["exponential"] == 1


def test_transposed_weight_is_read_in_place(lower: Lower) -> None:
    """A linear layer contracts over its weight's second axis, without a transpose."""
    module = read_module(lower(torch.nn.Linear(8, 5), (torch.rand(3, 8),)).hlo)
    (dot,) = (item for _, item in module.instructions() if item.opcode == "dot")
    assert dot.attributes["dot_dimension_numbers"]["rhs_contracting_dimensions"] == [1]
    assert "transpose" not in module.opcodes()


def test_infinities_become_finite(lower: Lower) -> None:
    """A mask of -inf is written as the dtype's lowest finite value, and softmax gives the same result."""
    mask = torch.tensor([True, False, False])
    x = torch.rand(2, 3)
    graph = lower(lambda x, mask: x.masked_fill(mask, -torch.inf).softmax(-1), (x, mask))
    lowest = torch.tensor(torch.finfo(torch.float32).min).numpy().tobytes()
    literals = [
        item.attributes["literal"]
        for _, item in read_module(graph.hlo).instructions()
        if item.opcode == "constant"
    ]
    assert lowest in [literal.get("f32s") for literal in literals]
    assert b"\x00\x00\x80\xff" not in [literal.get("f32s") for literal in literals]
    (actual,) = graph.run(x, mask)
    torch.testing.assert_close(actual, x.masked_fill(mask, -torch.inf).softmax(-1))


def test_states_are_aliased(lower: Lower) -> None:
    """A state output is must-alias with its input, by position."""
    cache = torch.zeros(2, 3)
    graph = lower(lambda x, cache: (x.sum(), cache + x), (torch.ones(2, 3), cache), states={1: "cache"})
    assert read_module(graph.hlo).aliases == (Alias(output=1, parameter=1),)


def test_mutated_buffer_is_a_state(lower: Lower) -> None:
    """A buffer that the model writes is a parameter however small, and its new value the first output."""

    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(x)
            return self.count * 2

    graph = lower(Counter(), (torch.ones(2),))
    assert read_module(graph.hlo).input_names == ("count", "x")
    count, doubled = graph.run(torch.ones(2))
    assert count.tolist() == [1, 1]
    assert doubled.tolist() == [2, 2]


def test_meta_weights_give_the_same_bytes(lower: Lower) -> None:
    """A model without data lowers to the very bytes of the model with data."""

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            steps = torch.arange(8, device=x.device) + torch.ones(8, device=x.device)
            return self.inner(x) * steps

    x = torch.rand(2, 8)
    assert lower(Plain(), (x,)).hlo == lower(Plain().to("meta"), (x.to("meta"),)).hlo


def test_buffer_without_values_is_refused(lower: Lower) -> None:
    """A small buffer on the meta device cannot become a literal; the error says where values go."""
    with pytest.raises(LoweringError, match="`frequencies` has no values") as caught:
        lower(Block().to("meta"), (IDS.to("meta"),))
    assert "program.constants['frequencies']" in str(caught.value.hint)


SCRIPT = """
    import sys, hashlib, torch
    sys.path.insert(0, {folder!r})
    from conftest import lower
    from test_emitter import Block, IDS
    print(hashlib.sha256(lower(Block(), (IDS,)).hlo).hexdigest())
"""


def test_bytes_are_equal_in_another_process(lower: Lower) -> None:
    """The same program gives the same bytes under another hash seed."""
    script = textwrap.dedent(SCRIPT.format(folder=str(Path(__file__).parent)))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"},
    )
    assert run.stdout.strip() == hashlib.sha256(lower(Block(), (IDS,)).hlo).hexdigest()


def test_unknown_operator_is_named_with_its_module(lower: Lower) -> None:
    """The error of an operator without lowering names it, the module that calls it and its class."""

    class Inner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.det(x)

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.solver = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.solver(x)

    with pytest.raises(LoweringError, match=r"aten\._linalg_det.* in module `solver` \(Inner\)") as caught:
        lower(Outer(), (torch.eye(3),))
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("function", "inputs", "problem"),
    [
        (
            lambda x: torch.full_like(x, 2**40),
            (torch.zeros(2, dtype=torch.int64),),
            "does not fit into int32",
        ),
        (
            lambda x: x.abs(),
            (torch.zeros(3, dtype=torch.complex64),),
            "Input `x` is torch.complex64, which a NeuronCore lacks",
        ),
        (
            lambda x: torch.fft.fft(x).real,
            (torch.zeros(3),),
            "_fft_r2c.default` on complex numbers has no lowering",
        ),
        (lambda x: x[x > 0], (torch.ones(3),), r"has a dynamic shape \(u0,\)"),
    ],
)
def test_what_the_core_lacks_is_refused(
    function: Callable[..., Any], inputs: tuple[torch.Tensor, ...], problem: str, lower: Lower
) -> None:
    """Large integers, complex inputs, transforms and results whose size depends on data are refused by name."""
    with pytest.raises(LoweringError, match=problem):
        lower(function, inputs)


def test_dynamic_shapes_are_refused() -> None:
    """A program with a symbolic length is refused before anything is emitted."""
    length = torch.export.Dim("length", min=2, max=16)
    program = torch.export.export(Block(), (IDS,), dynamic_shapes={"ids": {1: length}}, strict=False)
    with pytest.raises(LoweringError, match="dynamic shape"):
        program_inputs(program)


def _spec(lower: Lower) -> tuple[torch.export.ExportedProgram, GraphSpec]:
    def function(x: torch.Tensor, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sum(), cache + x

    inputs = (torch.ones(2, 3), torch.zeros(2, 3))
    graph = lower(function, inputs, states={1: "cache"})
    return _program(graph.module, *inputs), graph.spec


def _other(graph: GraphSpec, role: str, index: int, **changes: Any) -> GraphSpec:
    items = list(getattr(graph, role))
    items[index] = replace(items[index], **changes)
    return replace(graph, **{role: tuple(items)})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda spec: replace(spec, inputs=spec.inputs[:1]), "names 1 inputs, the program has 2: x, cache"),
        (lambda spec: replace(spec, outputs=spec.outputs[:1]), "names 1 outputs, the program returns 2"),
        (lambda spec: _other(spec, "inputs", 0, name="cache"), "input `cache` is named twice"),
        (lambda spec: _other(spec, "outputs", 0, name="a,b"), "hold no comma"),
        (
            lambda spec: _other(spec, "outputs", 1, alias_of="caches"),
            "aliases `caches`, which is not an input",
        ),
        (
            lambda spec: _other(spec, "inputs", 0, spec=TensorSpec(shape=(3, 2), dtype="float32")),
            r"input `x` is declared float32\[3, 2\], the program has float32\[2, 3\]",
        ),
        (
            lambda spec: _other(spec, "outputs", 0, alias_of="x"),
            r"Output `out0` float32\[\] aliases `x` float32\[2, 3\]",
        ),
    ],
)
def test_interface_that_does_not_fit_is_refused(
    change: Callable[[GraphSpec], GraphSpec], problem: str, lower: Lower
) -> None:
    """The unchanged interface is emitted; each single change is refused by name."""
    program, spec = _spec(lower)
    assert emit(program, spec, kernels={})
    with pytest.raises(LoweringError, match=problem):
        emit(program, change(spec), kernels={})
