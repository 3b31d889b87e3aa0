"""The table of every public name of NKI and what the simulator does with it: docs/simulator_names.md.

`python -m neuron_port.simulator.coverage` prints it. Official names and signatures are in public_names.txt; the
state of each is found by looking it up in the face modules, so the table cannot promise what is not there.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from neuron_port.simulator.errors import UnsupportedError
from neuron_port.simulator.instructions.operators import COMPILE_NOT, Operator

NAMES_FILE = Path(__file__).with_name("public_names.txt")
FACE = "neuron_port.simulator.nki"
MODULES = (
    "nki.isa.constants",
    "nki.language",
    "nki.collectives",
    "nki.compiler",
    "nki.typing",
    "nki.isa",
    "nki",
)


class State(Enum):
    """What happens when a kernel uses a name."""

    simulated = "simulated"
    without_effect = "accepted without effect"
    refused = "raises by name"
    missing = "missing"


# Names that a kernel may use and that change nothing here, with the reason.
WITHOUT_EFFECT = {
    "nki.isa.NkiInstruction.depends_on": "changes the timeline, not values: instructions run in program order",
    "nki.language.affine_range": "a plain range: loops are unrolled in order",
    "nki.language.no_reorder": "changes the timeline, not values: instructions run in program order",
    "nki.language.sequential_range": "a plain range: loops are unrolled in order",
    "nki.language.static_range": "a plain range: loops are unrolled in order",
    "nki.compiler.enable_stack_allocator": "steers the compiler's allocation",
    "nki.typing.mutable_tensor": "an annotation",
    "nki.typing.tensor": "an annotation",
}

# What the name alone does not say: parameters without effect on values, limits of the simulation.
NOTES = {
    "nki.isa.dma_copy": "priority, dge_mode and engine are checked and change the timeline, not values",
    "nki.isa.dma_transpose": "priority and dge_mode are checked and change the timeline, not values",
    "nki.isa.dropout": "random numbers are deterministic, not those of a device",
    "nki.isa.nc_matmul": "is_stationary_onezero, is_moving_onezero, tile_position, tile_size: timeline only",
    "nki.isa.rand2": "random numbers are deterministic, not those of a device",
    "nki.isa.rng": "random numbers are deterministic, not those of a device",
    "nki.jit": "options are accepted without effect; platform_target is refused",
    "nki.language.dropout": "random numbers are deterministic, not those of a device",
    "nki.language.rand": "random numbers are deterministic, not those of a device",
    "nki.language.sin": "the true sine; beyond [-pi, pi] a warning",
}


@dataclass(frozen=True, kw_only=True)
class PublicName:
    """One line of public_names.txt."""

    full: str  # nki.isa.dma_copy
    parameters: tuple[str, ...] | None  # as written, with defaults; None for what is no function

    @property
    def module(self) -> str:
        """The module that it is listed under."""
        return next(m for m in MODULES if self.full.startswith(m + ".") or m == "nki")

    @property
    def name(self) -> str:
        """What follows the module."""
        return self.full.removeprefix(self.module + ".")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the table."""

    public: PublicName
    state: State
    generation: int | None  # first NeuronCore generation that has it, where not all have
    note: str


@cache
def official_names() -> tuple[PublicName, ...]:
    """The names of public_names.txt, in its order."""
    names = []
    for line in NAMES_FILE.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        full, _, parameters = line.partition(" ")
        listed = None
        if parameters:
            arguments = ast.parse(f"def function{parameters}: ...").body[0]
            assert isinstance(arguments, ast.FunctionDef)
            listed = tuple(_written(arguments.args))
        names.append(PublicName(full=full, parameters=listed))
    return tuple(names)


def _written(arguments: ast.arguments) -> Iterable[str]:
    """Parameters as `name`, `name=` where there is a default, `*name` and `**name`."""
    without = len(arguments.args) - len(arguments.defaults)
    for position, argument in enumerate(arguments.args):
        yield argument.arg + ("=" if position >= without else "")
    if arguments.vararg:
        yield "*" + arguments.vararg.arg
    if arguments.kwarg:
        yield "**" + arguments.kwarg.arg


