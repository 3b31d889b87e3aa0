"""Loading a kernel file: its `import nki...` resolves to the simulator.

Two ways. `imports="recipe"` is for code that nobody has read: the file runs with its own `__builtins__`, may
import nothing but nki and a few standard modules, and neither sys.modules nor a real `nki` is touched.
`imports="any"` is for code that its user trusts, such as a public kernel library: the file is imported as the
Python module that it is, relative and third-party imports included, with the simulator installed as `nki`.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from neuron_port.simulator.errors import SimulatorError, UnsupportedError

FACE = "neuron_port.simulator.nki"
# AWS's module names and ours.
MODULES = {
    "nki": FACE,
    "nki.collectives": f"{FACE}.collectives",
    "nki.compiler": f"{FACE}.compiler",
    "nki.dtype": f"{FACE}.dtype",
    "nki.isa": f"{FACE}.isa",
    "nki.isa.constants": f"{FACE}.constants",
    "nki.language": f"{FACE}.language",
    "nki.meta": f"{FACE}.meta",
    "nki.meta.tensor": f"{FACE}.tensor",
    "nki.tensor": f"{FACE}.tensor",
    "nki.typing": f"{FACE}.typing",
}
# What a recipe's kernel may import besides nki: names that exist at compile time only.
PLAIN_MODULES = frozenset({"math", "typing", "dataclasses", "enum", "__future__"})


def _import(
    name: str, globals: Any = None, locals: Any = None, fromlist: tuple[str, ...] = (), level: int = 0
) -> ModuleType:
    """`__import__` for recipes' kernel files."""
    top = name.partition(".")[0]
    if level == 0 and top == "nki":
        if name not in MODULES:
            raise UnsupportedError(
                f"import of `{name}`: this part of nki is not simulated",
                hint=f"{', '.join(MODULES)} are",
            )
        module = importlib.import_module(MODULES[name])
        return module if fromlist else importlib.import_module(FACE)
    if level == 0 and top in PLAIN_MODULES:
        return builtins.__import__(name, globals, locals, fromlist, level)
    raise UnsupportedError(
        f"import of `{name}`: a kernel file imports only nki and {', '.join(sorted(PLAIN_MODULES))}",
        hint='compute constants in the calling code and pass them as attributes; imports="any" loads a kernel '
        "file that you trust with all of its imports",
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
    return _function_of(namespace, name, filename)


def load_kernel(
    path: str | Path, name: str, *, imports: Literal["recipe", "any"] = "recipe"
) -> Callable[..., Any]:
    """The function `name` of the kernel file at `path`.

    With imports="any" the file may be part of a package (every folder up from it that has an `__init__.py`) and
    is imported under its full name, as `python -m` would; the simulator becomes the process's `nki`.

    Raises:
        UnsupportedError: in a recipe, an import that is not allowed; no such function.
        SimulatorError: AWS's own `nki`, or another module of the same name, is already imported.
    """
    if imports == "recipe":
        return load_kernel_source(Path(path).read_text(encoding="utf-8"), name, str(path))
    install_as_nki()
    return _function_of(vars(_import_file(Path(path).resolve())), name, str(path))


def install_as_nki() -> None:
    """Make `import nki` and its submodules mean the simulator, in this process, from now on.

    Raises:
        SimulatorError: another `nki` is already imported; nothing is replaced then.
    """
    face = importlib.import_module(FACE)
    present = sys.modules.get("nki")
    if present is not None and present is not face:
        raise SimulatorError(
            f"another `nki` is already imported, from {getattr(present, '__file__', 'an unknown place')}",
            hint="run the simulator in a process of its own, or call install_as_nki() before `import nki`",
        )
    for public, own in MODULES.items():
        sys.modules[public] = importlib.import_module(own)


def _import_file(path: Path) -> ModuleType:
    """The module of a Python file, imported under the dotted name that its packages give it."""
    if not path.is_file():
        raise SimulatorError(f"there is no kernel file `{path}`")
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if parts[-1] == "__init__":
        parts.pop()
    dotted = ".".join(parts)
    in_package = len(parts) > 1
    if str(root) not in sys.path:
        # A single file's neighbours may be called like standard modules, so they come last.
        sys.path.insert(0 if in_package else len(sys.path), str(root))
    if not dotted.replace(".", "_").isidentifier() or (not in_package and _is_taken(dotted, path)):
        return _import_loose(path)
    module = importlib.import_module(dotted)
    found = Path(getattr(module, "__file__", None) or "")
    if found.resolve() != path:
        raise SimulatorError(
            f"`{path}` is the module `{dotted}`, but Python has another one of this name: {found}",
            hint="load the two in different processes",
        )
    return module


def _is_taken(name: str, path: Path) -> bool:
    """Whether a single file's name means another module already, such as `matmul.py` beside a package."""
    module = sys.modules.get(name)
    if module is not None:
        return Path(getattr(module, "__file__", None) or "").resolve() != path
    spec = importlib.util.find_spec(name)
    return spec is None or Path(spec.origin or "").resolve() != path


def _import_loose(path: Path) -> ModuleType:
    """A file that is part of no package and whose name is no free module name."""
    spec = importlib.util.spec_from_file_location(f"nki_kernel_{abs(hash(str(path)))}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _function_of(namespace: dict[str, Any], name: str, filename: str) -> Callable[..., Any]:
    kernel = namespace.get(name)
    if not callable(kernel):
        functions = [
            key
            for key, value in namespace.items()
            if callable(value) and not key.startswith("_") and not isinstance(value, type)
        ]
        raise UnsupportedError(
            f"`{filename}` defines no kernel `{name}`",
            hint=f"it defines {', '.join(functions)}",
            location="",
        )
    return kernel
