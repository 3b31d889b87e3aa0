"""What a candidate may import and name: the public names of AWS's NKI, and Python's `math`.

The gate reads this table before a candidate runs, and the child builds the candidate's modules from it.
"""

from __future__ import annotations

import builtins
import math
from functools import cache
from pathlib import Path

import neuron_port.simulator

NAMES_FILE = Path(neuron_port.simulator.__file__).with_name("public_names.txt")
# Modules that a candidate may import. nki.collectives and the rest need more than one core.
MODULES = ("nki", "nki.isa", "nki.language", "nki.typing", "math")
ALLOWED_BUILTINS = frozenset(
    {
        "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "float", "int", "isinstance", "len", "list", "max",
        "min", "pow", "range", "reversed", "round", "slice", "sorted", "str", "sum", "tuple", "zip",
    }
)  # fmt: skip
# The rest of Python's builtins, with what to do instead where there is something.
FORBIDDEN_BUILTINS: dict[str, str] = dict.fromkeys(
    (name for name in dir(builtins) if name not in ALLOWED_BUILTINS),
    "a kernel computes with numbers, tensors, lists and tuples",
) | {
    "print": "nobody reads what a candidate prints; return a tensor instead",
    "open": "a kernel gets its data as arguments",
    "input": "a kernel gets its data as arguments",
    "getattr": "write the attribute's name",
    "hasattr": "pass a flag",
    "setattr": "assign to a name of your own",
    "eval": "write the expression",
    "exec": "write the statements",
    "map": "use a for loop",
    "filter": "use a for loop with if",
    "type": "compare dtypes, or use isinstance",
    "super": "kernels have no classes",
    "frozenset": "use a tuple",
    "set": "use a tuple or a list",
    "iter": "use a for loop",
    "next": "use an index",
}
# Attributes of Python's own values: lists, dicts, slices, numbers.
_PYTHON_ATTRIBUTES = (
    "append extend insert pop remove clear copy index count reverse sort keys values items get update setdefault "
    "start stop step bit_length is_integer"
)
# Public, but not for candidates: they act on the host, read files, or only talk.
WITHHELD = {
    "nki.simulate": "the harness runs the kernel",
    "nki.language.device_print": "nobody reads what a candidate prints; return a tensor instead",
    "nki.language.shared_constant": "it reads files; tables of values come in as arguments",
    "nki.collectives": "a candidate runs on one core",
    "nki.compiler": "it steers the compiler, not the kernel",
    "nki.meta": "it has nothing that a kernel computes with",
    "nki.tensor": "tensors come from nl.ndarray",
}
_ELSEWHERE = ("nki.isa.constants",)  # the same names as in nki.isa
# Classes that may be named in annotations and isinstance, and not be called: objects come from functions.
CLASSES = frozenset(
    {
        "nki.isa.NkiInstruction",
        "nki.isa.NkiValidationError",
        "nki.isa.VirtualRegister",
        "nki.language.DType",
        "nki.language.MemoryRegion",
        "nki.language.NKIObject",
        "nki.language.NkiTensor",
    }
)


@cache
def members() -> dict[str, frozenset[str]]:
    """The names below each dotted name that has any: "nki.isa" -> {"dma_copy", ...}, "nki.isa.engine" -> {...}."""
    found: dict[str, set[str]] = {name: set() for name in MODULES}
    for line in NAMES_FILE.read_text(encoding="utf-8").splitlines():
        full = line.partition(" ")[0]
        if not full.startswith("nki."):
            continue
        parts = full.split(".")
        paths = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
        if any(path in WITHHELD or path in _ELSEWHERE for path in paths):
            continue
        for owner, name in zip(paths, parts[1:], strict=False):
            if not name.startswith("_"):
                found.setdefault(owner, set()).add(name)
    found["math"] = {name for name in dir(math) if not name.startswith("_")}
    return {name: frozenset(names) for name, names in found.items()}


@cache
def attributes_of_values() -> frozenset[str]:
    """Attributes that a kernel may use of anything but a module: tensors, sizes, enums, lists, dicts, numbers."""
    names = set(_PYTHON_ATTRIBUTES.split())
    for owner, below in members().items():
        if owner not in MODULES:
            names |= below
    return frozenset(names)