def look_up(name: PublicName) -> Any:
    """The object behind a public name in the face modules.

    Raises:
        UnsupportedError: the simulator refuses it by name.
        AttributeError: it is missing.
    """
    found: Any = importlib.import_module(FACE)
    parts = name.full.split(".")[1:]
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        of_class = _is_class(found) or name.full.startswith("nki.language.tile_size.")  # may be properties
        found = inspect.getattr_static(found, part) if last and of_class else getattr(found, part)
    if isinstance(found, Operator) and found.name in COMPILE_NOT:
        raise UnsupportedError(f"{name.full} does not compile in NKI 0.6")
    return found


def _is_class(found: Any) -> bool:
    return isinstance(found, type) and not issubclass(found, Enum)


def entry_of(name: PublicName) -> Entry:
    """The row of one name."""
    note = NOTES.get(name.full, WITHOUT_EFFECT.get(name.full, ""))
    try:
        found = look_up(name)
    except UnsupportedError as error:
        return Entry(public=name, state=State.refused, generation=None, note=error.message)
    except AttributeError:
        return Entry(public=name, state=State.missing, generation=None, note=note)
    state = State.without_effect if name.full in WITHOUT_EFFECT else State.simulated
    return Entry(public=name, state=state, generation=least_generation(found), note=note)


def parameters_of(found: Any) -> tuple[str, ...] | None:
    """Our parameters, written as those of a PublicName; None for what has no signature."""
    if isinstance(found, Operator):
        found = found.wrapper
    if not inspect.isfunction(found):
        return None
    listed = []
    for parameter in inspect.signature(found).parameters.values():
        prefix = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        has_default = parameter.default is not inspect.Parameter.empty
        listed.append(prefix + parameter.name + ("=" if has_default else ""))
    return tuple(listed[1:] if listed[:1] == ["self"] else listed)


def least_generation(found: Any) -> int | None:
    """The generation that a function checks for without conditions on its options, in itself or one call down."""
    if not inspect.isfunction(found):
        return None
    gates = list(_gates(found))
    for helper in _called(found):
        if helper.__module__ == found.__module__:
            gates += _gates(helper)
    return max(gates, default=None)


def _tree(function: Callable[..., Any]) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _gates(function: Callable[..., Any]) -> Iterable[int]:
    """The N of every check_generation(opcode, N): with a third argument it is about an option."""
    for node in ast.walk(_tree(function)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check_generation":
            least = node.args[1] if len(node.args) == 2 else None
            if isinstance(least, ast.Constant) and isinstance(least.value, int):
                yield least.value


def _called(function: Callable[..., Any]) -> Iterable[Callable[..., Any]]:
    names = {node.func.id for node in ast.walk(_tree(function))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
    scope = getattr(function, "__globals__", {})
    return [scope[name] for name in sorted(names) if inspect.isfunction(scope.get(name))]


def table() -> str:
    """docs/simulator_names.md."""
    entries = [entry_of(name) for name in official_names()]
    modules = list(dict.fromkeys(entry.public.module for entry in entries))
    lines = [
        "# Every public name of NKI 0.6",
        "",
        "Made by `python -m neuron_port.simulator.coverage > docs/simulator_names.md`; a test refuses a stale table.",
        "Names are those of the API reference of AWS Neuron SDK 2.32, and at the end those that guides and public",
        "kernels import without a reference page. *Since* is the first NeuronCore generation that has the name.",
        "",
        "| Module | " + " | ".join(state.value for state in State) + " |",
        "| --- |" + " ---: |" * len(State),
    ]
    for module in modules:
        counts = Counter(entry.state for entry in entries if entry.public.module == module)
        lines.append(f"| `{module}` | " + " | ".join(str(counts[state]) for state in State) + " |")
    for module in modules:
        lines += ["", f"## {module}", "", "| Name | State | Since | Note |", "| --- | --- | --- | --- |"]
        for entry in entries:
            if entry.public.module == module:
                since = f"v{entry.generation}" if entry.generation else ""
                lines.append(f"| `{entry.public.name}` | {entry.state.value} | {since} | {entry.note} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
