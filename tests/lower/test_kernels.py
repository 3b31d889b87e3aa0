"""Custom operators in a graph: placeholders for kernels, references inlined, and the cache write."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from neuron_port.errors import LoweringError
from neuron_port.lower import KernelCall, XlaExecutable, decompose, emit, lint, read_module
from neuron_port.walk.cache import kv_write, row_write

Lower = Callable[..., Any]
LIBRARY = torch.library.Library("neuron_port", "FRAGMENT")
LIBRARY.define("test_scale(Tensor x, Tensor gamma, Tensor? shift=None, *, float eps=0.5) -> Tensor")
LIBRARY.define("test_pair(Tensor x, int count) -> (Tensor, Tensor)")


def scale(
    x: torch.Tensor, gamma: torch.Tensor, shift: torch.Tensor | None = None, *, eps: float = 0.5
) -> torch.Tensor:
    return x * gamma + eps if shift is None else x * gamma + shift + eps


def pair(x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return x * count, x.sum(-1)


for name, reference in (("test_scale", scale), ("test_pair", pair)):
    LIBRARY.impl(name, reference, "CPU")
    torch.library.register_fake(f"neuron_port::{name}", reference, lib=LIBRARY)
KERNELS = {
    name: KernelCall(name=name.removeprefix("test_"), sha256="ab" * 32)
    for name in ("test_scale", "test_pair")
}
X, GAMMA = torch.rand(2, 4), torch.rand(4)


def _model(x: torch.Tensor, gamma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide, total = torch.ops.neuron_port.test_pair(torch.ops.neuron_port.test_scale(x, gamma), 3)
    return wide + 1, total


def test_kernel_becomes_a_custom_call(lower: Lower) -> None:
    """The call names the kernel's digest, its entry point and every attribute, defaults included."""
    module = read_module(lower(_model, (X, GAMMA), kernels=KERNELS).hlo)
    calls = [item for _, item in module.instructions() if item.opcode == "custom-call"]
    assert [item.attributes["custom_call_target"] for item in calls] == [
        "neuron_port.test_scale",
        "neuron_port.test_pair",
    ]
    assert {item.attributes["custom_call_api_version"] for item in calls} == {2}
    assert json.loads(calls[0].attributes["backend_config"]) == {
        "kernel": "ab" * 32,
        "entry": "scale",
        "attributes": {"eps": 0.5, "shift": None},
    }
    assert [str(shape) for shape in calls[1].shape.elements] == ["float32[2, 4]", "float32[2]"]


def test_backend_config_is_canonical(lower: Lower) -> None:
    """The configuration is JSON with sorted keys and no spaces, so that equal calls have equal bytes."""
    module = read_module(lower(_model, (X, GAMMA), kernels=KERNELS).hlo)
    call = next(item for _, item in module.instructions() if item.opcode == "custom-call")
    text = call.attributes["backend_config"].decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_optional_tensor_is_an_operand_when_given(lower: Lower) -> None:
    """An optional tensor is an operand where it is given, and null among the attributes where it is not."""
    graph = lower(
        lambda x, g: torch.ops.neuron_port.test_scale(x, g, g, eps=2.0), (X, GAMMA), kernels=KERNELS
    )
    call = next(item for _, item in read_module(graph.hlo).instructions() if item.opcode == "custom-call")
    assert len(call.operands) == 3
    assert json.loads(call.attributes["backend_config"])["attributes"] == {"eps": 2.0}


def test_unmaterialised_kernel_cannot_run(lower: Lower) -> None:
    """XLA refuses a graph whose kernels are still placeholders, and the error names them and the cure."""
    pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")
    graph = lower(_model, (X, GAMMA), kernels=KERNELS)
    with pytest.raises(LoweringError, match=r"neuron_port\.test_pair, neuron_port\.test_scale") as caught:
        XlaExecutable(graph.hlo)(X.numpy(), GAMMA.numpy())
    assert "inline_references" in str(caught.value.hint)


def test_inlined_references_run(lower: Lower) -> None:
    """With the references in their place the same program runs and equals the operators."""
    graph = lower(_model, (X, GAMMA), references={"test_scale": scale, "test_pair": pair})
    assert "custom-call" not in read_module(graph.hlo).opcodes()
    for actual, expected in zip(graph.run(X, GAMMA), _model(X, GAMMA), strict=True):
        torch.testing.assert_close(actual, expected)


def _with_references(function: Callable[..., Any], inputs: tuple[torch.Tensor, ...], lower: Lower) -> bytes:
    """The graph whose custom calls carry their references along."""
    graph = lower(function, inputs, kernels=KERNELS)
    with torch.no_grad():
        program = decompose(torch.export.export(graph.module.eval(), inputs, strict=False))
    return emit(program, graph.spec, kernels=KERNELS, references={"test_scale": scale, "test_pair": pair})


def test_a_custom_call_carries_its_reference(lower: Lower) -> None:
    """Every call names a computation that does the same, and what these call in turn is kept too."""
    module = read_module(_with_references(_model, (X, GAMMA), lower))
    calls = [item for item in module.entry.instructions if item.opcode == "custom-call"]
    by_id = {one.id: one for one in module.computations}
    for call in calls:
        (number,) = call.attributes["called_computation_ids"]
        parameters = [item.shape for item in by_id[number].parameters]
        operands = {item.id: item.shape for item in module.entry.instructions}
        assert parameters == [operands[operand] for operand in call.operands]
        assert by_id[number].root.shape == call.shape
    assert [one.name for one in module.computations][-1] == "main"
    assert "add_float32" in [one.name for one in module.computations]  # of the reference's sum


