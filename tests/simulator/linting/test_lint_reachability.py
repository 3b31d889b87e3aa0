"""Which code of a file is judged: kernels and what they call, never the host code beside them."""

from __future__ import annotations

from neuron_port.simulator.linting import lint_source
from neuron_port.simulator.linting.reachability import kernel_code
from neuron_port.simulator.linting.source import read_source

IMPORTS = "import numpy as np\nimport nki\nimport nki.isa as nisa\nimport nki.language as nl\n"


def judged(source: str) -> list[str]:
    """Names of the functions that the lint judges."""
    return [code.name for code in kernel_code(read_source(IMPORTS + source, "kernel.py")).functions]


def rules(source: str) -> list[str]:
    """Rules of the findings."""
    return [finding.rule for finding in lint_source(IMPORTS + source)]


def test_host_code_is_not_judged() -> None:
    """NumPy references, tests and wrappers may use all of Python."""
    source = """
@nki.jit
def kernel(x):
    return x

def reference(x):
    return np.stack([row for row in x if row is not None])

def test_kernel():
    try:
        print(kernel(reference(np.zeros(3))), nl.float32, nisa.get_nc_version())
    except Exception:
        raise
"""
    assert judged(source) == ["kernel"]
    assert rules(source) == []


def test_what_a_kernel_calls_is_judged() -> None:
    """A helper without instructions counts as soon as a kernel calls it, directly or through another helper."""
    source = """
def rows(x):
    return [row for row in x]

def first(x):
    return rows(x)[0]

def unused(x):
    return [row for row in x]

@nki.jit
def kernel(x):
    return first(x)
"""
    assert judged(source) == ["rows", "first", "kernel"]
    assert rules(source) == ["W01"]


def test_a_helper_becomes_kernel_code_by_being_called() -> None:
    """The same helper, called by the host only, is free."""
    source = """
def rows(x):
    return [row for row in x]

@nki.jit
def kernel(x):
    return x

def host(x):
    return rows(kernel(x))
"""
    assert rules(source) == []


def test_functions_as_values_are_judged() -> None:
    """A function that a kernel passes on is inlined like one that it calls."""
    source = """
def body(i):
    print(i)

@nki.jit
def kernel(x):
    nl.fori_loop(0, 4, body)
    return x
"""
    assert judged(source) == ["body", "kernel"]


def test_plain_functions_with_instructions_are_kernels() -> None:
    """A kernel needs no decorator where its caller jits it."""
    assert judged("def helper(t):\n    nisa.reciprocal(t, t)\n") == ["helper"]
    assert judged("def plain(x):\n    return x\n\nfast = nki.jit(plain)\n") == ["plain"]
    assert judged("def plain(x):\n    return x\n\nrun = nki.simulate(plain)\n") == ["plain"]


def test_jit_is_found_under_every_name() -> None:
    """`nki.jit`, an alias of the module, and the imported function are the same decorator."""
    assert judged("@nki.jit\ndef k(x):\n    return x\n") == ["k"]
    assert judged("import nki as n\n@n.jit()\ndef k(x):\n    return x\n") == ["k"]
    assert judged("from nki import jit as fast\n@fast\ndef k(x):\n    return x\n") == ["k"]


def test_instructions_are_found_under_every_name() -> None:
    """Imports of functions, of `nki.isa` from `nki`, and of nki.isa.constants resolve to the same names."""
    source = """
from nki.isa import dma_copy as copy
from nki import isa
from nki.isa.constants import dge_mode

@nki.jit
def kernel(x, out):
    {line}
"""
    good = "copy(dst=out, src=x, dge_mode=dge_mode.hwdge)"
    assert rules(source.replace("{line}", good)) == []
    assert rules(source.replace("{line}", "copy(out)")) == ["E10"]
    assert rules(source.replace("{line}", "isa.dma_copy(dst=out, src=x, dge_mode=1)")) == ["E09"]


def test_a_parameter_hides_an_import() -> None:
    """A parameter called nl is no module, and one called print no builtin."""
    assert rules("@nki.jit\ndef kernel(x, nl, print):\n    print(nl.mgrid[0:4])\n    return x\n") == []


def test_methods_of_kernel_classes_are_judged() -> None:
    """A method counts when its class and its name appear in kernel code."""
    source = """
class Tile(nl.NKIObject):
    def __init__(self, size):
        print(size)

    def used(self):
        print(self)

    def unused(self):
        print(self)

@nki.jit
def kernel(x):
    Tile(4).used()
    return x
"""
    assert judged(source) == ["__init__", "used", "kernel"]


def test_host_classes_are_not_judged() -> None:
    """A class that no kernel mentions may derive from anything."""
    assert rules("class Model(dict, list):\n    pass\n\n@nki.jit\ndef kernel(x):\n    return x\n") == []


def test_decorators_defaults_and_annotations_are_host_code() -> None:
    """What Python evaluates when the function is defined never reaches the compiler."""
    source = "@nki.jit\ndef kernel(x: np.ndarray, eps: float = np.float32(1)):\n    size: np.int32 = 4\n    return x\n"
    assert rules(source) == []
