"""Small kernels for the tests of the profile: source text with blanks, run and predicted."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from neuron_port.profiling.profile import Profile, make_profile
from neuron_port.simulator import load_kernel_source, run_kernel
from neuron_port.simulator.timing import predict

HEAD = """
import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
"""


def source_of(body: str) -> str:
    """A kernel file with one kernel; `body` is its `def`."""
    return HEAD.lstrip() + textwrap.dedent(body).strip() + "\n"


def profile_of(
    body: str, *arrays: Any, target: str = "trn2", lnc: int = 1, file: str = "kernel.py", **settings: Any
) -> Profile:
    """Run the kernel `k` of `body` and make its profile."""
    kernel = load_kernel_source(source_of(body), "k", file)
    run = run_kernel(kernel, *arrays, target=target, lnc=lnc, **settings)
    return make_profile("k", predict(run), run.traces, run.target, run.warnings)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """The same random values for the same shape."""
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32).astype(dtype)


def line_of(profile: Profile, text: str) -> int:
    """The number of the only source line that contains `text`."""
    (found,) = [n for lines in profile.sources.values() for n, line in enumerate(lines, 1) if text in line]
    return found
