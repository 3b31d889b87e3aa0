"""One BLAS thread while kernels run: a matmul of 128 x 128 x 512 is too small to be shared among cores.

Waking a second thread costs about as much as half of such a product. On an idle machine two threads gain a tenth;
where the cores have other work, each of ten thousand small products waits for the scheduler and a kernel takes ten
times as long. NumPy does not offer the setting, so it is made where OpenBLAS, which NumPy's wheels carry, keeps it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

# Names in NumPy's wheels (with 64-bit integers, the newer with a prefix), and of a plain build.
SETTERS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads")


@cache
def thread_control() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """(number of BLAS threads, set it), or None where NumPy carries another library than OpenBLAS."""
    folder = Path(np.__file__).parent
    for libraries in (folder.parent / "numpy.libs", folder / ".dylibs"):
        for path in sorted(libraries.glob("*openblas*")):
            library = ctypes.CDLL(str(path))  # loaded already: this only finds it
            for setter in SETTERS:
                if hasattr(library, setter):
                    return getattr(library, setter.replace("_set_", "_get_")), getattr(library, setter)
    return None


class OneBlasThread:
    """For the length of a block, BLAS uses one thread; the number of before comes back at its end."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        control = thread_control()
        self._before = 1
        if control is not None:
            self._before = control[0]()
            if self._before != 1:
                control[1](1)

    def __exit__(self, *_: object) -> None:
        control = thread_control()
        if control is not None and self._before != 1:
            control[1](self._before)
