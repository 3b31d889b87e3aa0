"""Text that candidates make: numbers, shapes and dtypes go in, objects do not."""

from __future__ import annotations

import numpy as np
import pytest

from neuron_port.sandbox.namespace import load_candidate, public_modules
from neuron_port.simulator import ConstraintError, run_kernel

KERNEL = """
import nki
import nki.isa as nisa
import nki.language as nl


def helper():
    return 0


@nki.jit
def copy(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    register = nisa.register_alloc(3)
    TEXT
    nisa.dma_copy(dst=out, src=x)
    return out
"""


def run(text: str) -> bool:
    """Whether the kernel with `text` in it still copies its input."""
    source = KERNEL.replace("TEXT", text)
    x = np.ones((4, 8), np.float32)
    copied = run_kernel(load_candidate(source, "copy", public_modules()), x).outputs[0]
    return bool((copied == x).all())


@pytest.mark.parametrize(
    "text",
    [
        'assert f"tile_{x.shape[0]}" == "tile_4"',
        'assert f"{x.shape} {x.dtype!r:>3} {1.5:.2f}" != ""',
        'assert "%d of %s" % (3, (1, "a")) == "3 of (1, \'a\')"',
        'assert str(12) + str() == "12"',
        'assert isinstance("a", str) and not isinstance(1, str)',
        "assert 7 % 4 == 3 and 7.5 % 2 == 1.5",
        'tiles = {f"{1}": [1, 2]}; assert f"{tiles}" != ""',
    ],
)
def test_plain_values_become_text(text: str) -> None:
    """Numbers, text, shapes, dtypes and containers of them are formatted as Python does."""
    assert run(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('f"{x}"', "tensor"),
        ("str(x)", "tensor"),
        ('"%s" % x', "tensor"),
        ('form = "%s"; form % (1, x)', "tensor"),
        ('f"{[(1, x)]}"', "tensor"),
        ('f"{ {1: helper} }"', "function"),
        ('f"{helper}"', "function"),
        ('f"{nl.load!r}"', "function"),
        ('convert = str; convert(register)', "register"),
        ('f"{enumerate([1])}"', "enumerate"),
        ('f"{1:{x}}"', "tensor"),
        ('f"{x.reshape}"', "method"),
    ],
)  # fmt: skip
def test_objects_do_not_become_text(text: str, what: str) -> None:
    """The text of a function holds its address, that of a tensor says that this is the simulator: refused by name."""
    with pytest.raises(ConstraintError, match=f"text is made of a {what}"):
        run(text)
