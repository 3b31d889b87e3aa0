"""Limits of a run: kernels that would not end, or would use up the machine, end in an error with their line."""

from __future__ import annotations

import numpy as np
import pytest

from neuron_port.simulator import LimitError, Limits, run_kernel
from neuron_port.simulator.limits import MIB, resident_host_bytes
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

X = np.ones((128, 4), np.float32)
LNC = pytest.mark.parametrize("lnc", [None, 2])


def repeating(x, instructions):
    """Adds one `instructions` times, and returns the sum."""
    tile = nl.zeros(x.shape, x.dtype, nl.sbuf)
    for _ in range(instructions):
        nisa.tensor_scalar(tile, tile, nl.add, 1.0)
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    nisa.dma_copy(out, tile)
    return out


def spinning(x):
    """Never ends, without an instruction."""
    while True:
        pass


def catching(x):
    """Never ends, and catches what it can."""
    while True:
        try:
            while True:
                pass
        except Exception:
            continue


def nested(x, depth):
    """Calls itself `depth` times."""
    return nested(x, depth - 1) if depth else repeating(x, 1)


def allocating(x, tensors):
    """Allocates many small tiles."""
    for _ in range(tensors):
        nl.ndarray((1, 1), nl.float32, nl.sbuf)
    return repeating(x, 1)


def spacious(x, rows):
    """Allocates `rows` rows of 1024 bfloat16 in HBM."""
    nl.ndarray((rows, 1024), nl.bfloat16, nl.private_hbm)
    return repeating(x, 1)


@LNC
def test_instructions_are_limited(lnc: int | None) -> None:
    """A kernel may execute as many instructions as the limit, not one more."""
    run_kernel(repeating, X, 98, lnc=lnc, limits=Limits(instructions=100))
    with pytest.raises(LimitError, match=r"test_nki_limits.py:\d+: the kernel executes more than 100 instr"):
        run_kernel(repeating, X, 99, lnc=lnc, limits=Limits(instructions=100))


def test_hardware_loops_without_instructions_are_limited() -> None:
    """A hardware loop counts its iterations, so that an empty one ends too."""

    def kernel(x, start):
        nl.while_loop(nisa.register_alloc(start), lambda register: register)
        return repeating(x, 1)

    run_kernel(kernel, X, 0, limits=Limits(instructions=100))
    with pytest.raises(LimitError, match="more than 100 instructions"):
        run_kernel(kernel, X, 1, limits=Limits(instructions=100))


@LNC
@pytest.mark.parametrize("kernel", [spinning, catching])
def test_time_is_limited(kernel, lnc: int | None) -> None:
    """A loop in plain Python ends by the clock, at its line, on one core and on two."""
    with pytest.raises(LimitError, match=r"test_nki_limits.py:\d+: the kernel runs longer than 0.2 seconds"):
        run_kernel(kernel, X, lnc=lnc, limits=Limits(seconds=0.2))


def test_a_memory_limit_that_cannot_be_watched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not tell the process's memory, asking for a limit is an error, not a wish."""
    assert Limits(host_bytes=MIB).host_bytes == MIB
    monkeypatch.setattr("neuron_port.simulator.limits.resident_host_bytes", lambda: 0)
    assert Limits().host_bytes is None
    with pytest.raises(LimitError, match="cannot be watched"):
        Limits(host_bytes=MIB)


def test_python_objects_count_as_memory_while_a_clock_runs() -> None:
    """A kernel that hoards what is no tensor ends by the memory limit, at its line; without hoarding it ends well."""

    def hoarding(x, hoards):
        hoard = []
        while hoards:
            hoard.append(b"x" * (MIB + len(hoard)))
        return repeating(x, 1)

    limits = Limits(seconds=60, host_bytes=resident_host_bytes() + 200 * MIB)
    run_kernel(hoarding, X, False, limits=limits)
    with pytest.raises(
        LimitError, match=r"test_nki_limits.py:\d+: the kernel brings the process to .* host memory"
    ):
        run_kernel(hoarding, X, True, limits=limits)


@LNC
def test_a_clock_that_does_not_strike_changes_nothing(lnc: int | None) -> None:
    """A kernel that ends in time gives its result, and nothing interrupts what follows."""
    run = run_kernel(repeating, X, 3, lnc=lnc, limits=Limits(seconds=60))
    np.testing.assert_array_equal(run.outputs[0], 3 * X)


@LNC
def test_recursion_is_refused_clearly(lnc: int | None) -> None:
    """Endless recursion is an error of the kernel's line; some recursion is fine."""
    run_kernel(nested, X, 20, lnc=lnc)
    with pytest.raises(LimitError, match=r"test_nki_limits.py:\d+: the kernel's calls are nested too deeply"):
        run_kernel(nested, X, 10**9, lnc=lnc)


def test_the_recursion_limit_can_be_lowered() -> None:
    """Limits(recursion=...) counts from the kernel's caller, and Python's limit is as before afterwards."""
    run_kernel(nested, X, 20, limits=Limits(recursion=100))
    with pytest.raises(LimitError, match="nested too deeply"):
        run_kernel(nested, X, 200, limits=Limits(recursion=100))
    run_kernel(nested, X, 200)


def test_allocations_are_limited() -> None:
    """Thousands of tensors are fine up to the limit."""
    run_kernel(allocating, X, 4000)
    with pytest.raises(LimitError, match="allocates more than 4000 tensors"):
        run_kernel(allocating, X, 4000, limits=Limits(allocations=4000))


def test_hbm_is_limited_by_declared_size() -> None:
    """Tensors in HBM count in their own dtype, inputs included, before any memory is taken."""
    needed = X.nbytes + 64 * 1024 * 2 + X.nbytes
    run_kernel(spacious, X, 64, limits=Limits(hbm_bytes=needed))
    with pytest.raises(LimitError, match=r"brings the tensors in HBM to .* the limit is"):
        run_kernel(spacious, X, 64, limits=Limits(hbm_bytes=needed - 1))


@pytest.mark.parametrize(("target", "gib"), [("trn1", 16), ("trn2", 24), ("trn3", 36)])
def test_hbm_ends_where_the_target_ends(target: str, gib: int) -> None:
    """Without a limit the HBM of one logical core is the limit; a tensor larger than it is never allocated."""
    with pytest.raises(LimitError, match=f"one logical core of the target owns {gib * 1024**3:,}"):
        run_kernel(spacious, X, gib * 1024**3 // 2048, target=target)


def test_host_memory_is_limited() -> None:
    """A process that would exceed its memory limit refuses the tensor, in the bytes that hold it."""
    rows = 300 * 1024**2 // 4096  # 300 MiB in float32
    run_kernel(spacious, X, rows, limits=Limits(host_bytes=1024**4))
    with pytest.raises(LimitError, match=r"of host memory; the limit is 1,048,576"):
        run_kernel(spacious, X, rows, limits=Limits(host_bytes=1024**2))


def test_running_out_of_python_memory_is_an_error_of_the_kernel() -> None:
    """A list that no machine can hold ends in an error at the kernel's line."""

    def kernel(x, entries):
        assert [0] * entries
        return repeating(x, 1)

    run_kernel(kernel, X, 10)
    with pytest.raises(LimitError, match=r"test_nki_limits.py:\d+: the simulation ran out of host memory"):
        run_kernel(kernel, X, 2**60)
