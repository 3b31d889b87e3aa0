"""The lint: sizes that it counts, refusals that it predicts, and nothing on a clean graph."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_port.errors import UsageError
from neuron_port.lower import KernelCall, lint
from neuron_port.lower.module import Computation, Instruction, Module, Shape
from neuron_port.types import to_json

Lower = Callable[..., Any]
ROOT = Path(__file__).parents[2]


def _graph(*instructions: Instruction, before: tuple[Computation, ...] = ()) -> bytes:
    root = instructions[-1]
    return Module("made", (*before, Computation(99, "main", root.id, instructions)), 99).to_bytes()


def _parameter(number: int, dtype: str, *dimensions: int) -> Instruction:
    return Instruction(number, "parameter", Shape(dtype, dimensions), (), {"parameter_number": number - 1})


ADD_INT = Computation(
    53,
    "add_int32",
    52,
    (_parameter(50, "int32"), _parameter(51, "int32"), Instruction(52, "add", Shape("int32"), (50, 51))),
)
DOT = {"dot_dimension_numbers": {"lhs_contracting_dimensions": [1], "rhs_contracting_dimensions": [0]}}


def test_clean_graph_has_no_findings(lower: Lower) -> None:
    """A linear layer passes, with its products, weights, states and results counted."""
    graph = lower(
        lambda x, w, cache: (x @ w, cache * 2),
        (torch.rand(3, 8), torch.rand(8, 5), torch.rand(4)),
        states={1: "cache"},
    )
    inputs = tuple(replace(item, role="weight") if item.name == "w" else item for item in graph.spec.inputs)
    report = lint(graph.hlo, "trn2", replace(graph.spec, inputs=inputs))
    assert report.passed
    assert report.flops == 2 * 3 * 8 * 5
    assert (report.weight_bytes, report.state_bytes, report.input_bytes) == (160, 16, 96)
    assert report.output_bytes == 60
    assert report.opcodes["dot"] == 1


def test_report_is_json(lower: Lower) -> None:
    """The report of any graph serialises, with what it does not predict."""
    report = lint(lower(lambda x: x.sort().values, (torch.rand(5000),)).hlo, "inf2")
    data = json.loads(json.dumps(to_json(report)))
    assert data["findings"][0]["code"] == "NCC_EVRF001"
    assert data["not_predicted"]


def test_placeholders_are_counted_not_refused(lower: Lower) -> None:
    """A kernel that is still to be materialised is listed apart; the graph passes."""
    library = torch.library.Library("neuron_port", "FRAGMENT")
    library.define("test_lint(Tensor x) -> Tensor")
    torch.library.register_fake("neuron_port::test_lint", torch.empty_like, lib=library)
    library.impl("test_lint", torch.clone, "CPU")
    kernels = {"test_lint": KernelCall(name="k", sha256="0" * 64)}
    graph = lower(lambda x: torch.ops.neuron_port.test_lint(x), (torch.rand(4),), kernels=kernels)
    report = lint(graph.hlo, "trn1")
    assert report.kernel_calls == {"neuron_port.test_lint": 1}
    assert report.passed


CASES = {
    "NCC_EVRF062": _graph(_parameter(1, "int64", 2)),
    "NCC_EVRF004": _graph(_parameter(1, "complex64", 2)),
    "NCC_ESPP004": _graph(_parameter(1, "float64", 2)),
    "NCC_EVRF051": _graph(_parameter(1, "float8_e4m3fn", 2)),
    "NCC_EVRF001": _graph(
        _parameter(1, "float32", 2), Instruction(2, "cholesky", Shape("float32", (2,)), (1,))
    ),
    "NCC_EVRF015": _graph(
        _parameter(1, "float32", 2),
        Instruction(2, "custom-call", Shape("float32", (2,)), (1,), {"custom_call_target": "Mystery"}),
    ),
    "NCC_EVRF013": _graph(
        _parameter(1, "int32", 2),
        Instruction(2, "custom-call", Shape("int32", (2,)), (1,), {"custom_call_target": "AwsNeuronTopK"}),
    ),
    "NCC_EVRF035": _graph(
        _parameter(1, "int32", 2, 2), Instruction(2, "dot", Shape("int32", (2, 2)), (1, 1), DOT)
    ),
    "NCC_EVRF016": _graph(
        _parameter(1, "int32", 2),
        Instruction(2, "scatter", Shape("int32", (2,)), (1, 1, 1), {"called_computation_ids": [53]}),
        before=(ADD_INT,),
    ),
    "NCC_EVRF056": _graph(
        _parameter(1, "float32", 4, 8),
        Instruction(2, "iota", Shape("int32", (6,)), (), {"dimensions": [0]}),
        Instruction(
            3,
            "gather",
            Shape("float32", (6, 8)),
            (1, 2),
            {"gather_dimension_numbers": {"start_index_map": [0]}},
        ),
    ),
    "NCC_EVRF009": _graph(_parameter(1, "float32", 1 << 33)),
    "HLO_ID": _graph(Instruction(2**31, "parameter", Shape("float32"))),
    "HLO_LITERAL": _graph(
        Instruction(1, "constant", Shape("float32", (257,)), (), {"literal": {"f32s": bytes(4 * 257)}})
    ),
    "HLO_INFINITY": _graph(
        Instruction(1, "constant", Shape("bfloat16"), (), {"literal": {"bf16s": b"\x80\xff"}})
    ),
}


@pytest.mark.parametrize("code", CASES)
def test_refusal_is_predicted(code: str) -> None:
    """One graph for each code: exactly this code is predicted, with a cause, a cure and a place."""
    report = lint(CASES[code], "trn2")
    assert [finding.code for finding in report.findings] == [code]
    finding = report.findings[0]
    assert finding.cause
    assert finding.cure
    assert finding.first


def test_dynamic_dimension_is_predicted() -> None:
    """A dimension marked dynamic, as other emitters write it, is found."""
    static = _graph(_parameter(1, "float32", 2))
    dynamic = static.replace(b"\x32\x01\x00", b"\x32\x01\x01")
    assert dynamic != static
    assert lint(static, "trn2").passed
    assert [finding.code for finding in lint(dynamic, "trn2").findings] == ["NCC_EMOD025"]


def test_integer_products_are_allowed_on_gen2() -> None:
    """NeuronCore-v2 multiplies integers; only v3 refuses."""
    assert lint(CASES["NCC_EVRF035"], "trn1").passed


def test_equal_findings_are_counted_once() -> None:
    """Many places with one cause are one finding with a count."""
    hlo = _graph(_parameter(1, "float64", 2), Instruction(2, "negate", Shape("float64", (2,)), (1,)))
    assert [finding.count for finding in lint(hlo, "inf2").findings] == [2]


def test_unknown_target_is_refused() -> None:
    """A misspelt target is a mistake of usage."""
    with pytest.raises(UsageError, match="Unknown target: `trn9`"):
        lint(_graph(_parameter(1, "float32")), "trn9")


def test_linting_needs_no_torch() -> None:
    """A graph is read and linted without loading torch or jaxlib: the fake compiler starts at once."""
    script = (
        "import sys; from neuron_port.lower import lint, read_module; lint, read_module;"
        "print({'torch', 'jaxlib'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "set()"
