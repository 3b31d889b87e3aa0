"""TensorE's clock gate: half the rate until it has been busy for ~3 us, and again after it was mostly idle."""

from __future__ import annotations

from collections import deque

from neuron_port.simulator.timing.constants import Costs


class TensorClock:
    """The state of the clock of one core; instructions are given in the order in which they run."""

    __slots__ = ("busy", "busy_ns", "cold_left_ns", "costs", "since_ns")

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.cold_left_ns = costs.cold_window_ns
        self.since_ns = -1.0  # when the present warm-up began; -1 before the first instruction
        self.busy: deque[tuple[float, float]] = deque()  # busy intervals of the last window
        self.busy_ns = 0.0

    def run(self, start_ns: float, work_ns: float) -> float:
        """Nanoseconds lost by work of `work_ns` at full rate that starts at `start_ns`."""
        if self.since_ns < 0:
            self.since_ns = start_ns
        self._cool(start_ns)
        lost = 0.0
        if self.cold_left_ns > 0:
            slow = min(work_ns / self.costs.cold_rate, self.cold_left_ns)
            lost = slow * (1 - self.costs.cold_rate)
            self.cold_left_ns -= slow
        self.busy.append((start_ns, start_ns + work_ns + lost))
        self.busy_ns += work_ns + lost
        return lost

    def _cool(self, now_ns: float) -> None:
        """Fall back to the slow clock if the last window was used by less than half."""
        begin = now_ns - self.costs.cold_window_ns
        busy = self.busy
        while busy and busy[0][1] <= begin:
            first, end = busy.popleft()
            self.busy_ns -= end - first
        cut = max(0.0, begin - busy[0][0]) if busy else 0.0
        window = min(self.costs.cold_window_ns, now_ns - self.since_ns)
        if window > 0 and self.busy_ns - cut < self.costs.warm_utilisation * window:
            self.cold_left_ns = self.costs.cold_window_ns
            self.since_ns = now_ns
            busy.clear()
            self.busy_ns = 0.0
