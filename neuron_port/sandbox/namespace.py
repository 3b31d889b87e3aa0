"""What a candidate's file sees when it runs: a few builtins, and modules that show public names only.

The gate has refused whatever would reach further; this is the second wall, for what a gate may miss.
"""

from __future__ import annotations

import builtins
import importlib
import linecache
from collections.abc import Callable
from types import ModuleType
from typing import Any

from neuron_port.sandbox.names import ALLOWED_BUILTINS, MODULES, members
from neuron_port.sandbox.plain_text import helpers, plainly
from neuron_port.simulator.errors import UnsupportedError
from neuron_port.simulator.loader import MODULES as FACES

FILENAME = "kernel.py"
# Python itself looks these up: `assert`, and the errors that a kernel's line may raise.
_NEEDED = ("AssertionError",)


class PublicModule:
    """A module's public names; nothing can be added to it, and the module behind it is not an attribute."""

    __slots__ = ("__getattr",)

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        def look_up(attribute: str) -> Any:
            try:
                return values[attribute]
            except KeyError:
                raise AttributeError(f"{name} has no `{attribute}`") from None

        object.__setattr__(self, "_PublicModule__getattr", look_up)

    def __getattr__(self, attribute: str) -> Any:
        return self.__getattr(attribute)

    def __setattr__(self, attribute: str, value: object) -> None:
        raise AttributeError(f"a module is not changed: `{attribute}`")


def public_modules() -> dict[str, PublicModule]:
    """Every module that a candidate may import, by its name."""
    made: dict[str, PublicModule] = {}
    for name in reversed(MODULES):  # nki last: it holds the others
        real: ModuleType = importlib.import_module(FACES.get(name, name))
        values = {}
        for member in members()[name]:
            inner = made.get(f"{name}.{member}")
            if inner is not None:
                values[member] = inner
            elif hasattr(real, member):
                values[member] = getattr(real, member)
        made[name] = PublicModule(name, values)
    return made


def load_candidate(source: str, entry_point: str, modules: dict[str, PublicModule]) -> Callable[..., Any]:
    """Run a candidate's file, which may import `modules`, and return its entry point.

    Raises:
        UnsupportedError: an import of something else; no such function.
        SyntaxError: it is no Python.
    """

    def import_public(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> PublicModule:
        if level or name not in modules:
            raise UnsupportedError(f"import of `{name}`", hint=f"a kernel imports only {', '.join(MODULES)}")
        return modules[name] if fromlist else modules[name.partition(".")[0]]

    allowed = {name: getattr(builtins, name) for name in (*ALLOWED_BUILTINS, *_NEEDED)}
    linecache.cache[FILENAME] = (len(source), None, source.splitlines(keepends=True), FILENAME)
    namespace: dict[str, Any] = {
        "__name__": "nki_kernel",
        "__builtins__": allowed | {"__import__": import_public} | helpers(),
    }
    exec(compile(plainly(source, FILENAME), FILENAME, "exec", dont_inherit=True), namespace)
    kernel = namespace.get(entry_point)
    if not callable(kernel):
        raise UnsupportedError(f"the file defines no function `{entry_point}`", location="")
    return kernel
