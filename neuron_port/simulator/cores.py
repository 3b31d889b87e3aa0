"""Programs that run side by side: the two cores of a logical NeuronCore, and the ranks of a collective.

Every program has a thread, but only one of them runs at a time: the baton goes on where a program waits for
another or ends, always to the first program that can continue. So the same kernels and inputs give the same
trace, bit for bit.
"""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neuron_port.simulator.context import Run, caller, context
from neuron_port.simulator.errors import SimulatorError, SynchronizationError, location_of
from neuron_port.simulator.limits import TimeUp, interrupt
from neuron_port.simulator.memory import Allocation, MemoryRegion, Storage
from neuron_port.simulator.tensor import NkiTensor

if TYPE_CHECKING:
    from neuron_port.simulator.trace import NkiInstruction, Recorded


PATIENCE_SECONDS = 3.0


class Meeting:
    """What one program waits for: that all `members` (indices of programs) wait with an equal `key`.

    When they do, `exchange` of the first member gets all of their meetings in the order of `members`, reads what
    it needs, and returns the function that writes. All reads of a moment come before all writes.
    """

    __slots__ = ("exchange", "key", "location", "members", "offer", "opcode", "waits_for")

    def __init__(
        self,
        opcode: str,
        key: Hashable,
        members: Sequence[int],
        offer: Any,
        exchange: Callable[[list[Meeting]], Callable[[], None]],
        waits_for: str,
    ) -> None:
        self.opcode = opcode
        self.key = key
        self.members = tuple(members)
        self.offer = offer
        self.exchange = exchange
        self.waits_for = waits_for  # for the error message when nobody comes
        self.location = location_of(*caller())


class _Program:
    """One participant: its run, its baton, and how it ended."""

    __slots__ = ("baton", "body", "ended", "label", "meeting", "result", "run", "thread_id")

    def __init__(self, run: Run, label: str, body: Callable[[], Any]) -> None:
        self.run = run
        self.label = label
        self.body = body
        self.baton = threading.Lock()
        self.baton.acquire()
        self.meeting: Meeting | None = None
        self.ended = False
        self.result: Any = None
        self.thread_id = 0


class _Stopped(BaseException):
    """Unwinds the other programs once one of them has failed."""


class Scheduler:
    """Runs programs one at a time and brings them together at their meetings."""

    def __init__(self) -> None:
        self.programs: list[_Program] = []
        self.running: _Program | None = None
        self._error: BaseException | None = None
        self._first_thread = threading.get_ident()
        self._time_up_at: float | None = None
        self._all_ended = threading.Lock()
        self._all_ended.acquire()

    def add(self, run: Run, label: str, body: Callable[[], Any]) -> None:
        """One more program; `label` is what messages call it ("core 1")."""
        run.scheduler = self
        run.position = len(self.programs)
        self.programs.append(_Program(run, label, body))

    def thread_to_interrupt(self) -> int:
        """The identity of the thread that holds the baton, for a clock whose time is up."""
        if self._time_up_at is None:
            self._time_up_at = time.monotonic()
        return self._first_thread if self.running is None else self.running.thread_id

    def execute(self) -> list[Any]:
        """Run all programs to their ends; the results in their order. The first runs in the calling thread.

        Raises:
            SynchronizationError: programs wait for each other in vain.
            SimulatorError: the first error of any program.
        """
        threads = [
            threading.Thread(target=self._live, args=(program,), daemon=True, name=program.label)
            for program in self.programs[1:]
        ]
        for thread in threads:
            thread.start()
        self.running = self.programs[0]
        self.programs[0].baton.release()
        try:
            self._live(self.programs[0])
            self._wait_for(self._all_ended)
        except (
            BaseException
        ) as error:  # Ctrl-C, or the time is up: end the program that runs, then hand it on
            self._error = self._error or error
            interrupt(self.running.thread_id)
            raise
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return [program.result for program in self.programs]

    def meet(self, run: Run, meeting: Meeting) -> None:
        """Wait until the meeting has taken place."""
        program = self.programs[run.position]
        program.meeting = meeting
        self._pass_on()
        self._wait_for(program.baton)
        if self._error is not None:
            raise _Stopped

    def _wait_for(self, lock: threading.Lock) -> None:
        """Take a lock; give up if the time is up and whoever should release it was interrupted just then."""
        while not lock.acquire(timeout=1.0):
            if self._time_up_at is not None and time.monotonic() - self._time_up_at > PATIENCE_SECONDS:
                raise TimeUp

    def _live(self, program: _Program) -> None:
        self._wait_for(program.baton)
        program.thread_id = threading.get_ident()
        try:
            if self._error is None:
                context.run = program.run
                with np.errstate(all="ignore"):
                    program.result = program.body()
        except _Stopped:
            pass
        except BaseException as error:  # handed to the caller of execute()
            if self._error is None:
                if isinstance(error, SimulatorError):
                    error.add_note(f"on {program.label}")
                self._error = error
        finally:
            context.run = None
            program.ended = True
            program.meeting = None
            self._pass_on()

    def _pass_on(self) -> None:
        """Hand the baton to the first program that can continue; bring meetings about when none can."""
        chosen = self._first_able()
        if chosen is None and self._error is None:
            own = context.run
            try:
                self._hold_meetings()
            except Exception as error:  # handed to the caller of execute(), whichever thread this is
                self._error = error
            finally:
                context.run = own
            chosen = self._first_able()
        if chosen is None:
            self._all_ended.release()
        else:
            self.running = chosen
            if chosen.baton.locked():  # else it was interrupted while another program ran
                chosen.baton.release()

    def _first_able(self) -> _Program | None:
        for program in self.programs:
            if not program.ended and (program.meeting is None or self._error is not None):
                return program
        return None

    def _hold_meetings(self) -> None:
        """Everybody waits or has ended: hold the meetings whose members have all come."""
        waiting = [program for program in self.programs if program.meeting is not None]
        writes: list[Callable[[], None]] = []
        held: set[int] = set()
        for program in waiting:
            meeting = program.meeting
            assert meeting is not None
            if program.run.position in held:
                continue
            partners = [self.programs[member].meeting for member in meeting.members]
            present = [partner for partner in partners if partner is not None and partner.key == meeting.key]
            if len(present) == len(partners):
                context.run = program.run  # this may be another program's thread, or that of an ended one
                writes.append(meeting.exchange(present))
                held.update(meeting.members)
        if waiting and not held:
            raise self._deadlock(waiting)
        for write in writes:
            write()
        for position in held:
            self.programs[position].meeting = None

    def _deadlock(self, waiting: list[_Program]) -> SynchronizationError:
        described = []
        for program in self.programs:
            meeting = program.meeting
            if meeting is not None:
                described.append(f"{program.label} waits in {meeting.waits_for} at {meeting.location}")
            else:
                described.append(f"{program.label} has ended")
        first = waiting[0].meeting
        assert first is not None
        return SynchronizationError(
            f"{first.opcode} never completes: {'; '.join(described)}",
            location=first.location,
            hint="all programs that take part must execute the same synchronizing instructions, with equal "
            "arguments, in the same order",
        )


