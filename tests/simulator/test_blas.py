"""BLAS uses one thread while a kernel runs, and as many as before afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuron_port.simulator import ConstraintError, run_kernel
from neuron_port.simulator.blas import OneBlasThread, thread_control
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl


@pytest.fixture
def threads() -> Any:
    """The number of BLAS threads, which is two at the start of the test."""
    control = thread_control()
    if control is None:
        pytest.skip("NumPy here carries another BLAS than OpenBLAS")
    count, choose = control
    before = count()
    choose(2)
    if count() != 2:
        pytest.skip("OpenBLAS on this machine has one thread only")
    yield count
    choose(before)


def test_the_block_uses_one_thread(threads: Any) -> None:
    """Inside the block there is one thread, after it two again."""
    with OneBlasThread():
        assert threads() == 1
    assert threads() == 2


@pytest.mark.parametrize("lnc", [1, 2])
def test_kernels_run_with_one_thread(threads: Any, lnc: int) -> None:
    """Every program sees one thread, on one core and on two."""
    seen = []

    def kernel(x: Any) -> Any:
        seen.append(threads())
        rows = nl.ds(nl.program_id(0) * 2 // lnc, 2 // lnc)
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out[rows], x[rows])
        return out

    run_kernel(kernel, np.ones((2, 4), np.float32), lnc=lnc)
    assert seen == [1] * lnc
    assert threads() == 2


def test_a_refused_kernel_gives_the_threads_back(threads: Any) -> None:
    """An error in the kernel ends the block too."""

    def kernel(x: Any) -> Any:
        nisa.memset(x, 0.0)

    with pytest.raises(ConstraintError):
        run_kernel(kernel, np.ones((1, 4), np.float32))
    assert threads() == 2
