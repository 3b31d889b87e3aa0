"""Predicts when each instruction of an executed trace runs: costs, dependencies, schedule, timeline.

In order of use: `constants` (what things cost, with sources), `costs` (instructions on engines), `dma` (transfers),
`dependencies` (who waits for whom), `state` and `schedule` (the event-driven scheduler), `clock` (TensorE's gate),
`roofline` (bounds without a schedule), `predict` (from a run to a `Timeline`), `timeline` (the records).
"""

from neuron_port.simulator.timing.predict import predict
from neuron_port.simulator.timing.timeline import (
    Energy,
    LaneUse,
    Roofline,
    Scheduled,
    Timeline,
)

__all__ = ["Energy", "LaneUse", "Roofline", "Scheduled", "Timeline", "predict"]
