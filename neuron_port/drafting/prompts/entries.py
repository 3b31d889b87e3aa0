"""One name of NKI in words: its signature and docstring, read from the simulator at the moment they are needed."""

from __future__ import annotations

import inspect
from typing import Any

from neuron_port.drafting.prompts.prompting import PromptError
from neuron_port.simulator.nki import isa, language


def instruction_entry(name: str) -> str:
    """Signature and docstring of an instruction, `nisa.tensor_copy(dst: NkiTensor, ...)`.

    Raises:
        PromptError: `nki.isa` has no such instruction.
    """
    if not is_instruction(name):
        raise PromptError(f"nki.isa has no instruction: `{name}`")
    return entry(f"nisa.{name}", getattr(isa, name))


def is_instruction(name: str) -> bool:
    """Whether `nki.isa` has an instruction of that name."""
    return name in isa.__all__ and inspect.isfunction(getattr(isa, name))


def language_entry(name: str) -> str:
    """Signature and docstring of a function of `nki.language`."""
    if name not in language.__all__ or not inspect.isfunction(getattr(language, name)):
        raise PromptError(f"nki.language has no function: `{name}`")
    return entry(f"nl.{name}", getattr(language, name))


def entry(shown: str, function: Any, *, brief: bool = False) -> str:
    """`shown(parameters)` and the docstring below it, or its first line."""
    documentation = inspect.getdoc(function) or ""
    lines = documentation.splitlines()[:1] if brief else documentation.splitlines()
    return "\n".join([f"{shown}({signature_text(function)})", *(f"    {line}".rstrip() for line in lines)])


def signature_text(function: Any) -> str:
    """Parameters as a person writes them: no `self`, no `name` (all instructions take it), tiles without annotation."""
    return ", ".join(
        _parameter_text(parameter)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("self", "name")
    )


def _parameter_text(parameter: inspect.Parameter) -> str:
    text = parameter.name
    kind = str(parameter.annotation)
    if parameter.annotation is not parameter.empty and kind not in ("NkiTensor", "Any", parameter.name):
        text += f": {kind}"
    if parameter.default is not parameter.empty:
        text += (
            f" = {_default_text(parameter.default)}"
            if ":" in text
            else f"={_default_text(parameter.default)}"
        )
    return text


def _default_text(value: Any) -> str:
    """Enum members by the name under which a kernel finds them."""
    kind = type(value).__name__
    if hasattr(isa, kind) and hasattr(value, "name"):
        return f"nisa.{kind}.{value.name}"
    if kind == "MemoryRegion":
        return f"nl.{value.name}"
    return repr(value)
