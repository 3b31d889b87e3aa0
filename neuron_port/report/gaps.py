"""What no kernel takes, and what would cover it: a recipe's limit to widen, a recipe to write, or nothing at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from neuron_port.report.coverage import PlanRow
from neuron_port.types import DIFFERENT, EXCLUDED

Cause = Literal["excluded", "limit", "different", "beyond a limit", "no recipe", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One distinct layer of a graph without a kernel.

    `cause`: the user excluded the recipe; a recipe's stated limit (dtype, generation); every recipe tried computes
    something different; a recipe takes other layers of this kind; no recipe looked at it; the plan is silent.
    """

    row: PlanRow
    cause: Cause
    cure: str  # in words, commands in backticks


def gaps(rows: Sequence[PlanRow], model: str = "MODEL") -> list[Gap]:
    """The rows of one graph that no kernel takes, heaviest first. `model` is the name that commands are told with."""
    served = {row.kind: row.recipe for row in rows if row.recipe is not None}
    found = [_gap(row, served, model) for row in rows if row.recipe is None]
    return sorted(found, key=lambda gap: (-gap.row.flops, -gap.row.hbm_bytes, gap.row.number))


def _gap(row: PlanRow, served: Mapping[str, str], model: str) -> Gap:
    excluded = [name for name, why in row.refusals.items() if why == EXCLUDED]
    limits = [name for name, why in row.refusals.items() if why != EXCLUDED and not why.startswith(DIFFERENT)]
    if row.decision == "undecided":
        return Gap(
            row=row, cause="undecided", cure="Plan again: the plan is of other layers than the graph's."
        )
    if excluded:
        options = " ".join(f"--compiler {name}" for name in excluded)
        return Gap(row=row, cause="excluded", cure=f"Leave out `{options}`.")
    if limits:
        return Gap(row=row, cause="limit", cure=f"Widen what {_shown(limits)} takes.")
    if row.refusals:
        return Gap(row=row, cause="different", cure=_new_recipe(row, model))
    if row.kind in served:
        near = _shown([served[row.kind]])
        cure = f"{near} takes other layers of this kind: its limits leave this one out. Widen them."
        return Gap(row=row, cause="beyond a limit", cure=cure)
    return Gap(row=row, cause="no recipe", cure=_new_recipe(row, model))


def _shown(names: Sequence[str]) -> str:
    """Recipes, and where to read their limits: "`rms_norm` (`neuron-port recipes show rms_norm`)"."""
    return " or ".join(f"`{name}` (`neuron-port recipes show {name}`)" for name in names)


def _new_recipe(row: PlanRow, model: str) -> str:
    return (
        f"A recipe of its own: `neuron-port recipes new KIND`, "
        f"or have it drafted: `neuron-port draft {model} --layer {row.layers[0]} --llm ...`."
    )
