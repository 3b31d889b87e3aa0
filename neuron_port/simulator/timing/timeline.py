"""The records of a predicted timeline: when each instruction ran, what it waited for, what bounded the kernel.

Times are nanoseconds from the start of the device's work. A record is plain data: nothing here computes a schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from neuron_port.simulator.trace import NkiInstruction

# Lanes of one core. A DMA transfer runs on several engines at once: lane "dma", engines in `dma_engines`.
COMPUTE_LANES = ("tensor", "vector", "scalar", "gpsimd", "sync")
DMA_LANE = "dma"
LANES = (*COMPUTE_LANES, DMA_LANE)

# Why an instruction did not start earlier.
#   start      nothing held it back
#   engine     its engine (or its DMA engines or queue) was busy with `waited_index`
#   data       it reads what `waited_index` writes
#   reuse      it overwrites what `waited_index` reads or writes (the same tile, PSUM bank or HBM range)
#   buffers    no free SBUF or PSUM for a new tile until `waited_index` was done with an older one
#   order      an explicit dependency, a register, a no_reorder block or a loop back-edge
#   lock       engines that exclude each other on this generation (VectorE/GpSimdE on SBUF, VectorE/ScalarE on PSUM)
#   core       the other core of the logical NeuronCore (sendrecv, core_barrier)
Cause = Literal["start", "engine", "data", "reuse", "buffers", "order", "lock", "core"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """One instruction on the timeline.

    `start_ns..free_ns` is when it occupies its lane, `end_ns` is when others can see its result (later than
    `free_ns` by the pipeline's depth). `ready_ns` is when its inputs, outputs and predecessors allowed it to start;
    `start_ns - ready_ns` is the wait for the lane.
    """

    index: int  # in program order in the trace of its core
    instruction: NkiInstruction
    core: int
    lane: str  # one of LANES
    ready_ns: float
    start_ns: float
    free_ns: float
    end_ns: float
    cause: Cause  # what fixed start_ns
    waited_index: int | None = None  # instruction of the same core that fixed it; None for cause "start"
    table_load_ns: float = 0.0  # ScalarE: part of the time spent loading a table of activation functions
    cold_ns: float = 0.0  # TensorE: part of the time lost to the slow clock
    dma_engines: tuple[int, ...] = ()  # DMA only: engines used
    dma_queue: str = ""  # DMA only: whose queue triggered it: "sync", "scalar", "gpsimd", ...
    transfer_bytes: int = 0  # DMA only: bytes moved, declared dtypes
    descriptor_bytes: int = 0  # DMA only: bytes of the contiguous pieces that it is moved in
    descriptors: int = 0  # DMA only: number of such pieces
    bandwidth_share: float = 1.0  # DMA only: fraction of the uncontended rate that it got

    @property
    def busy_ns(self) -> float:
        """How long its lane was occupied."""
        return self.free_ns - self.start_ns

    @property
    def wait_ns(self) -> float:
        """How long it was ready but its lane was not."""
        return max(0.0, self.start_ns - self.ready_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneUse:
    """What one lane of one core did; `exposed_ns` is time in which no other lane of that core was busy."""

    core: int
    lane: str
    instructions: int
    busy_ns: float  # union of its busy intervals; for "dma": any engine busy
    exposed_ns: float
    utilisation: float  # busy_ns / device_ns; for "dma": engine-time used / engine-time available


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Where the kernel stands against the two bounds that need no schedule."""

    compute_ns: float  # matmul work at TensorE's peak for the dtypes used
    memory_ns: float  # HBM traffic at the cores' share of the HBM bandwidth
    bound: Literal["compute", "memory"]
    operations: int  # 2 x multiply-accumulates of matmuls + one per element of vector work
    hbm_bytes: int
    operations_per_byte: float  # arithmetic intensity; 0 without HBM traffic
    ridge_operations_per_byte: float  # where the two bounds meet

    @property
    def bound_ns(self) -> float:
        """The larger of the two bounds: no schedule can be faster."""
        return max(self.compute_ns, self.memory_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """A proxy to compare variants by, in picojoules; no vendor figure exists (see timing/roofline.py)."""

    tensor_pj: float
    vector_pj: float
    on_chip_pj: float
    hbm_pj: float

    @property
    def total_pj(self) -> float:
        """Sum of the parts."""
        return self.tensor_pj + self.vector_pj + self.on_chip_pj + self.hbm_pj


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The predicted execution of one kernel call on one logical NeuronCore.

    `device_ns` is the headline schedule (`reordered_ns`: independent instructions may overtake within a window, as the
    compiler's scheduler does); `in_order_ns` is the same trace with each engine in strict program order.
    `latency_ns` is what a caller measures: device time plus the fixed cost of starting and ending a kernel.
    """

    target: str
    generation: int
    cores: int
    device_ns: float
    overhead_ns: float
    in_order_ns: float
    reordered_ns: float
    scheduled: tuple[Scheduled, ...]  # by start time, then core, then index
    lanes: tuple[LaneUse, ...]  # by core, then in the order of LANES; only lanes that were used
    bound_lane: str  # lane with the largest utilisation, or "latency" when none reaches half the device time
    critical_path: tuple[
        tuple[int, int], ...
    ]  # (core, index) from first to last: each waited for the one before
    hbm_read_bytes: int
    hbm_write_bytes: int
    dma_bytes: int  # all DMA transfers, SBUF to SBUF included
    roofline: Roofline
    energy: Energy
    tensor_cold_ns: float  # TensorE time lost to the slow clock, all cores
    table_loads: int
    table_load_ns: float

    @property
    def latency_ns(self) -> float:
        """Device time plus the fixed overhead of a kernel call."""
        return self.device_ns + self.overhead_ns

    @property
    def busy_ns(self) -> Mapping[str, float]:
        """Busy time of each lane, the largest over the cores."""
        busy: dict[str, float] = {}
        for use in self.lanes:
            busy[use.lane] = max(busy.get(use.lane, 0.0), use.busy_ns)
        return busy

    @property
    def roofline_fraction(self) -> float:
        """How much of the device time the roofline explains: 1 is perfect."""
        return self.roofline.bound_ns / self.device_ns if self.device_ns else 0.0
