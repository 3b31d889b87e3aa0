"""Settling kernel calls in HLO bytes: a native kernel, or its reference, for each call by itself."""

from __future__ import annotations

import base64
import dataclasses
from collections import Counter

import numpy as np
import pytest
from tiny_graph import H, N, T, graph_bytes

from neuron_port.build.finishing.hlo import HloError, entry_parameters, placeholders
from neuron_port.build.finishing.hlo_edit import settle, single_call, without_kernels
from neuron_port.lower import XlaExecutable, read_module

CONFIG = base64.b64encode(b'{"func_name": "rms_norm"}')
INPUTS = (np.ones((T, H), "f4"), np.full(H, 2, "f4"), np.ones((H, N), "f4"), np.zeros((T, N), "f4"))


def test_a_native_kernel_names_its_compiled_file_and_nothing_else_changes() -> None:
    """Settling changes a call's target and configuration and drops its reference; all else stays."""
    module = graph_bytes(kernel="rms_norm")
    (call,) = placeholders(module)
    assert [shape.dimensions for shape in call.inputs] == [(2, 4), (4,)]
    assert call.attributes == {"eps": 1e-5, "bias": None}
    changed = settle(module, {call.instruction.id: CONFIG})
    assert placeholders(changed) == []
    assert b"neuron_port.rms_norm" not in changed
    assert entry_parameters(changed) == entry_parameters(module)
    before, after = read_module(module), read_module(changed)
    assert [one.name for one in after.computations] == ["main"]
    pairs = zip(before.entry.instructions, after.entry.instructions, strict=True)
    ((old, new),) = [(old, new) for old, new in pairs if old != new]
    kept = {key: value for key, value in old.attributes.items() if key != "called_computation_ids"}
    settled = {"custom_call_target": "AwsNeuronCustomNativeKernel", "backend_config": CONFIG}
    assert dataclasses.replace(old, attributes=kept | settled) == new
    assert before.aliases == after.aliases


@pytest.mark.parametrize("native", [(), ("rms_norm",), ("scale", "rope"), ("rms_norm", "scale", "rope")])
def test_every_call_is_settled_by_itself(native: tuple[str, ...]) -> None:
    """Of three calls the named ones become native kernels and the others their reference; ids stay unique."""
    module = graph_bytes(kernel="rms_norm", others=("scale", "rope"))
    ids = {call.instruction.id: CONFIG for call in placeholders(module) if call.kernel in native}
    settled = read_module(settle(module, ids))
    opcodes = settled.opcodes()
    assert opcodes.get("custom-call", 0) == len(native)
    assert opcodes.get("multiply", 0) == 3 - len(native)
    counts = Counter(item.id for _, item in settled.instructions())
    assert max(counts.values()) == 1
    assert len({item.name for _, item in settled.instructions()}) == len(counts)


def test_without_kernels_the_graph_runs() -> None:
    """With all three references in place XLA executes the graph, and the result is that of the references."""
    twin = without_kernels(graph_bytes(kernel="rms_norm", others=("scale", "rope")))
    y, cache = XlaExecutable(twin)(*INPUTS)
    assert np.array_equal(y, np.full((T, N), 8 * H, "f4"))
    assert np.array_equal(cache, np.ones((T, N), "f4"))


def test_settling_nothing_changes_nothing() -> None:
    """A graph without placeholders keeps its bytes."""
    twin = graph_bytes(kernel=None)
    assert without_kernels(twin) == twin


def test_one_call_becomes_a_graph_of_its_own() -> None:
    """The graph of one call has its operands as parameters, named results in a tuple, and nothing else."""
    module = graph_bytes(kernel="rms_norm", others=("scale",))
    alone = read_module(single_call(module, placeholders(module)[1].instruction, CONFIG))
    assert alone.opcodes() == {"custom-call": 1, "parameter": 2, "tuple": 1}
    assert (alone.input_names, alone.output_names) == (("p0", "p1"), ("result",))
    assert [item.shape.dimensions for item in alone.entry.parameters] == [(T, H), (H,)]


def test_a_placeholder_without_a_reference_is_refused() -> None:
    """What has neither a kernel nor a reference cannot be settled, and is named."""
    module = read_module(graph_bytes(kernel="rms_norm"))
    body = [
        dataclasses.replace(
            item, attributes={k: v for k, v in item.attributes.items() if k != "called_computation_ids"}
        )
        for item in module.entry.instructions
    ]
    bare = dataclasses.replace(
        module, computations=(dataclasses.replace(module.entry, instructions=tuple(body)),)
    )
    with pytest.raises(HloError, match=r"`neuron_port.rms_norm`, for which the graph has no reference"):
        without_kernels(bare.to_bytes())


def test_bytes_that_are_no_hlo_are_refused() -> None:
    """A truncated module raises, instead of being read as a shorter one."""
    with pytest.raises(HloError):
        placeholders(graph_bytes(kernel="rms_norm")[:-5])