class LogicalCore:
    """Two cores that share HBM (LNC2): the i-th tensor that each allocates in shared HBM is one and the same."""

    __slots__ = ("_moving", "digests", "meetings", "rows", "runs", "shared", "taken")

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)
        self.shared: list[NkiTensor] = []  # in the order of allocation
        self.taken = [0 for _ in runs]  # how many of them each core has allocated so far
        self.meetings = 0  # of the two cores with each other
        # By (core, index of the instruction):
        self.digests: dict[tuple[int, int], int] = {}  # of the values written to shared HBM
        self.rows: dict[tuple[int, int], tuple[Recorded, np.ndarray]] = {}  # gathered or scattered there
        self._moving: tuple[np.ndarray, np.ndarray] | None = None  # all rows, and which of them move just now
        for core, run in enumerate(self.runs):
            run.logical_core = self
            run.program_id = core
            run.num_programs = len(self.runs)
            run.program_ndim = 1

    def shared_tensor(self, run: Run, allocation: Allocation) -> NkiTensor:
        """What the other core has allocated in the same place, or a new tensor if this core is first.

        Raises:
            SynchronizationError: the two cores allocate different tensors in this place.
        """
        position = self.taken[run.program_id]
        self.taken[run.program_id] = position + 1
        if position == len(self.shared):
            run.charge(allocation, math.prod(allocation.shape))
            array = np.empty(allocation.shape, allocation.dtype.held)
            self.shared.append(NkiTensor(array, Storage(array, allocation), allocation.dtype))
            return self.shared[position]
        tensor = self.shared[position]
        first = tensor.storage.allocation
        if first.shape != allocation.shape or first.dtype is not allocation.dtype:
            raise SynchronizationError(
                f"number {position + 1} of the tensors in shared HBM is {first!r} on core "
                f"{1 - run.program_id} ({first.location}), but {allocation!r} on core {run.program_id}",
                location=allocation.location,
                hint="both cores allocate the same tensors in nl.shared_hbm in the same order, as each pair is "
                "one tensor; use nl.private_hbm for what one core needs alone",
            )
        run.allocations.append(first)
        return NkiTensor(tensor.array, tensor.storage, tensor.dtype)

    def note_rows(self, run: Run, rows: NkiTensor, indices: np.ndarray) -> None:
        """Remember which rows the instruction about to be recorded gathers or scatters."""
        if rows.storage.buffer is MemoryRegion.shared_hbm:
            self.rows[run.program_id, len(run.instructions)] = (rows.recorded(), np.array(indices))
            self._moving = (rows.array, indices)

    def note_writes(self, run: Run, instruction: NkiInstruction, operands: Sequence[NkiTensor]) -> None:
        """Remember what an instruction wrote to shared HBM, to tell equal writes of both cores from a race."""
        for written in operands[: instruction.writes]:
            if written.storage.buffer is MemoryRegion.shared_hbm:
                values = written.array if self._moving is None else self._moving[0][self._moving[1]]
                self.digests[run.program_id, instruction.index] = zlib.crc32(
                    np.ascontiguousarray(values).view(np.uint8).data
                )
        self._moving = None
