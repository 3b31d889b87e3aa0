"""Constants that torch numbers anew when it decomposes a program are known by their content."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuron_port.errors import LoweringError
from neuron_port.lower import XlaExecutable, decompose, emit
from neuron_port.types import GraphInput, GraphOutput, GraphSpec, TensorSpec
from neuron_port.walk.calls import content_name

A_20_20, B_400 = torch.randn(20, 20), torch.randn(400)


class TwoTables(torch.nn.Module):
    """Reads two tables that are neither parameters nor buffers, each too large for a literal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = A_20_20, B_400

    def forward(self, x_20: torch.Tensor) -> torch.Tensor:
        return self.a @ x_20 + self.b[:20]


def spec_of_tables(*sources: tuple[str, torch.Tensor]) -> GraphSpec:
    """The interface: the tables in the order given, then x."""
    tables = [
        GraphInput(
            name=f"table{number}",
            role="weight",
            source=source,
            spec=TensorSpec(shape=tuple(table.shape), dtype="float32"),
        )
        for number, (source, table) in enumerate(sources)
    ]
    vector = TensorSpec(shape=(20,), dtype="float32")
    return GraphSpec(
        id="forward_b1_s20", phase="forward", batch=1, sequence_length=20, cache_length=0,
        inputs=(*tables, GraphInput(name="x", role="input", spec=vector)),
        outputs=(GraphOutput(name="y", role="output", spec=vector),),
    )  # fmt: skip


def by_content(table: torch.Tensor) -> tuple[str, torch.Tensor]:
    return f"derived:model.{content_name(table)}", table


@pytest.mark.parametrize("order", [(A_20_20, B_400), (B_400, A_20_20)], ids=["as exported", "the other way"])
def test_tables_are_found_by_content(order):
    """Whatever order the interface has, each parameter is the table that its source names, and in its place."""
    program = decompose(torch.export.export(TwoTables(), (torch.zeros(20),), strict=False))
    graph = XlaExecutable(emit(program, spec_of_tables(*map(by_content, order)), kernels={}))
    assert list(graph.inputs) == ["table0", "table1", "x"]
    x_20 = torch.randn(20)
    (y_20,) = graph(*(table.numpy() for table in order), x_20.numpy())
    np.testing.assert_allclose(y_20, TwoTables()(x_20).numpy(), atol=1e-5)


def test_tables_without_a_content_name_go_by_order():
    """An interface that names no content is read in the program's order, and a wrong order is refused by shape."""
    program = decompose(torch.export.export(TwoTables(), (torch.zeros(20),), strict=False))
    with pytest.raises(LoweringError, match=r"`table0` is declared float32\[400\]"):
        emit(program, spec_of_tables(("derived:b", B_400), ("derived:a", A_20_20)), kernels={})
