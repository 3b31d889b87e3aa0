"""What a kernel executed: one slotted record per instruction, and totals derived from them."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from types import CodeType
from typing import Any

from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import location_of
from neuron_port.simulator.memory import Allocation


class engine(Enum):  # noqa: N801 - AWS's name
    """The engines of a NeuronCore; names and values are AWS's."""

    unknown = 0
    tensor = 1
    scalar = 2
    gpsimd = 3
    dma = 4
    vector = 5
    sync = 6


Operand = tuple[
    Allocation, tuple[int, ...], DType, int
]  # allocation, shape of the view, dtype, start partition


class NkiInstruction:
    """One executed instruction. It is also what every `nki.isa` function returns to the kernel."""

    __slots__ = (
        "code",
        "dependencies",
        "dma_bytes",
        "engine",
        "index",
        "line",
        "macs",
        "name",
        "opcode",
        "operands",
    )

    def __init__(
        self,
        index: int,
        opcode: str,
        on: engine,
        code: CodeType | None,
        line: int,
        operands: list[Operand],
        name: str | None,
        macs: int,
        dma_bytes: int,
    ) -> None:
        self.index = index
        self.opcode = opcode
        self.engine = on
        self.code = code
        self.line = line
        self.operands = operands
        self.name = name
        self.macs = macs
        self.dma_bytes = dma_bytes
        self.dependencies: tuple[NkiInstruction, ...] = ()

    def depends_on(self, *producers: NkiInstruction) -> NkiInstruction:
        """Ask for an order that the data does not show; recorded for the timeline."""
        self.dependencies += producers
        return self

    @property
    def location(self) -> str:
        """`file:line` of the kernel."""
        return location_of(self.code, self.line)

    def __repr__(self) -> str:
        operands = ", ".join(f"{a.name}{tuple(shape)}:{dtype}" for a, shape, dtype, _ in self.operands)
        return f"{self.opcode}[{self.engine.name}]({operands}) at {self.location}"


class Trace:
    """The instructions of one run in program order."""

    __slots__ = ("allocations", "instructions")

    def __init__(self) -> None:
        self.instructions: list[NkiInstruction] = []
        self.allocations: list[Allocation] = []

    def __len__(self) -> int:
        return len(self.instructions)

    def __iter__(self) -> Any:
        return iter(self.instructions)

    def counts_by_opcode(self) -> Counter[str]:
        """Number of executed instructions for each opcode."""
        return Counter(instruction.opcode for instruction in self.instructions)

    def counts_by_engine(self) -> Counter[str]:
        """Number of executed instructions for each engine."""
        return Counter(instruction.engine.name for instruction in self.instructions)

    @property
    def matmul_macs(self) -> int:
        """Multiply-accumulates of all matmuls."""
        return sum(instruction.macs for instruction in self.instructions)

    @property
    def dma_bytes(self) -> int:
        """Bytes written by all DMA transfers."""
        return sum(instruction.dma_bytes for instruction in self.instructions)
