"""What a kernel executed: one slotted record per instruction, and totals derived from them."""

from __future__ import annotations

import math
from collections import Counter
from enum import Enum
from types import CodeType
from typing import Any, NamedTuple

from neuron_port.simulator.dtypes import DType
from neuron_port.simulator.errors import location_of
from neuron_port.simulator.memory import Allocation, MemoryRegion


class engine(Enum):  # noqa: N801 - AWS's name
    """The engines of a NeuronCore; names and values are AWS's."""

    unknown = 0
    tensor = 1
    scalar = 2
    gpsimd = 3
    dma = 4
    vector = 5
    sync = 6


class Operand(NamedTuple):
    """One tensor that an instruction read or wrote, as it was then; no data is kept.

    Strides and offset are in bytes of the array that holds it, whose elements take `held_bytes` (16-bit floats
    are held in four); the properties are in bytes of the declared dtype.
    """

    allocation: Allocation
    shape: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    offset_bytes: int
    held_bytes: int
    dtype: DType
    start_partition: int

    @property
    def on_chip(self) -> bool:
        """Whether dimension 0 counts partitions."""
        return self.allocation.buffer in ON_CHIP

    @property
    def partitions(self) -> int:
        """Partitions that it covers; 1 in HBM."""
        return self.shape[0] if self.on_chip else 1

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def elements_per_partition(self) -> int:
        """Number of elements for each partition; all of them in HBM."""
        return math.prod(self.shape[1:]) if self.on_chip else math.prod(self.shape)

    @property
    def bytes_per_partition(self) -> int:
        """Bytes of data for each partition; all of them in HBM."""
        return self.elements_per_partition * self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements between neighbours, for each dimension."""
        return tuple(stride // self.held_bytes for stride in self.strides_bytes)

    @property
    def byte_range(self) -> tuple[int, int]:
        """[first, end) of the bytes that it spans: within a partition on chip, within the tensor in HBM."""
        first = self.offset_bytes
        shape, strides = self.shape, self.strides_bytes
        if self.on_chip:
            partition_bytes = math.prod(self.allocation.shape[1:]) * self.allocation.dtype.itemsize
            first = first // self.held_bytes * self.dtype.itemsize % partition_bytes
            shape, strides = shape[1:], strides[1:]
        else:
            first = first // self.held_bytes * self.dtype.itemsize
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        return first, first + (last // self.held_bytes + 1) * self.dtype.itemsize

    @property
    def region(self) -> tuple[int, int, int, int]:
        """(first partition, end partition, first byte, end byte): the box that it spans."""
        first, end = self.byte_range
        return self.start_partition, self.start_partition + self.partitions, first, end


ON_CHIP = (MemoryRegion.sbuf, MemoryRegion.psum)
NO_ATTRIBUTES: dict[str, Any] = {}
# What record() keeps of a tensor: its allocation alone when it is all of it, else the fields of an Operand.
Recorded = Allocation | tuple[Any, ...]


class NkiInstruction:
    """One executed instruction. It is also what every `nki.isa` function returns to the kernel.

    The first `writes` operands are destinations; `attributes` are facts for the latency model that operands do
    not show (operators, tables, modes).
    """

    __slots__ = (
        "attributes",
        "code",
        "dependencies",
        "dma_bytes",
        "engine",
        "index",
        "line",
        "macs",
        "name",
        "opcode",
        "recorded",
        "writes",
    )

    def __init__(
        self,
        index: int,
        opcode: str,
        on: engine,
        code: CodeType | None,
        line: int,
        recorded: list[Recorded],
        name: str | None,
        writes: int,
        macs: int,
        dma_bytes: int,
        attributes: dict[str, Any],
    ) -> None:
        self.index = index
        self.opcode = opcode
        self.engine = on
        self.code = code
        self.line = line
        self.recorded = recorded
        self.name = name
        self.writes = writes
        self.macs = macs
        self.dma_bytes = dma_bytes
        self.attributes = attributes
        self.dependencies: tuple[NkiInstruction, ...] = ()

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Destinations first, then sources."""
        return tuple(map(_operand_of, self.recorded))

    def depends_on(self, *producers: NkiInstruction) -> NkiInstruction:
        """Ask for an order that the data does not show; recorded for the timeline."""
        self.dependencies += producers
        return self

    @property
    def location(self) -> str:
        """`file:line` of the kernel."""
        return location_of(self.code, self.line)

    def __repr__(self) -> str:
        operands = ", ".join(f"{o.allocation.name}{tuple(o.shape)}:{o.dtype}" for o in self.operands)
        return f"{self.opcode}[{self.engine.name}]({operands}) at {self.location}"


def _operand_of(recorded: Recorded) -> Operand:
    """The full record of a tensor; a whole allocation is contiguous."""
    if not isinstance(recorded, Allocation):
        return Operand(*recorded)
    itemsize = recorded.held_bytes
    strides = [itemsize]
    for size in reversed(recorded.shape[1:]):
        strides.append(strides[-1] * size)
    return Operand(
        recorded,
        recorded.shape,
        tuple(reversed(strides)),
        0,
        itemsize,
        recorded.dtype,
        recorded.start_partition,
    )


class LoopIteration(NamedTuple):
    """One pass through the body of a hardware loop; the ends are exclusive indices into the trace's lists."""

    loop: int  # number of the loop's execution within the run
    first_instruction: int
    end_instruction: int
    first_allocation: int
    end_allocation: int


class Trace:
    """The instructions of one run in program order, with the hardware loops and no_reorder blocks they ran in."""

    __slots__ = ("allocations", "instructions", "iterations", "ordered_blocks")

    def __init__(self) -> None:
        self.instructions: list[NkiInstruction] = []
        self.allocations: list[Allocation] = []
        self.iterations: list[LoopIteration] = []
        self.ordered_blocks: list[tuple[int, int]] = []  # [first, end) instructions of nl.no_reorder blocks

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
