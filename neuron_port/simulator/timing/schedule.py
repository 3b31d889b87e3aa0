"""The event-driven scheduler: instructions of one or two cores on engines, DMA engines and on-chip memory.

Time goes forward from decision to decision of a lane. A lane takes, of the instructions that are ready and within its
window, the one that comes first in the program; a window of one is strict program order. Tiles get SBUF in program
order as older ones are done with, so loads run ahead as far as there is room and no further; a PSUM bank goes to the
first in the program that could start.
"""

from __future__ import annotations

from heapq import heappop, heappush

from neuron_port.simulator.memory import Allocation, MemoryRegion
from neuron_port.simulator.timing.constants import table_of
from neuron_port.simulator.timing.costs import Cost
from neuron_port.simulator.timing.dependencies import CHAIN, DATA, ORDER, REUSE
from neuron_port.simulator.timing.dma import Transfer
from neuron_port.simulator.timing.state import DMA, GPSIMD, NEVER, SCALAR, TENSOR, Core, Lane, Memory, Work
from neuron_port.simulator.timing.timeline import LANES, Cause, Scheduled
from neuron_port.simulator.trace import NkiInstruction

CAUSE_OF: dict[int, Cause] = {DATA: "data", REUSE: "reuse", CHAIN: "order", ORDER: "order"}
# core, position, start, free, end, cause, waited for, table load, cold
Slot = tuple[int, int, float, float, float, Cause, int | None, float, float]
FREE, DECIDE = 0, 1  # kinds of events; memory is given back before lanes decide


