"""Sources for the sandbox's tests: an honest kernel, and a way to write one that has climbed over the gate."""

from __future__ import annotations

import numpy as np

from neuron_port.sandbox.job import KernelCall, SandboxJob, SandboxLimits, SandboxOutcome
from neuron_port.sandbox.run import run_inspected

HEADER = """\
import math

import nki
import nki.isa as nisa
import nki.language as nl

"""

KERNEL = (
    HEADER
    + '''
@nki.jit
def twice(x):
    """Returns 2 x."""
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
'''
)

# What a candidate could reach if it had got past the gate and the namespace: everything that Python has.
CLIMBED = """
def everything():
    builtins = nl.ndarray.__globals__["__builtins__"]
    return builtins if isinstance(builtins, dict) else builtins.__dict__


def module(name):
    return everything()["__import__"](name)


"""

X = np.arange(32, dtype=np.float32).reshape(4, 8)
STRICT = SandboxLimits(cpu_seconds=1.0, wall_seconds=20.0, memory_bytes=1 << 30)


def with_lines(*lines: str) -> str:
    """The honest kernel, with lines put in front of its own."""
    put = "".join(f"    {line}\n" for line in lines)
    return KERNEL.replace('    """Returns 2 x."""\n', put)


def climbed(*lines: str) -> str:
    """A kernel that runs `lines` with all of Python, then answers honestly."""
    return with_lines('os = module("os")', *lines).replace(HEADER, HEADER + CLIMBED)


def job(
    source: str, calls: int = 1, limits: SandboxLimits = STRICT, entry_point: str = "twice"
) -> SandboxJob:
    return SandboxJob(
        source=source,
        entry_point=entry_point,
        calls=tuple(KernelCall(arrays=(X + n,)) for n in range(calls)),
        limits=limits,
    )


def escape(*lines: str, limits: SandboxLimits = STRICT) -> SandboxOutcome:
    """What comes out when a hostile kernel runs with the gate open."""
    return run_inspected(job(climbed(*lines), limits=limits))
