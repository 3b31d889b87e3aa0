"""A simulator of the NKI 0.6 kernel language on NumPy: run kernels without Trainium, strictly.

run_kernel / simulate  ▶  nki/ (AWS's names)  ▶  instructions/ (their meaning)  ▶  tensor, memory, trace
"""

from neuron_port.simulator.errors import (
    AccumulationError,
    CapacityError,
    ConstraintError,
    LimitError,
    OutOfBoundsError,
    OutputError,
    RaceError,
    SimulatorError,
    SynchronizationError,
    UnsupportedError,
    UnwrittenReadError,
)
from neuron_port.simulator.limits import Limits
from neuron_port.simulator.loader import install_as_nki, load_kernel, load_kernel_source
from neuron_port.simulator.runner import HbmArray, KernelRun, run_kernel, run_ranks, simulate, to_hbm
from neuron_port.simulator.target import TARGETS, Target
from neuron_port.simulator.trace import NkiInstruction, Trace

__all__ = [
    "TARGETS", "AccumulationError", "CapacityError", "ConstraintError", "HbmArray", "KernelRun",
    "LimitError", "Limits", "NkiInstruction", "OutOfBoundsError", "OutputError", "RaceError",
    "SimulatorError", "SynchronizationError", "Target", "Trace", "UnsupportedError", "UnwrittenReadError",
    "install_as_nki", "load_kernel", "load_kernel_source", "run_kernel", "run_ranks", "simulate",
    "to_hbm",
]  # fmt: skip
