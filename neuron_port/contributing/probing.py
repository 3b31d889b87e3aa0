"""The recipe against the layer in its folder's example.py: does it match what it says it does, and nothing near it?

`example.py` defines `example() -> (layer, arguments)`: a torch module for recipes of operation "module", a plain function
for others, and the arguments of one call. The probe is the matcher's own: parameters and values are drawn anew.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from neuron_port.contributing.records import Check, judged, not_run
from neuron_port.errors import RecipeError
from neuron_port.match.matcher import MISFITS
from neuron_port.match.probe import RELATIVE_LIMIT, probe
from neuron_port.recipe import Binding
from neuron_port.registry import RegisteredRecipe, execute_file
from neuron_port.walk.calls import Call, plain_attributes

NAME, EXAMPLE = "probe", "example.py"
WRONG_SCALE = 1.02


def check_probe(found: RegisteredRecipe) -> Check:
    """The example's layer is bound and agrees with the reference; the same layer with a 2 % error does not."""
    if not has_example(found):
        return not_run(NAME, f"no {EXAMPLE}: add one, or name a model that has the layer: --model NAME")
    call = example_call(found)
    bindings = found.recipe.bindings(call)
    if not bindings:
        return judged(NAME, "", [f"`bind` does not accept the layer in {EXAMPLE}"])
    evidence = min((_differences(found, call, binding) for binding in bindings), key=_worst)
    worst = _worst(evidence)
    summary = f"agrees with {call.owner} to {worst:.0e} at {len(evidence)} input scales (limit {RELATIVE_LIMIT:.0e})"
    problems = []
    if worst > RELATIVE_LIMIT:
        scale = max(evidence, key=evidence.__getitem__)
        problems.append(
            f"reference.py is not the layer in {EXAMPLE}: relative difference {worst:.1e}, {scale}"
        )
    wrong = min(_worst(_differences(found, faulty(call), binding)) for binding in bindings)
    if wrong <= RELATIVE_LIMIT:
        problems.append(
            "the probe takes the layer with a 2 % error for right: its output does not depend on its input"
        )
    else:
        summary += f"; the layer with a 2 % error is refused ({wrong:.0e})"
    return judged(NAME, summary, problems, {"differences": evidence, "with_2_percent_error": wrong})


def has_example(found: RegisteredRecipe) -> bool:
    """Whether the folder says which layer it is for."""
    return (found.folder / EXAMPLE).is_file()


def example_call(found: RegisteredRecipe) -> Call:
    """The call that example.py describes, as the walker would record it.

    Raises:
        RecipeError: example.py does not load, or does not return what it should.
    """
    path = found.folder / EXAMPLE
    module = execute_file(path, f"neuron_port_recipes.{found.name}.example")
    make = getattr(module, "example", None)
    if not callable(make):
        raise RecipeError(
            f"{path} has no function `example`", hint="It returns (layer, arguments of one call)."
        )
    try:
        layer, args = make()
    except Exception as error:
        raise RecipeError(f"{path}: example() fails: {type(error).__name__}: {error}") from error
    if not callable(layer) or not isinstance(args, tuple):
        raise RecipeError(f"{path}: example() must return (layer, tuple of arguments)")
    is_module = isinstance(layer, torch.nn.Module)
    if is_module != (found.recipe.operation == "module"):
        wanted = "a torch module" if found.recipe.operation == "module" else "a plain function"
        raise RecipeError(f"{path}: of a recipe for `{found.recipe.operation}`, the layer must be {wanted}")
    return Call(
        name="example",
        operation=found.recipe.operation,
        module=layer if isinstance(layer, torch.nn.Module) else None,
        owner=type(layer).__name__
        if isinstance(layer, torch.nn.Module)
        else getattr(layer, "__name__", "function"),
        function=layer,
        args=args,
        kwargs={},
        attributes=plain_attributes(layer) if isinstance(layer, torch.nn.Module) else {},
    )


def faulty(call: Call) -> Call:
    """The same call of a layer whose result is 2 % too large."""
    values = {name: getattr(call, name) for name in call.__dataclass_fields__}
    if call.module is None:
        return Call(**{**values, "function": lambda *args, **kwargs: _scaled(call.function(*args, **kwargs))})
    module = copy.deepcopy(call.module)
    module.register_forward_hook(lambda layer, args, result: _scaled(result))
    return Call(**{**values, "module": module, "function": module})


def _scaled(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value * WRONG_SCALE if value.is_floating_point() else value
    return type(value)(_scaled(item) for item in value) if isinstance(value, (tuple, list)) else value


def _differences(found: RegisteredRecipe, call: Call, binding: Binding) -> dict[str, float]:
    """By input scale; infinite where the layer's call does not fit the recipe's terms."""
    try:
        return probe(call, found.recipe, found.reference, binding)
    except MISFITS as error:
        return {f"does not run ({type(error).__name__}: {error})".splitlines()[0]: float("inf")}


def _worst(evidence: dict[str, float]) -> float:
    return max(evidence.values())
