"""Loading kernel files and what a run records."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from neuron_port.simulator import (
    ConstraintError,
    UnsupportedError,
    load_kernel,
    load_kernel_source,
    run_kernel,
)

SOURCE = """
import math
import nki
import nki.language as nl
import nki.isa as nisa
from nki import isa
from nki.language import float32

@nki.jit
def scale(x, factor=2.0):
    tile = nl.ndarray(x.shape, dtype=float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    isa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=math.sqrt(factor * factor))
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tile)
    return out
"""
X = np.arange(24, dtype=np.float32).reshape(4, 6)


def test_kernel_files_import_the_simulators_nki(tmp_path):
    """All forms of `import nki...` resolve, and sys.modules never learns of it."""
    path = tmp_path / "kernel.py"
    path.write_text(SOURCE)
    run = run_kernel(load_kernel(path, "scale"), X, factor=3.0)
    np.testing.assert_allclose(run.outputs[0], 3 * X, rtol=1e-6)
    assert "nki" not in sys.modules


def test_other_imports_are_refused():
    """numpy inside a kernel file does not compile for the device."""
    with pytest.raises(UnsupportedError, match="import of `numpy`"):
        load_kernel_source("import numpy\n" + SOURCE, "scale")
    with pytest.raises(UnsupportedError, match=r"nki.profiler"):
        load_kernel_source("import nki.profiler\n" + SOURCE, "scale")


def test_missing_kernel_names_what_is_there():
    """A misspelt entry point lists the functions of the file."""
    with pytest.raises(UnsupportedError, match="no kernel `scales`") as caught:
        load_kernel_source(SOURCE, "scales")
    assert "scale" in caught.value.hint


def test_errors_point_into_the_kernel_file():
    """The message opens with file and line, and names the tile by its variable."""
    broken = SOURCE.replace("dst=tile, data=tile", "dst=tile[0:2], data=tile")
    with pytest.raises(ConstraintError) as caught:
        run_kernel(load_kernel_source(broken, "scale", "/kernels/scale.py"), X)
    assert str(caught.value).startswith(
        "/kernels/scale.py:13: tensor_scalar: data `tile` (4, 6) float32 @ sbuf"
    )


def test_trace_tells_what_ran():
    """Engine, opcode, operands and source line of each instruction, and totals."""
    run = run_kernel(load_kernel_source(SOURCE, "scale", "/kernels/scale.py"), X)
    assert run.trace.counts_by_opcode() == {"dma_copy": 2, "tensor_scalar": 1}
    assert run.trace.counts_by_engine() == {"dma": 2, "vector": 1}
    instruction = run.trace.instructions[1]
    assert instruction.location == "/kernels/scale.py:13"
    assert "tensor_scalar[vector](tile(4, 6):float32" in repr(instruction)
    assert run.trace.dma_bytes == run.hbm_read_bytes + run.hbm_write_bytes == 2 * X.nbytes
