"""The gate: what is on its lists passes, what is not is refused by name, and no text breaks it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from neuron_port.sandbox.gate import inspect_source
from neuron_port.sandbox.job import Failure
from tests.sandbox.kernels import HEADER, KERNEL, with_lines

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*/kernel.py"))


def refused(source: str, entry_point: str = "twice") -> Failure:
    failure = inspect_source(source, entry_point)
    assert failure is not None, "the gate lets it pass"
    assert failure.kind == "refused"
    assert failure.message
    assert failure.hint
    return failure


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_every_recipe_passes(file: Path) -> None:
    """The kernels that people have written and read are written in what the gate allows."""
    assert inspect_source(file.read_text(), file.parent.name) is None


# One line inside of a kernel: the good one passes, the bad one differs in what is refused.
LINES = [
    ("n = x.shape[0]", "n = x.array", "forbidden attribute"),
    ("n = x.shape[0]", "n = x.storage", "forbidden attribute"),
    ("n = x.shape[0]", "n = x.__class__", "forbidden attribute"),
    ("n = x.shape[0]", "n = x._view", "forbidden attribute"),
    ("n = x.reshape((8, 4))", "n = x.readable.reshape((8, 4))", "forbidden attribute"),
    ("n = nl.tile_size.pmax", "n = nl.__dict__", "forbidden attribute"),
    ("n = nl.tile_size.pmax", "n = nl.tile_size.pmaxx", "unknown name"),
    ("n = nisa.engine.vector", "n = nisa.engine.vector.value", "forbidden attribute"),
    ("n = nisa.engine.vector", "n = nisa", "forbidden name"),
    ("n = nl.ndarray(x.shape, x.dtype)", "n = nl.NkiTensor(x.shape, x.dtype)", "forbidden name"),
    ("n = isinstance(x, nl.NkiTensor)", "n = [nl.NkiTensor]", "forbidden name"),
    ("n = isinstance(x, nl.NkiTensor)", "n = isinstance(x, nl.NkiTensor.reshape)", "forbidden attribute"),
    ("n = nl.ndarray(x.shape, x.dtype)", "n = nl.par_dim(4)", "unknown name"),
    ("n = nl.exp", "n = nl.device_print", "forbidden attribute"),
    ("n = nl.exp", "n = nl.shared_constant('oracle.npy')", "forbidden attribute"),
    ("n = nisa.tensor_copy", "n = nki.simulate", "forbidden attribute"),
    ("n = math.sqrt(2.0)", "n = math.sqroot(2.0)", "unknown name"),
    ("n = len(x.shape)", "n = getattr(x, 'shape')", "forbidden name"),
    ("n = str(x.shape)", "n = repr(x.shape)", "forbidden name"),
    ("n = str(x.shape)", "n = eval('x.shape')", "forbidden name"),
    ("n = str(x.shape)", "n = open('/etc/passwd')", "forbidden name"),
    ("n = str(x.shape)", "n = __import__('os')", "forbidden name"),
    ("n = str(x.shape)", "n = __builtins__", "forbidden name"),
    ("n = str(x.shape)", "n = undefined", "unknown name"),
    ("n = str(x.shape)", "print(x.shape)", "forbidden name"),
    ("n = f'{x.shape}'", "n = '{0.shape}'.format(x)", "forbidden attribute"),
    ("n = f'{x.shape}'", "n = f'{x.__class__}'", "forbidden attribute"),
    ("n = f'{x.shape}'", "n = f'{x.shape:{x.__class__}}'", "forbidden attribute"),
    ("assert x.ndim == 2, 'rank'", "raise ValueError('rank')", "forbidden construct"),
    ("n = [1]", "n = [i for i in range(3)]", "forbidden construct"),
    ("n = (1,)", "n = {1}", "forbidden construct"),
    ("n = (1,)", "n = (i for i in range(3))", "forbidden construct"),
    ("n = max(1, 2)", "n = max(*[1, 2])", "forbidden construct"),
    ("n = dict(a=1)", "n = dict(**{'a': 1})", "forbidden construct"),
    ("n = 1", "n = lambda: 1", "forbidden construct"),
    ("n = 1", "(n := 1)", "forbidden construct"),
    ("n = 1", "del x", "forbidden construct"),
    ("n = 1", "global n", "forbidden construct"),
    ("n = 1", "n = yield", "forbidden construct"),
    ("n = 1", "n = b'1'", "forbidden construct"),
    ("n = 1", "n = 1j", "forbidden construct"),
    ("n = 1 * 2", "n = x @ x", "forbidden construct"),
    ("n = 1", "import os", "forbidden import"),
    ("n = 1", "import math", "forbidden import"),
    ("n = 1", "nl = 1", "forbidden name"),
    ("n = 1", "math = 1", "forbidden name"),
    ("n = 1", "n__m = 1", "forbidden name"),
    ("n = 1", "ν = 1", "forbidden name"),
    ("n = [1, 2]; n[0] = 3", "x.shape[0] = 3", "forbidden attribute"),
    ("n = [1, 2]; n[0] = 3", "x.name = 'y'", "forbidden attribute"),
    ("n = [1, 2]; n[0] = 3", "nl.exp = nl.tanh", "forbidden attribute"),
    ("n = [1, 2]; n[0] = 3", "twice.calls = 1", "forbidden attribute"),
    ("n = [1, 2]; n[0] = 3", "n, twice.calls = 1, 2", "forbidden attribute"),
    ("n = [1, 2]; n[0] += 3", "nl.tile_size.pmax += 1", "forbidden attribute"),
    ("for n in range(3): pass", "for nl.exp in range(3): pass", "forbidden attribute"),
    ("n = abs(-1)", "n = (abs or len)(-1)", "forbidden call"),
    ("n = abs(-1)", "n = [abs][0](-1)", "forbidden call"),
]


@pytest.mark.parametrize(("good", "bad", "error_class"), LINES, ids=[bad for _, bad, _ in LINES])
def test_one_line_of_a_kernel(good: str, bad: str, error_class: str) -> None:
    """A kernel passes with the good line, and is refused at the bad one, by the class of what it breaks."""
    assert inspect_source(with_lines(good), "twice") is None
    failure = refused(with_lines(bad))
    assert failure.error_class == error_class
    assert failure.line == with_lines(bad).splitlines().index(f"    {bad}") + 1


# Module level: what stands above the kernel.
TOPS = [
    ("import nki.typing as nt", "import os", "forbidden import"),
    ("import nki.typing as nt", "import nki.compiler", "forbidden import"),
    ("import nki.typing as nt", "import neuronxcc.nki.language as old", "forbidden import"),
    ("import nki.typing as nt", "from . import other", "forbidden import"),
    ("from nki.language import exp", "from nki.language import *", "forbidden import"),
    ("from nki.language import exp", "from nki.language import _run", "forbidden attribute"),
    ("from nki.language import exp", "from nki import simulate", "forbidden attribute"),
    ("from nki.language import exp", "from math import __loader__", "forbidden attribute"),
    ("from math import sqrt", "import math as nl", "forbidden name"),
    ("P = 128", "P = []", "mutable state"),
    ("P = (1, 2)", "P = (1, [2])", "mutable state"),
    ("P = (1, 2)", "P = {'a': 1}", "mutable state"),
    ("P = 1 / math.sqrt(2)", "P = list((1, 2))", "mutable state"),
    ("P = nl.float32", "P = nl.ndarray((1, 1), nl.float32)", "mutable state"),
    ("P = 2; Q = P * 2", "Q = P * 2", "mutable state"),
    ("P, Q = 1, 2", "P = 1; P = 2", "mutable state"),
    ("P = 1", "P = 1; P += 1", "forbidden construct"),
    ("P = 1", "P: list = []", "mutable state"),
    ("P = 1", "len('x')", "forbidden construct"),
    ("P = 1", "for i in range(3): P = i", "forbidden construct"),
    ("P = 1", "if True: P = 1", "forbidden construct"),
    ("def f(a=1): return a", "def f(a=[]): return a", "mutable state"),
    ("def f(a=1): return a", "def f(*, a=[]): return a", "mutable state"),
    ("def f(a=1): return a", "def f(a=len('x')): return a", "mutable state"),
    ("def f(a=1): return a", "def f(*a): return a", "forbidden construct"),
    ("def f(a=1): return a", "def f(**a): return a", "forbidden construct"),
    ("def f(a: nl.NkiTensor): return a", "def f(a: nl.__class__): return a", "forbidden attribute"),
    ("def f(): return 1", "async def f(): return 1", "forbidden construct"),
    ("def f(): return 1", "class F: pass", "forbidden construct"),
    ("def f(a): return a", "def f(nl): return nl", "forbidden name"),
    ("@nki.jit\ndef f(a): return a", "@nki.jit(mode='x')\ndef f(a): return a", "forbidden construct"),
    ("@nki.jit\ndef f(a): return a", "@abs\ndef f(a): return a", "forbidden construct"),
    ("def f(a):\n    with nl.no_reorder():\n        pass", "def f(a):\n    with a:\n        pass", "forbidden construct"),
    (
        "def f(a):\n    with nl.no_reorder():\n        pass",
        "def f(a):\n    with nl.no_reorder() as b:\n        pass",
        "forbidden construct",
    ),
    ("def f(a): return a", "def f(a):\n    try: return a\n    except: pass", "forbidden construct"),
    ("def f(a): return a", "def f(a):\n    match a:\n        case _: return a", "forbidden construct"),
    ("def f(a):\n    def g(i): pass\n    return a", "def f(a):\n    @abs\n    def g(i): pass", "forbidden construct"),
    ("def f(a):\n    open = a\n    return open", "def f(open): return 1\ndef g(): return open", "forbidden name"),
    ("def f(a):\n    b = a\n    return b", "def f(a):\n    b = a\ndef g(): return b", "unknown name"),
    ("P = (1, 2)\ndef f(a): return P[0]", "P = (1, 2)\ndef f(a): P[0] = a", "mutable state"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "error_class"), TOPS, ids=[bad for _, bad, _ in TOPS])
def test_one_statement_above_a_kernel(good: str, bad: str, error_class: str) -> None:
    """A file passes with the good statement, and is refused with the bad one, by the class of what it breaks."""
    assert inspect_source(HEADER + good + KERNEL.removeprefix(HEADER), "twice") is None
    assert refused(HEADER + bad + KERNEL.removeprefix(HEADER)).error_class == error_class


def test_the_entry_point_is_there_and_marked() -> None:
    """The function that will be called exists and is a kernel of NKI's."""
    assert inspect_source(KERNEL, "twice") is None
    assert "`twice`" in refused(KERNEL, "thrice").message
    assert refused(KERNEL.replace("@nki.jit\n", "")).error_class == "entry point"


