"""Loads a Python file of the user's, and says in one sentence what is wrong with it, with file and line."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from neuron_port.errors import UsageError


def load_user_file(path: Path) -> ModuleType:
    """The file as a module; what stands beside it can be imported from it.

    Raises:
        UsageError: no such file, or it fails.
    """
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"No Python file at: `{path}`", hint="Write FILE.py:NAME.")
    name = f"neuron_port_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect.getsource looks classes' modules up by name
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's: its failure is an outcome
        raise UsageError(failed_at(error, path)) from error
    return module


def failed_at(error: BaseException, path: Path) -> str:
    """`file.py:12: TypeError: ...`, at the innermost line of the user's file."""
    own = path.resolve()  # a module knows its file by its absolute path
    frames = [
        item for item in traceback.extract_tb(error.__traceback__) if Path(item.filename).resolve() == own
    ]
    own_line = frames[-1].lineno if frames else None
    line = error.lineno if isinstance(error, SyntaxError) else own_line
    message = " ".join(str(error).split())
    return f"{path}{f':{line}' if line else ''}: {type(error).__name__}: {message}"
