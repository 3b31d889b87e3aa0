"""What the scheduler keeps: the work (costs, transfers, dependencies), and the lanes and memories of each core."""

from __future__ import annotations

from neuron_port.simulator.memory import Allocation, MemoryRegion
from neuron_port.simulator.target import Target
from neuron_port.simulator.timing.clock import TensorClock
from neuron_port.simulator.timing.constants import Costs
from neuron_port.simulator.timing.costs import Cost, CostModel
from neuron_port.simulator.timing.dependencies import Dependencies, dependencies_of
from neuron_port.simulator.timing.dma import Transfer, transfer_of
from neuron_port.simulator.timing.timeline import COMPUTE_LANES, Cause
from neuron_port.simulator.trace import NkiInstruction, engine

TENSOR, VECTOR, SCALAR, GPSIMD, SYNC = range(len(COMPUTE_LANES))
DMA = len(COMPUTE_LANES)
LANE_OF = {
    engine.tensor: TENSOR,
    engine.vector: VECTOR,
    engine.scalar: SCALAR,
    engine.gpsimd: GPSIMD,
    engine.sync: SYNC,
    engine.unknown: SYNC,
    engine.dma: DMA,
}

NEVER = float("inf")


class Work:
    """What does not change between schedules of the same traces: costs, transfers, dependencies."""

    def __init__(self, traces: list[list[NkiInstruction]], target: Target, costs: Costs) -> None:
        self.traces = traces
        self.target = target
        self.costs = costs
        model = CostModel(target, costs)
        known: dict[object, Transfer] = {}
        self.dependencies: list[Dependencies] = []
        self.consumers: list[
            list[list[tuple[int, int]]]
        ] = []  # of each core and instruction: (position, kind)
        self.touched: list[list[list[Allocation]]] = []  # tiles that each instruction uses
        self.plans: list[list[Cost | Transfer]] = []
        self.lanes: list[list[int]] = []  # where each instruction runs
        for trace in traces:
            dependencies = dependencies_of(trace)
            self.dependencies.append(dependencies)
            self.consumers.append(_consumers(dependencies))
            self.touched.append(_touched(dependencies))
            plan: list[Cost | Transfer] = []
            for instruction in trace:
                if instruction.engine is engine.dma:
                    plan.append(_transfer(instruction, target, costs, len(traces), known))
                else:
                    plan.append(model.cost(instruction))
            self.plans.append(plan)
            self.lanes.append(_assign_lanes(trace, plan, model))


def _assign_lanes(trace: list[NkiInstruction], plan: list[Cost | Transfer], model: CostModel) -> list[int]:
    """The lane of each instruction, where the kernel leaves the choice between VectorE and ScalarE to the compiler.

    Copies go to the one that has less to do: "compiler selects best engine based on engine workload" (nki.isa
    tensor_copy). tensor_scalar goes to ScalarE on NeuronCore-v2, which takes N / 1.4 ns there and N / 1.12 on VectorE:
    "compiler select best engine based on the input tile shape" (nki.isa.tensor_scalar). Published activity of both
    engines shows it: in NKIBench's adamw all seven products with constants run on ScalarE. From v3 on VectorE is faster.
    """
    lanes = [LANE_OF[instruction.engine] for instruction in trace]
    work_ns = [0.0] * (DMA + 1)
    for position, instruction in enumerate(trace):
        lane = lanes[position]
        planned = plan[position]
        if not isinstance(planned, Cost):
            continue
        if lane == VECTOR and instruction.opcode == "tensor_scalar":
            if model.scales_on_scalar(instruction):
                lanes[position] = lane = SCALAR
                plan[position] = planned = model.cost(instruction, engine.scalar)
        elif lane == VECTOR and instruction.attributes.get("any_engine"):
            other = model.cost(instruction, engine.scalar)
            if work_ns[SCALAR] + other.occupied_ns < work_ns[VECTOR] + planned.occupied_ns:
                lanes[position] = lane = SCALAR
                plan[position] = planned = other
        work_ns[lane] += planned.occupied_ns
    return lanes


def _consumers(dependencies: Dependencies) -> list[list[tuple[int, int]]]:
    consumers: list[list[tuple[int, int]]] = [[] for _ in dependencies.edges]
    for position, edges in enumerate(dependencies.edges):
        for producer, kind in edges:
            consumers[producer].append((position, kind))
    return consumers


def _touched(dependencies: Dependencies) -> list[list[Allocation]]:
    touched: list[list[Allocation]] = [[] for _ in dependencies.edges]
    for tile, positions in dependencies.touches.items():
        for position in positions:
            touched[position].append(tile)
    return touched


