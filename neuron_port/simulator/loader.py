"""Loading a kernel file: its `import nki...` resolves to the simulator, and nothing else is touched.

The file runs with its own `__builtins__`, so neither sys.modules nor a real `nki` package is involved.
"""

from __future__ import annotations

import builtins
import importlib
import linecache
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from neuron_port.simulator.errors import UnsupportedError

FACE = "neuron_port.simulator.nki"
# What a kernel may import besides nki: names that exist at compile time only.
PLAIN_MODULES = frozenset({"math", "typing", "dataclasses", "enum", "__future__"})


def _import(
    name: str, globals: Any = None, locals: Any = None, fromlist: tuple[str, ...] = (), level: int = 0
) -> ModuleType:
    """`__import__` for kernel files."""
    top = name.partition(".")[0]
    if level == 0 and top == "nki":
        try:
            module = importlib.import_module(FACE + name[len("nki") :])
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                f"import of `{name}`: this part of nki is not simulated",
                hint="nki, nki.language and nki.isa are",
            ) from error
        return module if fromlist else importlib.import_module(FACE)
    if level == 0 and top in PLAIN_MODULES:
        return builtins.__import__(name, globals, locals, fromlist, level)
    raise UnsupportedError(
        f"import of `{name}`: a kernel file imports only nki and {', '.join(sorted(PLAIN_MODULES))}",
        hint="compute constants in the calling code and pass them as attributes",
    )


_BUILTINS = {**vars(builtins), "__import__": _import}


def load_kernel_source(text: str, name: str, filename: str = "<kernel>") -> Callable[..., Any]:
    """The function `name` of a kernel file given as text; `filename` is what error messages show.

    Raises:
        UnsupportedError: an import that the compiler would not accept, or no such function.
        SyntaxError: the text is no Python.
    """
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": f"nki_kernel_{Path(filename).stem}", "__file__": filename}
    namespace["__builtins__"] = _BUILTINS
    exec(compile(text, filename, "exec", dont_inherit=True), namespace)
    if name not in namespace:
        functions = [key for key, value in namespace.items() if callable(value) and not key.startswith("_")]
        raise UnsupportedError(
            f"`{filename}` defines no kernel `{name}`", hint=f"it defines {', '.join(functions)}"
        )
    kernel: Callable[..., Any] = namespace[name]
    return kernel


def load_kernel(path: str | Path, name: str) -> Callable[..., Any]:
    """The function `name` of the kernel file at `path`."""
    return load_kernel_source(Path(path).read_text(encoding="utf-8"), name, str(path))
