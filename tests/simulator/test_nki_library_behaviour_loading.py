"""Loading kernels of packages, with their imports, and calling them as AWS's `nki` does."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import ConstraintError, UnsupportedError, load_kernel, run_kernel
from neuron_port.simulator.nki import Kernel, compiler, jit, simulate
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from neuron_port.simulator.nki import typing as nt

X = np.arange(12, dtype=np.float32).reshape(3, 4)

HELPER = """
import nki.isa as nisa
import nki.language as nl

def load(x):
    tile = nl.ndarray(x.shape, x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    return tile
"""
KERNEL = """
from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
from nki.isa.constants import oob_mode
from nki.language import NKIObject

from ..common.helper import load

@dataclass
class Config(NKIObject):
    factor: float
    label = None

@nki.jit(mode="trace", debug_kernel=True)
def scale(x, factor):
    config = Config(factor=factor, label=str(np.float32(1)))
    tile = load(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=config.factor)
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tile, oob_mode=oob_mode.skip)
    return out
"""


@pytest.fixture
def package(tmp_path):
    """A package of two folders whose kernel imports numpy and, relatively, a helper."""
    for folder, name, text in (("common", "helper.py", HELPER), ("kernels", "scale.py", KERNEL)):
        path = tmp_path / "some_kernels" / folder
        path.mkdir(parents=True)
        (path / "__init__.py").write_text("")
        (path / name).write_text(text)
    (tmp_path / "some_kernels/__init__.py").write_text("")
    return tmp_path / "some_kernels/kernels/scale.py"


def in_a_process_of_its_own(code, *arguments):
    """Run code in a fresh interpreter, as installing `nki` lasts as long as the process."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_kernel_of_a_package_loads_with_its_imports(package):
    """Relative imports, numpy, nki.isa.constants, old jit options and unannotated record fields all work."""
    done = in_a_process_of_its_own(
        """
        import sys
        import numpy as np
        from neuron_port.simulator import load_kernel, run_kernel
        kernel = load_kernel(sys.argv[1], "scale", imports="any")
        x = np.arange(12, dtype=np.float32).reshape(3, 4)
        assert (run_kernel(kernel, x, factor=3.0).outputs[0] == 3 * x).all()
        assert kernel.function.__module__ == "some_kernels.kernels.scale"
        """,
        package,
    )
    assert done.returncode == 0, done.stderr


def test_a_recipe_may_still_import_nothing_else(package):
    """The default refuses numpy and relative imports before anything of them runs."""
    with pytest.raises(UnsupportedError, match=r"import of `numpy`"):
        load_kernel(package, "scale")
    assert "some_kernels" not in sys.modules
    assert "nki" not in sys.modules


def test_another_nki_is_not_replaced(tmp_path):
    """Installing the simulator where AWS's package is imported is refused."""
    (tmp_path / "nki").mkdir()
    (tmp_path / "nki/__init__.py").write_text("")
    done = in_a_process_of_its_own(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import nki
        from neuron_port.simulator import SimulatorError, install_as_nki
        try:
            install_as_nki()
        except SimulatorError as error:
            assert "another `nki`" in str(error)
        assert "nki.language" not in sys.modules
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_single_files_named_like_other_modules_load_side_by_side(tmp_path):
    """Two files of the same name in different folders, or one called like a standard module, do not collide."""
    done_in = []
    for folder in ("one", "two"):
        path = tmp_path / folder / "queue.py"
        path.parent.mkdir()
        path.write_text(f"def kernel(x):\n    return {folder!r}\n")
        done_in.append(path)
    done = in_a_process_of_its_own(
        """
        import sys
        from neuron_port.simulator import load_kernel
        assert [load_kernel(path, "kernel", imports="any")(0) for path in sys.argv[1:]] == ["one", "two"]
        import queue
        assert queue.Queue
        """,
        *done_in,
    )
    assert done.returncode == 0, done.stderr


@jit
def add_one(x, target=1.0):
    tile = nl.ndarray(x.shape, x.dtype)
    nisa.dma_copy(tile, x)
    nisa.tensor_scalar(tile, tile, nl.add, target)
    nisa.dma_copy(x, tile)
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    nisa.dma_copy(out, tile)
    return out


def test_simulate_updates_inputs_in_place():
    """An array that the kernel writes holds the new values after nki.simulate; run_kernel refuses that."""
    x = X.copy()
    out = simulate(add_one)(x)
    np.testing.assert_array_equal(out, X + 1)
    np.testing.assert_array_equal(x, X + 1)
    with pytest.raises(ConstraintError, match="kernel input and is written"):
        run_kernel(add_one, x)


def test_simulate_updates_views_that_are_not_contiguous():
    """A transposed array is updated as well."""
    x = X.T.copy().T
    simulate(add_one)(x, target=2.0)
    np.testing.assert_array_equal(x, X + 2)


def test_a_read_only_array_is_not_updated():
    """A kernel that writes an array which NumPy protects is refused instead of losing the write."""
    x = X.copy()
    x.flags.writeable = False
    with pytest.raises(ConstraintError, match="kernel input and is written"):
        simulate(add_one)(x)


def test_simulate_speaks_torch_in_bfloat16():
    """Torch tensors go in, torch tensors of the same dtype come out, and the input changes in place."""
    torch = pytest.importorskip("torch")
    x = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    out = simulate(add_one)(x)
    assert out.dtype is torch.bfloat16
    assert torch.equal(out, torch.arange(1, 13, dtype=torch.bfloat16).reshape(3, 4))
    assert torch.equal(x, out)


def test_narrow_dtypes_keep_their_bits_in_place():
    """bfloat16 numpy arrays are written in their own dtype."""
    x = X.astype(ml_dtypes.bfloat16)
    simulate(add_one)(x)
    np.testing.assert_array_equal(x, (X + 1).astype(ml_dtypes.bfloat16))


def test_a_kernel_inside_a_kernel_is_inlined():
    """A jitted kernel that another kernel calls runs as a plain function."""

    def outer(x):
        return add_one(x)

    np.testing.assert_array_equal(simulate(outer)(X.copy()), X + 1)


def test_launch_degrees_are_one_and_two():
    """kernel[2] asks for both cores; other grids are refused by name."""
    assert add_one[2].lnc == 2
    assert isinstance(add_one[1], Kernel)
    with pytest.raises(UnsupportedError, match=r"launched with \[4\]"):
        add_one[4]


def test_annotations_and_compiler_decorators_change_nothing():
    """nt.tensor[...], nt.mutable_tensor[...] and decorators of nki.compiler leave a kernel as it is."""

    def kernel(x: nt.tensor[3, 4], y: nt.mutable_tensor[3, 4] = None):
        return x

    assert compiler.skip_middle_end_transformations(kernel) is kernel
    assert compiler.enable_stack_allocator(log_level=10)(kernel) is kernel
    with pytest.raises(UnsupportedError, match=r"nki\.compiler\.frontend"):
        compiler.frontend  # noqa: B018 - the access is what is tested