def test_equal_calls_share_one_reference(lower: Lower) -> None:
    """A kernel that is called twice on equal shapes has one computation, on other shapes another one."""

    def model(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        scale = torch.ops.neuron_port.test_scale
        return scale(scale(x, gamma), gamma) + scale(x[:1], gamma)

    module = read_module(_with_references(model, (X, GAMMA), lower))
    calls = [item for item in module.entry.instructions if item.opcode == "custom-call"]
    first, second, other = (call.attributes["called_computation_ids"] for call in calls)
    assert first == second != other


def test_references_in_place_equal_the_inlined_program(lower: Lower) -> None:
    """Settling every call by its reference computes what inlining the references in torch does."""
    pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")
    from neuron_port.build.finishing.hlo_edit import without_kernels

    twin = without_kernels(_with_references(_model, (X, GAMMA), lower))
    inlined = lower(_model, (X, GAMMA), references={"test_scale": scale, "test_pair": pair})
    for found, expected in zip(
        XlaExecutable(twin)(X.numpy(), GAMMA.numpy()), inlined.run(X, GAMMA), strict=True
    ):
        torch.testing.assert_close(torch.from_numpy(found.copy()), expected)


def test_lint_reads_the_graph_with_its_kernels(lower: Lower) -> None:
    """References that are carried along are not counted: they are not compiled when the kernels are."""
    report = lint(_with_references(_model, (X, GAMMA), lower), "trn2")
    assert "multiply" not in report.opcodes
    assert report.kernel_calls == {"neuron_port.test_pair": 1, "neuron_port.test_scale": 1}


def test_operator_without_kernel_or_reference_is_refused(lower: Lower) -> None:
    """A custom operator that is neither a kernel nor inlined is refused by name."""
    with pytest.raises(LoweringError, match="`neuron_port::test_scale` has no kernel"):
        lower(_model, (X, GAMMA))


def test_unknown_reference_is_refused(lower: Lower) -> None:
    """A reference for an operator that nobody defined is a mistake of the caller."""
    with pytest.raises(LoweringError, match="Unknown operator: `neuron_port::never_defined`"):
        lower(_model, (X, GAMMA), references={"never_defined": scale})


@pytest.mark.parametrize(("batch", "axis"), [(1, 2), (1, 3), (3, 2), (3, 3)])
def test_cache_write_is_a_slice_update(batch: int, axis: int, lower: Lower) -> None:
    """Each row of the batch is written at its own position by one dynamic-update-slice; nothing scatters."""
    shape = [batch, 2, 6, 6]
    cache = torch.rand(shape)
    shape[axis] = 2
    new = torch.rand(shape)
    positions = torch.tensor([3, 0, 4][:batch], dtype=torch.int32)
    graph = lower(
        lambda cache, new, positions: kv_write(cache, new, positions, axis),
        (cache, new, positions),
        states={0: "cache"},
    )
    opcodes = read_module(graph.hlo).opcodes()
    assert opcodes["dynamic-update-slice"] == batch
    assert "scatter" not in opcodes
    (written,) = graph.run(cache, new, positions)
    assert torch.equal(written, kv_write(cache, new, positions, axis))


def test_a_cache_that_is_written_whole_is_what_is_new(lower: Lower) -> None:
    """New keys from the first slot to the last are the cache: nothing of the old one is read or updated."""
    cache, new = torch.rand(1, 2, 4, 6), torch.rand(1, 2, 4, 6)
    positions = torch.zeros(1, dtype=torch.int32)
    graph = lower(
        lambda cache, new, positions: kv_write(cache, new, positions, 3),
        (cache, new, positions),
        states={0: "cache"},
    )
    assert "dynamic-update-slice" not in read_module(graph.hlo).opcodes()
    assert torch.equal(graph.run(cache, new, positions)[0], new)


@pytest.mark.parametrize("shape", [(1, 2, 6, 5), (1, 2, 6, 3), (1, 2, 4, 5)])
@pytest.mark.parametrize("slot", [0, 2])
def test_a_row_is_one_slice_update(shape: tuple[int, ...], slot: int, lower: Lower) -> None:
    """One row of a batch, or its beginning, is written by one dynamic-update-slice; nothing selects or scatters."""
    state, row = torch.rand(3, 2, 6, 5), torch.rand(shape)
    given = (state, row, torch.tensor([slot], dtype=torch.int32))
    graph = lower(lambda state, row, slot: row_write(state, row, slot), given, states={0: "state"})
    opcodes = read_module(graph.hlo).opcodes()
    assert opcodes["dynamic-update-slice"] == 1
    assert not {"scatter", "select"} & set(opcodes)
    (written,) = graph.run(*given)
    assert torch.equal(written, row_write(*given))
    others = [number for number in range(3) if number != slot]
    assert torch.equal(written[others], state[others])
    assert torch.equal(written[slot][:, : shape[2], : shape[3]], row[0])
    assert torch.equal(written[slot][:, shape[2] :], state[slot][:, shape[2] :])
    assert torch.equal(written[slot][:, :, shape[3] :], state[slot][:, :, shape[3] :])


@pytest.mark.parametrize(
    ("row", "said"),
    [(torch.rand(1, 2, 6, 6), "none of a state of shape"), (torch.rand(2, 2, 6, 5), "none of a state of shape"),
     (torch.rand(1, 2, 6, 5).bfloat16(), "of torch.bfloat16 is none of a state of torch.float32")],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_refused(row: torch.Tensor, said: str, lower: Lower) -> None:
    """A row that is longer than the state's, more than one row, or of another dtype cannot be exported."""
    with pytest.raises(Exception, match=said):
        lower(
            lambda state, row, slot: row_write(state, row, slot),
            (torch.rand(3, 2, 6, 5), row, torch.zeros(1, dtype=torch.int32)),
            states={0: "state"},
        )