class Scheduler:
    """One schedule of the work. `window`: how many instructions of its lane one may overtake, plus itself."""

    def __init__(self, work: Work, window: int) -> None:
        self.work = work
        self.target = work.target
        self.costs = work.costs
        self.cores = [Core(index, work, window) for index in range(len(work.traces))]
        self.events: list[tuple[float, int, int, int]] = []  # ns, kind, core, lane or number of the tile
        self.slots: list[Slot] = []
        self.freed: list[tuple[Allocation, int]] = []
        self.meetings: dict[
            int, list[tuple[int, int]]
        ] = {}  # by number: (core, position) of those that are ready
        self.now = 0.0

    def run(self) -> float:
        """Schedule everything; the time at which the last result is there."""
        for core in self.cores:
            for position, waiting in enumerate(core.waiting):
                if waiting == 0:
                    self._arrive(core, position)
            self._grant(core, core.memories[MemoryRegion.sbuf], 0.0, -1)
        total = sum(len(core.trace) for core in self.cores)
        slots = self.slots
        while len(slots) < total:
            if not self.events:
                self._force()
                continue
            ns, kind, core_index, number = heappop(self.events)
            self.now = ns
            core = self.cores[core_index]
            if kind == FREE:
                tile, user = self.freed[number]
                self._give_back(core, tile, ns, user)
                continue
            lane = core.lanes[number]
            if lane.wake_ns == ns:
                lane.wake_ns = NEVER
                if number == DMA:
                    self._decide_dma(core, ns)
                else:
                    self._decide(core, number, ns)
        return max((slot[4] for slot in slots), default=0.0)

    def entries(self) -> list[Scheduled]:
        """The records of all instructions, by start, core and index."""
        entries = [self._entry(*slot) for slot in self.slots]
        entries.sort(key=lambda entry: (entry.start_ns, entry.core, entry.index))
        return entries

    def _entry(
        self,
        core_index: int,
        position: int,
        start: float,
        free: float,
        end: float,
        cause: Cause,
        by: int | None,
        table_ns: float,
        cold_ns: float,
    ) -> Scheduled:
        core = self.cores[core_index]
        planned = core.plan[position]
        transfer = planned if isinstance(planned, Transfer) else None
        start_up = self.costs.dma_start_ns if transfer else 0.0
        return Scheduled(
            index=position,
            instruction=core.trace[position],
            core=core_index,
            lane=LANES[core.lane_of[position]],
            ready_ns=core.ready_ns[position] + start_up,
            start_ns=start,
            free_ns=free,
            end_ns=end,
            cause=cause,
            waited_index=by,
            table_load_ns=table_ns,
            cold_ns=cold_ns,
            dma_engines=transfer.engines if transfer else (),
            dma_queue=transfer.queue if transfer else "",
            transfer_bytes=transfer.bytes if transfer else 0,
            descriptor_bytes=transfer.descriptor_bytes if transfer else 0,
            descriptors=transfer.descriptors if transfer else 0,
        )

    def _wake(self, core: Core, number: int, ns: float) -> None:
        """Have the lane decide at `ns`, unless it does so before."""
        lane = core.lanes[number]
        if ns < lane.wake_ns:
            lane.wake_ns = ns
            heappush(self.events, (ns, DECIDE, core.index, number))

    # ---- readiness ------------------------------------------------------------------------------------------

    def _arrive(self, core: Core, position: int) -> None:
        """All that `position` waits for is known: hand it to its lane."""
        if len(self.cores) > 1 and core.trace[position].attributes.get("meeting"):
            self._meet(core, position)
        else:
            self._offer(core, position)

    def _meet(self, core: Core, position: int) -> None:
        """Hold a barrier or an exchange back until the other core is ready for it too."""
        number = core.trace[position].attributes["meeting"]
        met = self.meetings.setdefault(number, [])
        met.append((core.index, position))
        if len(met) < len(self.cores):
            return
        latest = max(self.cores[c].ready_ns[p] for c, p in met)
        for index, place in met:
            other = self.cores[index]
            if other.ready_ns[place] < latest:
                other.ready_ns[place] = latest
                other.cause[place] = ("core", None)
            self._offer(other, place)

    def _offer(self, core: Core, position: int) -> None:
        number = core.lane_of[position]
        lane = core.lanes[number]
        ready = core.ready_ns[position]
        heappush(lane.coming, (ready, core.place[position]))
        self._wake(core, number, ready if number == DMA else max(ready, lane.free_ns))

    def _satisfy(self, core: Core, position: int, ns: float, cause: Cause, by: int | None) -> None:
        if ns > core.ready_ns[position]:
            core.ready_ns[position] = ns
            core.cause[position] = (cause, by)
        core.waiting[position] -= 1
        if core.waiting[position] == 0:
            self._arrive(core, position)

    def _candidates(self, lane: Lane, ns: float) -> None:
        coming, ready = lane.coming, lane.ready
        while coming and coming[0][0] <= ns:
            heappush(ready, heappop(coming)[1])

    def _take(self, lane: Lane, place: int) -> int:
        done = lane.done
        done[place] = 1
        oldest, end = lane.oldest, len(done)
        while oldest < end and done[oldest]:
            oldest += 1
        lane.oldest = oldest
        return lane.order[place]

    # ---- compute engines ------------------------------------------------------------------------------------

    def _decide(self, core: Core, number: int, ns: float) -> None:
        lane = core.lanes[number]
        if lane.free_ns > ns:
            self._wake(core, number, lane.free_ns)
            return
        self._candidates(lane, ns)
        ready, psum = lane.ready, core.psum
        while ready and ready[0] < lane.oldest + core.window:
            place = heappop(ready)
            position = lane.order[place]
            if position not in psum.wanted or psum.take(position):
                self._take(lane, place)
                self._start(core, number, position, ns)
                return
            heappush(psum.refused, position)
        if lane.coming:
            self._wake(core, number, lane.coming[0][0])

    def _start(self, core: Core, number: int, position: int, ns: float) -> None:
        lane = core.lanes[number]
        instruction = core.trace[position]
        cost = core.plan[position]
        assert isinstance(cost, Cost)
        occupied, latency, _, _, locks = cost
        ready = core.ready_ns[position]
        cause, by = core.cause[position]
        start = ns
        if start > ready and lane.free_since >= 0:
            cause, by = "engine", lane.free_since
        for lock in locks:
            held_ns, holder = core.lock_ns[lock]
            if held_ns > start:
                start, cause, by = held_ns, "lock", holder
        table_ns = cold_ns = 0.0
        if number == SCALAR:
            table_ns, start = self._load_table(core, instruction, ready, lane, start)
        elif number == TENSOR and core.clock is not None:
            cold_ns = core.clock.run(start, occupied)
        free = start + occupied + cold_ns
        end = start + latency + cold_ns
        for lock in locks:
            core.lock_ns[lock] = (free, position)
        lane.free_ns, lane.free_since = free, position
        self._wake(core, number, free)
        self._book(core, position, start - table_ns, free, end, cause, by, table_ns, cold_ns)

    def _load_table(
        self, core: Core, instruction: NkiInstruction, ready: float, lane: Lane, start: float
    ) -> tuple[float, float]:
        """(ns of table loading, new start). The load itself waits for the engine only, not for the data."""
        function = instruction.attributes.get("table")
        table = table_of(function) if function else None
        if table is None or table == core.table:
            return 0.0, start
        core.table = table
        return self.costs.table_load_ns, max(start, lane.free_ns + self.costs.table_load_ns)

    # ---- DMA ------------------------------------------------------------------------------------------------

    def _decide_dma(self, core: Core, ns: float) -> None:
        lane = core.lanes[DMA]
        self._candidates(lane, ns)
        queues = core.queues
        limit = lane.oldest + core.window
        held_back = []
        while lane.ready:
            place = heappop(lane.ready)
            if place >= limit:
                held_back.append(place)
                break
            transfer = core.plan[lane.order[place]]
            assert isinstance(transfer, Transfer)
            heappush(queues.setdefault(transfer.queue, []), place)
        for place in held_back:
            heappush(lane.ready, place)
        started = True
        while started:
            started = False
            later = None
            names = list(queues)
            for turn in range(len(names)):
                name = names[(core.turn + turn) % len(names)]
                waiting = queues[name]
                if not waiting:
                    continue
                position = lane.order[waiting[0]]
                transfer = core.plan[position]
                assert isinstance(transfer, Transfer)
                issue = self._issuer_free(core, transfer)
                earliest = max(
                    issue, _first_free(core.engines_ns, transfer.engines) - self.costs.dma_start_ns
                )
                if earliest <= ns:
                    self._take(lane, heappop(waiting))
                    core.turn = (core.turn + turn + 1) % len(names)
                    self._start_dma(core, position, transfer, ns)
                    started = True
                    break
                later = earliest if later is None else min(later, earliest)
        if later is not None:
            self._wake(core, DMA, later)
        if lane.coming:
            self._wake(core, DMA, lane.coming[0][0])
        elif lane.ready and lane.ready[0] < lane.oldest + core.window:
            self._wake(core, DMA, ns)

    def _issuer_free(self, core: Core, transfer: Transfer) -> float:
        if transfer.queue == "gpsimd":
            return core.lanes[GPSIMD].free_ns
        return core.issuer_ns.get(transfer.queue, 0.0)

    def _start_dma(self, core: Core, position: int, transfer: Transfer, ns: float) -> None:
        cause, by = core.cause[position]
        if transfer.queue == "gpsimd":  # GpSimdE makes the descriptors
            gpsimd = core.lanes[GPSIMD]
            gpsimd.free_ns, gpsimd.free_since = ns + transfer.issue_ns, position
            self._wake(core, GPSIMD, gpsimd.free_ns)
        core.issuer_ns[transfer.queue] = ns + transfer.issue_ns
        eligible = ns + max(self.costs.dma_start_ns, transfer.issue_ns)
        first = last = -1.0
        user = -1
        engines_ns = core.engines_ns
        for number in transfer.engines:
            begin = engines_ns[number]
            if begin < eligible:
                begin = eligible
            elif begin > last:
                user = core.engine_user[number]
            if first < 0 or begin < first:
                first = begin
            if begin > last:
                last = begin
            engines_ns[number] = begin + transfer.engine_ns
            core.engine_user[number] = position
        if (last > eligible and user >= 0) or ns > core.ready_ns[position]:
            cause, by = "engine", user if user >= 0 else by
        end = last + transfer.engine_ns
        self._book(core, position, first, end, end + self.costs.dma_finish_ns, cause, by, 0.0, 0.0)

    # ---- what follows from a start --------------------------------------------------------------------------

    def _book(
        self,
        core: Core,
        position: int,
        start: float,
        free: float,
        end: float,
        cause: Cause,
        by: int | None,
        table_ns: float,
        cold_ns: float,
    ) -> None:
        """Note the times, tell the consumers, and give back tiles that nothing else uses."""
        self.slots.append((core.index, position, start, free, end, cause, by, table_ns, cold_ns))
        ready_ns, waiting = core.ready_ns, core.waiting
        for consumer, kind in core.consumers[position]:
            ns = end if kind in (DATA, ORDER) else free
            if ns > ready_ns[consumer]:
                ready_ns[consumer] = ns
                core.cause[consumer] = (CAUSE_OF[kind], position)
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                self._arrive(core, consumer)
        for tile in core.touched[position]:
            core.users[tile] -= 1
            last = core.last_use.get(tile)
            if last is None or last[0] < free:
                core.last_use[tile] = last = (free, position)
            if core.users[tile] == 0:
                self.freed.append((tile, last[1]))
                heappush(self.events, (last[0], FREE, core.index, len(self.freed) - 1))

    def _give_back(self, core: Core, tile: Allocation, ns: float, user: int) -> None:
        memory = core.memories[tile.buffer]
        units = memory.units[tile]
        memory.used -= units
        if memory is not core.psum:
            self._grant(core, memory, ns, user)
            return
        for _ in range(min(units, len(memory.refused))):  # no more can start for it
            self._retry(core, heappop(memory.refused), ns, user if user >= 0 else None)

    def _retry(self, core: Core, position: int, ns: float, user: int | None) -> None:
        """Let an instruction that found no room in PSUM try again."""
        core.ready_ns[position] = ns
        core.cause[position] = ("buffers", user)
        number = core.lane_of[position]
        lane = core.lanes[number]
        heappush(lane.ready, core.place[position])
        self._wake(core, number, max(ns, lane.free_ns))

    def _grant(self, core: Core, memory: Memory, ns: float, user: int) -> None:
        """Give room to the next tiles in program order, as long as there is some."""
        tiles = memory.tiles
        while memory.next < len(tiles):
            position, units, _ = tiles[memory.next]
            if memory.used + units > memory.capacity:
                return
            memory.used += units
            memory.next += 1
            self._satisfy(core, position, ns, "buffers", user if user >= 0 else None)

    def _force(self) -> None:
        """Nothing can go on: the kernel holds more than fits, or partitions are shared. Give the next tile room."""
        blocked = []
        for core in self.cores:
            sbuf = core.memories[MemoryRegion.sbuf]
            if sbuf.next < len(sbuf.tiles):
                blocked.append((sbuf.tiles[sbuf.next][0], core, sbuf))
            if core.psum.refused:
                blocked.append((core.psum.refused[0], core, core.psum))
        assert blocked, "the schedule is stuck without waiting for memory"
        position, core, memory = min(blocked, key=lambda item: (item[0], item[1].index))
        if memory is core.psum:
            memory.give(heappop(memory.refused))
            self._retry(core, position, self.now, None)
            return
        memory.used += memory.tiles[memory.next][1]
        memory.next += 1
        self._satisfy(core, position, self.now, "buffers", None)


def _first_free(engines_ns: list[float], engines: tuple[int, ...]) -> float:
    """When the first of the engines, which are neighbours, is free."""
    if len(engines) == 1:
        return engines_ns[engines[0]]
    if len(engines) == len(engines_ns):
        return min(engines_ns)
    return min(engines_ns[engines[0] : engines[-1] + 1])
