"""The worker: a draft's kernel stays in a process of its own, and is called like any other operator."""

from __future__ import annotations

import dataclasses
import gc
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from neuron_port.execution import SandboxedOperator, SimulatedOperator, simulated_operator
from neuron_port.parity.recipe_cases import run_case
from neuron_port.registry import RegisteredRecipe, Registry
from neuron_port.sandbox.job import KernelCall, SandboxJob, SandboxLimits
from neuron_port.sandbox.run import run_job
from neuron_port.sandbox.worker import SandboxWorker
from neuron_port.simulator import ConstraintError, SimulatorError
from tests.sandbox.kernels import KERNEL, X, with_lines


def test_many_calls_one_process() -> None:
    """Calls are answered in order by the same process, with the arrays of each."""
    with SandboxWorker(KERNEL, "twice") as worker:
        for n in range(5):
            np.testing.assert_array_equal(worker.call([X + n], {})[0], 2 * (X + n))


def test_a_held_array_is_sent_once() -> None:
    """What `hold` returns stands for its array in later calls."""
    with SandboxWorker(KERNEL, "twice") as worker:
        held = worker.hold(X)
        np.testing.assert_array_equal(worker.call([held], {})[0], 2 * X)
        np.testing.assert_array_equal(worker.call([X + 1], {})[0], 2 * X + 2)
        np.testing.assert_array_equal(worker.call([held], {})[0], 2 * X)


ADDS = """
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def add_twice(x, first=None, second=None):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    x_sbuf = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=x_sbuf, src=x)
    for other in (first, second):
        if other is not None:
            other_sbuf = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=other_sbuf, src=other)
            nisa.tensor_tensor(dst=x_sbuf, data1=x_sbuf, data2=other_sbuf, op=nl.add)
    nisa.dma_copy(dst=out, src=x_sbuf)
    return out
"""


def test_an_optional_tensor_that_is_not_there_is_none() -> None:
    """The arguments keep their places, held or sent, whichever is missing; a job's calls have them likewise."""
    inputs: list[list[np.ndarray | None]] = [[X, None, X + 1], [X, X + 1, None], [X, None, None]]
    expected = [2 * X + 1, 2 * X + 1, X]
    with SandboxWorker(ADDS, "add_twice") as worker:
        for arrays, right in zip(inputs, expected, strict=True):
            np.testing.assert_array_equal(worker.call(arrays, {})[0], right)
        np.testing.assert_array_equal(worker.call([worker.hold(X), None, X + 1], {})[0], expected[0])
    calls = tuple(KernelCall(arrays=tuple(arrays)) for arrays in inputs)
    outcome = run_job(SandboxJob(source=ADDS, entry_point="add_twice", calls=calls))
    for call, right in zip(outcome.calls, expected, strict=True):
        np.testing.assert_array_equal(call.outputs[0], right)


def test_errors_are_those_of_the_simulator() -> None:
    """Class, words and line; the worker goes on."""
    with SandboxWorker(KERNEL, "twice", name="draft/kernel.py") as worker:
        with pytest.raises(ConstraintError, match=r"draft/kernel.py:\d+: "):
            worker.call([np.zeros((200, 4), np.float32)], {})
        np.testing.assert_array_equal(worker.call([X], {})[0], 2 * X)


def test_a_python_error_is_a_simulator_error_of_its_words() -> None:
    """Callers that handle what the simulator refuses handle a kernel that raises, too."""
    with (
        SandboxWorker(with_lines("assert x.shape[0] > 100, 'few rows'"), "twice") as worker,
        pytest.raises(SimulatorError, match="AssertionError: few rows"),
    ):
        worker.call([X], {})


def test_a_refused_source_gets_no_process() -> None:
    """The gate comes first here, too."""
    with pytest.raises(SimulatorError, match="forbidden name"):
        SandboxWorker(with_lines("n = open('x')"), "twice")


def test_after_its_end_every_call_says_why() -> None:
    """A kernel that runs too long is ended; further calls say the same and start nothing."""
    limits = SandboxLimits(wall_seconds=0.5)
    with SandboxWorker(with_lines("while True: pass"), "twice", limits=limits) as worker:
        for _ in range(2):
            with pytest.raises(SimulatorError, match="wall time"):
                worker.call([X], {})


def test_limits_count_for_each_call() -> None:
    """Three calls that together exceed the wall time and the bytes of one are answered."""
    limits = SandboxLimits(wall_seconds=5.0, output_bytes=X.nbytes)
    with SandboxWorker(KERNEL, "twice", limits=limits) as worker:
        for _ in range(3):
            np.testing.assert_array_equal(worker.call([X], {})[0], 2 * X)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_closes_itself() -> None:
    """When nothing refers to a worker any more, its process has ended."""
    worker = SandboxWorker(KERNEL, "twice")
    pid = worker.pid
    assert Path(f"/proc/{pid}").exists()
    del worker
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_a_closed_worker_says_so() -> None:
    """A call after `close` is refused by name; closing twice is fine."""
    worker = SandboxWorker(KERNEL, "twice", name="draft/kernel.py")
    worker.close()
    worker.close()
    with pytest.raises(SimulatorError, match=r"draft/kernel\.py is closed"):
        worker.call([X], {})


def test_it_outlives_the_thread_that_started_it() -> None:
    """A worker belongs to the process, not to a thread of it."""
    made: list[SandboxWorker] = []
    thread = threading.Thread(target=lambda: made.append(SandboxWorker(KERNEL, "twice")))
    thread.start()
    thread.join()
    with made[0] as worker:
        np.testing.assert_array_equal(worker.call([X], {})[0], 2 * X)


def as_draft(name: str) -> RegisteredRecipe:
    """A recipe as if a language model had written its kernel."""
    found = Registry()[name]
    draft = RegisteredRecipe(found.recipe, found.folder)
    draft.__dict__["kernel"] = dataclasses.replace(found.kernel, origin="draft")
    return draft


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draft_runs_in_a_sandbox_and_gives_the_same_bits(dtype: torch.dtype) -> None:
    """`simulated_operator` decides by the kernel's origin; weights may be shared; results are equal."""
    recipe, draft = (
        simulated_operator(found, "trn2") for found in (Registry()["rms_norm"], as_draft("rms_norm"))
    )
    assert isinstance(recipe, SimulatedOperator)
    assert isinstance(draft, SandboxedOperator)
    x, gamma = torch.randn(64, 256, dtype=dtype), torch.randn(256, dtype=dtype)
    draft.share_weights([gamma])
    for _ in range(2):
        assert torch.equal(draft(x, gamma, 1e-5), recipe(x, gamma, eps=1e-5))


@pytest.mark.parametrize("name", list(Registry()))
def test_every_recipe_runs_as_a_draft(name: str) -> None:
    """The gate, the namespace and the confinement take nothing away that an honest kernel needs."""
    draft = as_draft(name)
    operator = simulated_operator(draft, "trn2")
    case = draft.recipe.cases[0]
    comparisons, _ = run_case(draft.recipe, draft.reference, operator, case, torch.float32)
    assert comparisons
    for comparison in comparisons:
        assert comparison.passed, comparison.detail


def test_a_draft_is_never_loaded_here() -> None:
    """The operator of this process refuses a draft's kernel."""
    kernel = as_draft("rms_norm").kernel
    with pytest.raises(AssertionError, match="sandbox only"):
        SimulatedOperator(kernel, ("x", "gamma"), ("eps",), "trn2")
