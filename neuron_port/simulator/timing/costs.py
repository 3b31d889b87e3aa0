"""Cost of one instruction on a compute engine: how long it occupies it, and when its result is visible.

Costs depend on shapes, dtypes, strides and memories alone, so they are looked up by those after the first time.
N = elements per partition. Sources are those of constants.py; rules without a remark are in isa26.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from neuron_port.simulator.memory import Allocation, MemoryRegion
from neuron_port.simulator.target import Target
from neuron_port.simulator.timing.constants import Costs
from neuron_port.simulator.trace import NkiInstruction, Operand, engine

PSUM = MemoryRegion.psum
SBUF = MemoryRegion.sbuf
Time = tuple[float, float]  # (occupied ns, ns until visible)

TWO_INPUTS = frozenset({"tensor_tensor", "scalar_tensor_tensor", "tensor_copy_predicated", "select_reduce"})
COPIES = frozenset({"tensor_copy", "tensor_scalar"})
FOUR_PER_CYCLE = frozenset({"exponential", "quantize_mx", "rand2"})  # trainium3_arch.rst
# What ScalarE can do of tensor_scalar: (op0, op1), out = data * scale + bias (nki.isa.tensor_scalar, engine).
SCALE_AND_BIAS = frozenset({("multiply", None), ("add", None), ("multiply", "add")})
READS_ACCUMULATOR = frozenset({"activation", "activation_reduce", "activate2", "tensor_scalar_reduce"})


class Cost(NamedTuple):
    """What one instruction takes of its engine and of the memories on chip."""

    occupied_ns: float  # until the engine takes the next one
    latency_ns: float  # until others see the result
    elements: int  # of its largest operand
    on_chip_bytes: int  # read and written in SBUF and PSUM
    locks: tuple[str, ...]  # memories that it keeps other engines out of


class CostModel:
    """Costs of the instructions of one generation, remembered by what they depend on."""

    def __init__(self, target: Target, costs: Costs) -> None:
        self.target = target
        self.costs = costs
        self._known: dict[object, Cost] = {}
        self._models: dict[engine, Callable[[NkiInstruction], Time]] = {
            engine.tensor: self._tensor,
            engine.vector: self._vector,
            engine.scalar: self._scalar,
            engine.gpsimd: self._gpsimd,
        }

    def cost(self, instruction: NkiInstruction, on: engine | None = None) -> Cost:
        """The cost of an instruction that is no DMA transfer, on its engine or on another one."""
        on = on or instruction.engine
        attributes = instruction.attributes
        key = (
            instruction.opcode,
            on,
            instruction.writes,
            *[
                (r.shape, r.dtype, r.buffer) if isinstance(r, Allocation) else (r[1], r[2], r[5], r[0].buffer)
                for r in instruction.recorded
            ],
            repr(attributes) if attributes else None,
        )
        known = self._known.get(key)
        if known is None:
            model = self._models.get(on, self._sequencer)
            if instruction.opcode == "core_barrier":
                model = self._barrier
            occupied, latency = model(instruction)
            operands = instruction.operands
            known = self._known[key] = Cost(
                occupied,
                latency,
                max((o.elements for o in operands), default=0),
                sum(o.elements * o.dtype.itemsize for o in operands if o.on_chip),
                self._locks(on, {o.allocation.buffer for o in operands}),
            )
        return known

    def _locks(self, on: engine, memories: set[MemoryRegion]) -> tuple[str, ...]:
        """The memories that an instruction on that engine keeps other engines out of (NeuronCore-v2)."""
        locks: tuple[str, ...] = ()
        if (
            self.target.vector_excludes_gpsimd_in_sbuf
            and on in (engine.vector, engine.gpsimd)
            and SBUF in memories
        ):
            locks = ("sbuf",)
        if (
            self.target.vector_excludes_scalar_in_psum
            and on in (engine.vector, engine.scalar)
            and PSUM in memories
        ):
            locks += ("psum",)
        return locks

    def scales_on_scalar(self, instruction: NkiInstruction) -> bool:
        """Whether the compiler runs this tensor_scalar of VectorE on ScalarE: it may, it can, and it is faster."""
        attributes = instruction.attributes
        return (
            self.target.vector_elements_per_cycle == 1
            and "any_engine" in attributes
            and (attributes["op"], attributes["op1"]) in SCALE_AND_BIAS
        )

    # ---- engines --------------------------------------------------------------------------------------------

    def _vector(self, instruction: NkiInstruction) -> Time:
        cycles = self._vector_cycles(instruction)
        return self._elementwise(
            instruction,
            cycles,
            self.target.vector_clock_ghz,
            self.costs.vector_fixed_cycles,
            self.costs.vector_latency_cycles,
        )

    def _scalar(self, instruction: NkiInstruction) -> Time:
        operands = instruction.operands
        elements = widest(operands)
        if instruction.opcode in COPIES and all(o.dtype.itemsize == 2 for o in operands[:2]):
            elements /= self.target.scalar_elements_per_cycle_16bit
        return self._elementwise(
            instruction,
            elements * self._stride_factor(operands),
            self.target.scalar_clock_ghz,
            self.costs.scalar_fixed_cycles,
            self.costs.scalar_latency_cycles,
        )

    def _elementwise(
        self, instruction: NkiInstruction, cycles: float, clock_ghz: float, fixed: int, latency: int
    ) -> Time:
        if instruction.opcode in READS_ACCUMULATOR and instruction.writes > 1:
            cycles += self.costs.read_accumulator_cycles
        if instruction.attributes.get("dynamic"):
            cycles = max(cycles, self.costs.dynamic_address_cycles)
        return max(cycles + fixed, self.costs.minimum_cycles) / clock_ghz, (cycles + latency) / clock_ghz

    def _gpsimd(self, instruction: NkiInstruction) -> Time:
        cycles = self.costs.gpsimd_start_cycles + gpsimd_cycles(instruction)
        return cycles / self.target.gpsimd_clock_ghz, cycles / self.target.gpsimd_clock_ghz

    def _sequencer(self, instruction: NkiInstruction) -> Time:
        return self.costs.trigger_ns, self.costs.trigger_ns

    def _barrier(self, instruction: NkiInstruction) -> Time:
        return self.costs.trigger_ns, self.costs.barrier_ns

    def _tensor(self, instruction: NkiInstruction) -> Time:
        """max(min(64, M), N) cycles for each pass; LoadStationary runs behind the previous matmul (arch2)."""
        operands = instruction.operands
        attributes = instruction.attributes
        if instruction.opcode == "nc_transpose":
            data = operands[1]
            columns, rows_out = data.partitions, data.elements_per_partition
        else:
            columns, rows_out = operands[2].elements_per_partition, operands[1].elements_per_partition
        if "double_row" in str(attributes.get("perf_mode", "")):
            columns, rows_out = columns // 2, rows_out // 2
        passes = self._passes(instruction, operands)
        interval = max(columns, min(self.costs.minimum_cycles, rows_out))
        load = rows_out / self.costs.stationary_speedup
        cycles = passes * max(interval, load)
        if attributes.get(
            "tile_size"
        ):  # row and column tiles of the array run beside each other (arch2, arch3)
            cycles *= math.prod(attributes["tile_size"]) / 128**2
        occupied = cycles / self.target.tensor_effective_clock_ghz
        return occupied, occupied + self.costs.tensor_fill_ns

    def _passes(self, instruction: NkiInstruction, operands: tuple[Operand, ...]) -> int:
        if not any(o.dtype == "float32" for o in operands[1:3]):
            return 1
        if instruction.opcode == "nc_transpose" or instruction.attributes.get("is_transpose"):
            return self.costs.passes_float32_transpose
        onezero = instruction.attributes.get("onezero")
        return self.costs.passes_float32_onezero if onezero else self.costs.passes_float32

    # ---- VectorE --------------------------------------------------------------------------------------------

    def _vector_cycles(self, instruction: NkiInstruction) -> float:
        """Cycles of work: N, 2N or a fraction, by instruction, dtypes and memories."""
        operands = instruction.operands
        opcode = instruction.opcode
        elements = widest(operands)
        if opcode == "bn_aggr":
            return 13 * elements / 3
        if opcode == "tensor_tensor_scan":
            return 2 * elements
        if opcode in FOUR_PER_CYCLE:
            return elements / 4
        factor = self._stride_factor(operands)
        if opcode in COPIES:
            return elements * factor / self._copy_rate(operands)
        if opcode in TWO_INPUTS:
            return elements * factor * self._two_input_cycles(instruction, operands)
        if opcode == "memset" and operands[0].dtype.itemsize == 2:
            return elements * factor / 2
        if opcode == "tensor_reduce" and self.target.generation == 2:
            halves = all(o.dtype == "bfloat16" for o in operands)
            if halves and instruction.attributes.get("op") in ("add", "maximum"):
                return elements * factor / 2
        if opcode == "reciprocal":
            return elements * factor * self.costs.reciprocal_cycles
        return elements * factor

    def _copy_rate(self, operands: tuple[Operand, ...]) -> int:
        """Elements per cycle of tensor_copy and tensor_scalar (arch3, performance mode; opt for float32)."""
        if self.target.generation == 2:
            return 1
        fast_sizes = (1, 2) if self.target.generation >= 4 else (2,)
        sides = operands[:2]
        narrow = all(o.dtype.itemsize in fast_sizes and not o.dtype.is_integer for o in sides)
        in_psum = any(o.allocation.buffer is PSUM for o in sides)
        contiguous = all(innermost_stride(o) <= 1 for o in sides)
        if in_psum:
            return 2 if narrow and contiguous else 1
        if narrow:
            return self.target.vector_elements_per_cycle_16bit if contiguous else 2
        return self.target.vector_elements_per_cycle if contiguous else 1

    def _two_input_cycles(self, instruction: NkiInstruction, operands: tuple[Operand, ...]) -> float:
        """Cycles per element of an instruction with two input tiles."""
        tiles = [o for o in operands[instruction.writes :] if o.elements_per_partition > 1]
        memories = {o.allocation.buffer for o in tiles}
        if len(tiles) < 2 or len(memories) == 2:
            return 1
        if self.target.generation == 2:
            narrow = all(o.dtype == "bfloat16" for o in (operands[0], *tiles))
            simple = instruction.attributes.get("op") in ("add", "multiply", "subtract")
            return 1 if narrow and simple and SBUF in memories else 2
        # NeuronCore-v3 reads 8 bytes per partition and cycle (4 of 16 bits, 2 of 32: arch3), from two tiles.
        if instruction.opcode == "tensor_tensor" and all(
            o.dtype.itemsize == 2 for o in (operands[0], *tiles)
        ):
            return 0.5
        return 1

    def _stride_factor(self, operands: tuple[Operand, ...]) -> int:
        wide = any(
            o.on_chip and innermost_stride(o) * o.dtype.itemsize > self.costs.wide_stride_bytes
            for o in operands
        )
        return 2 if wide else 1


def widest(operands: Iterable[Operand]) -> float:
    """N of the instruction: that of its widest tile."""
    return float(max((o.elements_per_partition for o in operands), default=1))


def innermost_stride(operand: Operand) -> int:
    """Elements from one element of a partition to the next; 0 for a broadcast, 1 for a single element."""
    strides = operand.strides
    for axis in range(len(operand.shape) - 1, 0, -1):
        if operand.shape[axis] > 1:
            return abs(strides[axis])
    return 1


def gpsimd_cycles(instruction: NkiInstruction) -> float:
    """Cycles of work on GpSimdE beyond its start."""
    operands = instruction.operands
    opcode = instruction.opcode
    elements = widest(operands)
    if opcode == "topk":
        return 4 * float(instruction.attributes.get("n", elements)) + operands[0].elements_per_partition
    if opcode == "nc_n_gather":
        return elements + 150 * (math.ceil(elements / 512) - 1)
    if opcode == "local_gather":
        size = operands[1].dtype.itemsize
        run = int(instruction.attributes.get("num_elem_per_idx", 1))
        return operands[0].elements_per_partition / ((28 + 4 * run) / (4 * run) / min(4 / size, run))
    if opcode == "tensor_partition_reduce":
        return 8 * elements  # assumption: every core of 16 partitions goes over the row of each
    if opcode == "tensor_scalar" and instruction.attributes.get("op") == "rsqrt":
        return 4 * elements
    inputs = sum(1 for o in operands[instruction.writes :] if o.elements_per_partition > 1)
    return elements * max(1, inputs)