def test_names_of_earlier_versions_come_with_their_cure() -> None:
    """A name that 0.6 no longer has is refused with what replaces it."""
    assert "nisa.iota" in (refused(with_lines("i = nl.arange(128)")).hint or "")
    assert "nl.float32" in (refused(with_lines("i = nl.float3")).hint or "").replace("nki.language", "nl")


BOMBS = {
    "minus signs": with_lines("n = " + "-" * 60_000 + "1"),
    "not": with_lines("n = " + "not " * 12_000 + "1"),
    "sum": with_lines("n = 1" + "+1" * 30_000),
    "brackets": with_lines("n = " + "(" * 30_000 + ")" * 30_000),
    "open brackets": with_lines("n = " + "[" * 60_000),
    "attributes": with_lines("n = x" + ".a" * 30_000),
    "calls": with_lines("n = x" + "()" * 30_000),
    "subscripts": with_lines("n = x" + "[0]" * 20_000),
    "conditions": with_lines("n = " + "1 if x else " * 5_000 + "1"),
    "elif": with_lines("if x: pass", *["elif x: pass"] * 4_000),
    "comparisons": with_lines("n = 1" + "<1" * 30_000),
    "powers": with_lines("n = 2" + "**2" * 20_000),
    "nested f-string": with_lines("n = f'{" + "-" * 50_000 + "1}'"),
    "number": with_lines("n = " + "9" * 60_000),
    "decorators": HEADER + "@nki.jit\n" * 6_000 + "def twice(x): return x\n",
    "lambdas": with_lines("n = " + "lambda: " * 7_000 + "1"),
    "texts": with_lines("n = " + "'a' " * 15_000),
    "long": KERNEL + "#" * 70_000,
    "null": KERNEL + "\0",
    "surrogate": KERNEL + "# \ud800",
    "carriage return": with_lines("n = 1  # \r" + "-" * 1000),
    "form feed": KERNEL + "\f",
    "right to left": with_lines("n = 1  # \u202e"),
    "byte order mark": "\ufeff" + KERNEL,
    "escape": with_lines(r"n = '\d'"),
    "open text": with_lines("n = '''"),
    "dedent": with_lines("if x:", "  n = 1", " n = 2"),
    "number and word": with_lines("n = 1if x else 2"),
    "empty": "",
    "words": "I cannot write this kernel.",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_no_text_breaks_the_gate(bomb: str) -> None:
    """Whatever the text is, the answer is a refusal: no recursion error, no crash, no warning."""
    failure = inspect_source(bomb, "twice")
    assert failure is not None
    assert (failure.kind, bool(failure.message), bool(failure.hint)) == ("refused", True, True)


def blocks(depth: int) -> str:
    return with_lines(*["    " * n + "if x is None:" for n in range(depth)], "    " * depth + "n = 1")


def test_nesting_has_a_bound() -> None:
    """What people nest passes; what only a bomb nests does not."""
    assert inspect_source(blocks(10), "twice") is None
    assert refused(blocks(60)).error_class in ("nesting", "syntax")
    assert inspect_source(with_lines("n = " + "(" * 20 + "1" + ")" * 20), "twice") is None
    assert refused(with_lines("n = " + "(" * 60 + "1" + ")" * 60)).error_class == "nesting"


def test_windows_line_ends_pass() -> None:
    """A reply with carriage returns at its line ends is the same kernel."""
    assert inspect_source(KERNEL.replace("\n", "\r\n"), "twice") is None


def test_a_long_kernel_is_read_in_a_moment(record_property: pytest.RecordProperty) -> None:
    """The longest recipe is read whole; the time is recorded, not judged."""
    source = max((file.read_text() for file in RECIPES), key=len)
    start = time.perf_counter()
    inspect_source(source, "attention")
    record_property("gate_ms", (time.perf_counter() - start) * 1e3)
    assert source.count("\n") > 300
