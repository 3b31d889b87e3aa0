"""What every recipe must pass, generated from its own cases: a contributor writes no test for this."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuron_port.execution import simulated_operator
from neuron_port.parity.recipe_cases import run_case
from neuron_port.registry import Registry

REGISTRY = Registry()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SOURCE_GROUPS = 4  # processes: each loads torch and Triton, which takes longer than most checks
TARGETS = {"gen2": "inf2", "gen3": "trn2"}
# Large cases reach a kernel's outer loops, which no generation changes: each dtype meets one generation there.
GENERATION_OF_LARGE = {"float32": "gen2", "bfloat16": "gen3"}
CASES = [
    pytest.param(
        name, case, dtype, generation, id=f"{name}-{case.name}-{dtype}-{generation}".replace(" ", "_")
    )
    for name, found in REGISTRY.items()
    for case in found.recipe.cases
    for dtype in found.recipe.dtypes
    for generation in found.recipe.generations
    if case.kind != "large" or generation == GENERATION_OF_LARGE.get(dtype, generation)
]


@pytest.mark.parametrize(("name", "case", "dtype", "generation"), CASES)
def test_kernel_agrees_with_its_reference_and_wrong_answers_do_not(name, case, dtype, generation):
    """The kernel on the simulator is within the dtype's noise; zeros, shuffles, echoes and 2 % errors are refused."""
    found = REGISTRY[name]
    operator = simulated_operator(found, TARGETS[generation])
    comparisons, refused = run_case(found.recipe, found.reference, operator, case, DTYPES[dtype])
    for comparison in comparisons:
        assert comparison.passed, comparison.detail
    assert refused, "no wrong answer could be made for this case"
    for wrong, comparison in refused.items():
        assert not comparison.passed, f"{wrong} was not refused"


@pytest.mark.parametrize("name", REGISTRY)
def test_cases_tell(name):
    """A recipe has ordinary, tail, stress and large cases."""
    kinds = {case.kind for case in REGISTRY[name].recipe.cases}
    assert {"ordinary", "tail", "stress"} <= kinds


@pytest.mark.parametrize("name", REGISTRY)
def test_folder_is_complete(name):
    """Kernel, reference, GPU source with origin and licence, and a page for people are there."""
    found = REGISTRY[name]
    for file in ("kernel.py", "reference.py", "source.py", "README.md"):
        assert found.source_text(file).strip(), file
    source = found.source_text("source.py")
    assert "Apache-2.0" in source
    assert "triton" in source
    assert found.recipe.documentation


@pytest.mark.parametrize("number", range(SOURCE_GROUPS))
def test_gpu_sources_compute_the_same(number):
    """The Triton kernels that recipes replace agree with the references, on Triton's CPU interpreter."""
    pytest.importorskip("triton", reason="triton is published for Linux only")
    names = list(REGISTRY)[number::SOURCE_GROUPS]
    finished = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("check_source.py")), *names],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
