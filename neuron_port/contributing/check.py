"""`recipes check`: everything that a reviewer would ask of a recipe, in the order of what it costs.

A check that fails does not stop the others, unless nothing further can be said: a kernel that does not load runs nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from neuron_port.contributing.cost import Cost, check_cost
from neuron_port.contributing.faults import check_faults
from neuron_port.contributing.folder_checks import check_documents, check_imports, check_lint, check_recipe
from neuron_port.contributing.gpu_source import check_gpu_source
from neuron_port.contributing.in_model import check_in_model
from neuron_port.contributing.probing import check_probe, has_example
from neuron_port.contributing.records import Check, Say, judged
from neuron_port.contributing.trials import Bench, check_parity, check_stress, check_sweep
from neuron_port.errors import RecipeError
from neuron_port.grading.oracle import one_torch_thread
from neuron_port.registry import RegisteredRecipe
from neuron_port.simulator import SimulatorError


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What all checks of one recipe found."""

    recipe: str
    checks: tuple[Check, ...]
    costs: tuple[Cost, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; one that was not run is not a failure, and is said."""
        return all(check.status != "FAILED" for check in self.checks)


def check_recipe_folder(
    found: RegisteredRecipe,
    *,
    model: str | None = None,
    target: str = "trn2",
    say: Callable[[str, str], None],
) -> Verdict:
    """Run every check.

    Args:
        model: a preset, a folder or a hub id whose layers are tried too, with drawn weights.
        target: the chip that the model's layers are tried for.
        say: hears (check, what it does at the moment).
    """
    checks = [check_recipe(found), check_lint(found), check_imports(found), check_documents(found)]
    costs: tuple[Cost, ...] = ()
    with one_torch_thread():
        if model is None or has_example(found):  # else the model's own layers are what is probed
            checks.append(check_probe(found))
        checks.append(check_gpu_source(found, _told(say, "gpu source")))
        try:
            bench = Bench(found)
        except (SimulatorError, SyntaxError, RecipeError) as error:
            checks.append(judged("parity", "", [f"kernel.py does not load: {error}"]))
            return Verdict(recipe=found.name, checks=tuple(checks), costs=())
        parity, trials = check_parity(bench, _told(say, "parity"))
        checks += [parity, check_faults(bench, trials, _told(say, "faults"))]
        checks += [check_sweep(bench, _told(say, "sweep")), check_stress(bench, _told(say, "stress"))]
        if model is not None:
            checks.append(check_in_model(found, model, target, _told(say, "in a model")))
        cost, costs = check_cost(found, _told(say, "cost"))
        checks.append(cost)
    return Verdict(recipe=found.name, checks=tuple(checks), costs=costs)


def _told(say: Callable[[str, str], None], check: str) -> Say:
    return lambda text: say(check, text)