def _transfer(
    instruction: NkiInstruction, target: Target, costs: Costs, cores: int, known: dict[object, Transfer]
) -> Transfer:
    """The transfer, looked up by everything that it depends on."""
    key = (
        instruction.opcode,
        *[
            (r.shape, r.dtype, r.buffer, r.start_partition)
            if isinstance(r, Allocation)
            else (r[1], r[2], r[5], r[0].buffer, r[6])
            for r in instruction.recorded
        ],
        repr(instruction.attributes) if instruction.attributes else None,
    )
    transfer = known.get(key)
    if transfer is None:
        transfer = known[key] = transfer_of(instruction, target, costs, cores)
    return transfer


class Lane:
    """One engine of one core, or its DMA: instructions in program order, and those that are ready."""

    __slots__ = ("coming", "done", "free_ns", "free_since", "oldest", "order", "ready", "wake_ns")

    def __init__(self, order: list[int]) -> None:
        self.order = order  # positions in the core's program
        self.done = bytearray(len(order))
        self.oldest = 0  # place in `order` of the first instruction that has not run
        self.coming: list[tuple[float, int]] = []  # (ready ns, place): not yet ready
        self.ready: list[int] = []  # places that are ready, first in program order first
        self.free_ns = 0.0
        self.free_since = -1  # position of the instruction that occupied it last
        self.wake_ns = NEVER  # when it is due to decide next


class Memory:
    """SBUF or PSUM of one core: its tiles in program order, and what is free.

    SBUF is given to tiles in program order, before their first use is ready, so that loads run ahead. PSUM has eight
    banks only, and whoever schedules a kernel rotates them: a tile gets its banks when its first use could start, and
    leaves room for the oldest tile that has none.
    """

    __slots__ = ("capacity", "next", "refused", "tiles", "units", "used", "wanted")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.tiles: list[tuple[int, int, Allocation]] = []  # (position of the first use, units, tile)
        self.units: dict[Allocation, int] = {}
        self.next = 0  # of `tiles`: the oldest without room
        self.wanted: dict[
            int, int
        ] = {}  # PSUM: units that tiles without room need, by position of the first use
        self.refused: list[int] = []  # PSUM: positions that could start but for room; a heap

    def take(self, position: int) -> bool:
        """Give room to the tiles that `position` is the first to use, if there is enough."""
        oldest, reserve, _ = self.tiles[self.next]
        needed = self.wanted[position] + (0 if position == oldest else reserve)
        if self.used + needed > self.capacity:
            return False
        self.give(position)
        return True

    def give(self, position: int) -> None:
        """Give that room, whether there is enough or not."""
        self.used += self.wanted.pop(position)
        while self.next < len(self.tiles) and self.tiles[self.next][0] not in self.wanted:
            self.next += 1


class Core:
    """Everything that one core has while it is scheduled."""

    def __init__(self, index: int, work: Work, window: int) -> None:
        self.index = index
        self.trace = work.traces[index]
        self.plan = work.plans[index]
        dependencies = work.dependencies[index]
        count = len(self.trace)
        self.waiting = [len(edges) for edges in dependencies.edges]
        self.ready_ns = [0.0] * count
        self.cause: list[tuple[Cause, int | None]] = [("start", None)] * count
        self.consumers = work.consumers[index]
        self.touched = work.touched[index]
        orders: list[list[int]] = [[] for _ in range(DMA + 1)]
        self.place = [0] * count
        self.lane_of = work.lanes[index]
        for position, lane in enumerate(self.lane_of):
            self.place[position] = len(orders[lane])
            orders[lane].append(position)
        self.lanes = [Lane(order) for order in orders]
        self.window = window
        self.engines_ns = [0.0] * work.target.dma_engines
        self.engine_user = [-1] * work.target.dma_engines
        self.queues: dict[str, list[int]] = {}  # DMA: places that are ready, by queue
        self.turn = 0  # of the queues, which take turns
        self.issuer_ns: dict[str, float] = {}  # when the maker of a queue's descriptors is free
        self.clock = TensorClock(work.costs) if work.target.tensor_clock_gates else None
        self.table: str | None = None
        self.lock_ns = {"sbuf": (0.0, -1), "psum": (0.0, -1)}
        target = work.target
        self.memories = {
            MemoryRegion.sbuf: Memory(target.sbuf_usable_bytes_per_partition),
            MemoryRegion.psum: Memory(target.psum_banks),
        }
        self.psum = self.memories[MemoryRegion.psum]
        self.users: dict[Allocation, int] = {}  # uses of a tile that are still to come
        self.last_use: dict[Allocation, tuple[float, int]] = {}  # (ns, position)
        for position, tiles in enumerate(dependencies.first_writes):
            for tile in tiles:
                memory = self.memories[tile.buffer]
                unit = target.psum_bank_bytes if tile.buffer is MemoryRegion.psum else 1
                units = -(-tile.bytes_per_partition // unit)
                memory.tiles.append((position, units, tile))
                memory.units[tile] = units
                if tile.buffer is MemoryRegion.psum:
                    memory.wanted[position] = memory.wanted.get(position, 0) + units
                else:
                    self.waiting[position] += 1
        for tile, positions in dependencies.touches.items():
            self.users[tile] = len(positions)
