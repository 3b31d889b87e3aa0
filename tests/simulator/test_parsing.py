"""Kernels are parsed by several threads at once."""

from __future__ import annotations

import ast
import gc
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from neuron_port.simulator.parsing import parse_python

KERNEL = (Path(__file__).parents[2] / "recipes" / "gated_mlp" / "kernel.py").read_text()


class Lingering:
    """Garbage that lets other threads go on when it is collected, which may be in the middle of a tree."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        time.sleep(0)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns as often as they can, with garbage collected all the time."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)


def test_threads_parse_side_by_side(hasty_threads: None) -> None:
    """Every thread gets the tree that it would get alone; with `ast.parse`, CPython 3.11 raises SystemError here."""
    expected = ast.dump(ast.parse(KERNEL))

    def parse(_: int) -> str:
        Lingering()
        return ast.dump(parse_python(KERNEL))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(parse, range(100))) == {expected}
