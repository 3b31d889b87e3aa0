"""What no kernel takes, and what would cover it: a recipe's limit to widen, a recipe to write, or nothing at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from neuron_port.report.coverage import PlanRow
from neuron_port.types import DIFFERENT, EXCLUDED

Cause = Literal["glue", "excluded", "limit", "different", "beyond a limit", "no recipe", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One distinct layer of a graph without a kernel.

    `cause`:
        glue            it computes nothing
        excluded        the user excluded the recipe
        limit           a recipe has no kernel for its dtypes or the chip
        different       every recipe that was tried computes something else
        beyond a limit  no recipe looked at it, though one takes other layers of this kind
        no recipe       no recipe looked at it
        undecided       the plan is silent about it
    """

    row: PlanRow
    cause: Cause
    cure: str  # in words, commands in backticks


def gaps(rows: Sequence[PlanRow]) -> list[Gap]:
    """The rows of one graph that no kernel takes, heaviest first, glue last."""
    served = {row.kind: row.recipe for row in rows if row.recipe is not None}
    found = [_gap(row, served) for row in rows if row.recipe is None]
    return sorted(
        found, key=lambda gap: (gap.cause == "glue", -gap.row.flops, -gap.row.hbm_bytes, gap.row.number)
    )


def _gap(row: PlanRow, served: Mapping[str, str]) -> Gap:
    excluded = [name for name, why in row.refusals.items() if why == EXCLUDED]
    limits = [name for name, why in row.refusals.items() if why != EXCLUDED and not why.startswith(DIFFERENT)]
    cause: Cause
    if row.is_glue:
        cause, cure = "glue", "Nothing to gain: padding, slicing and reshaping compute nothing."
    elif row.decision == "undecided":
        cause, cure = "undecided", "Plan again: the plan is of other layers than the graph's."
    elif excluded:
        options = " ".join(f"--compiler {name}" for name in excluded)
        cause, cure = "excluded", f"Leave out `{options}`."
    elif limits:
        cause, cure = "limit", _widen(limits)
    elif row.refusals:
        cause, cure = "different", _new_recipe(row)
    elif row.kind in served:
        cause, cure = "beyond a limit", f"{_widen([served[row.kind]])} It takes other layers of this kind."
    else:
        cause, cure = "no recipe", _new_recipe(row)
    return Gap(row=row, cause=cause, cure=cure)


def _widen(names: Sequence[str]) -> str:
    """Whose limits to widen, and where they are told."""
    return (
        f"Widen {' or '.join(f'`{name}`' for name in names)}; "
        f"`neuron-port recipes show {names[0]}` tells its limits."
    )


def _new_recipe(row: PlanRow) -> str:
    return (
        f"A recipe of its own, with `neuron-port recipes new KIND`, "
        f"or a drafted kernel, with `neuron-port draft MODEL --layer {row.layers[0]}`."
    )
