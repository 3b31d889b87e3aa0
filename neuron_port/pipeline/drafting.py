"""Stage `draft`: a language model writes kernels for the layers that no recipe serves, once for each family of layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from neuron_port.drafting.drafts import Drafted, Shelf, draft_one, remaining
from neuron_port.drafting.in_graph import graph_recheck
from neuron_port.drafting.options import DraftOptions
from neuron_port.drafting.spending.cost import Cost
from neuron_port.drafting.subjects.layers import DraftableLayer, draftable_layers
from neuron_port.drafting.workshop import Workshop
from neuron_port.pipeline.planning import Plan
from neuron_port.pipeline.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """What a conversion needs to draft: who writes, how hard it is tried, where kernels go, which layers (None: all)."""

    workshop: Workshop
    options: DraftOptions
    shelf: Shelf
    layers: Collection[str] | None = None
    allow_licenses: tuple[str, ...] = ()


def layers_to_draft(work: Workbench, plan: Plan, drafting: Drafting) -> list[DraftableLayer]:
    """The families of layers that are left to the compiler, each as a task, or with the reason why it is none."""
    return draftable_layers(
        work.walks(work.dtype),
        plan.matches,
        model=work.config.model_type,
        names=drafting.layers,
        taken=tuple(work.registry),
        checkpoint=work.checkpoint,
        allow_licenses=drafting.allow_licenses,
    )


def draft_layers(work: Workbench, families: Sequence[DraftableLayer], drafting: Drafting) -> list[Drafted]:
    """Draft one kernel after the other, within the limits of them all together.

    Raises:
        LanguageModelError: the endpoint failed for good; kernels that were admitted are on the shelf already.
    """
    done: list[Drafted] = []
    spent = Cost()
    limits = drafting.workshop.limits
    for number, family in enumerate(families, start=1):
        if family.task is None:
            done.append(
                Drafted(
                    name=family.layers[0],
                    outcome=f"left to the compiler: {family.reason}",
                    layers=family.layers,
                )
            )
            continue
        drafting.shelf.say(
            f"{family.task.task.name}: kernel {number} of {len(families)}, serves {family.task.serves}"
        )
        drafted = draft_one(
            family.task,
            replace(drafting.workshop, limits=remaining(limits, spent)),
            drafting.options,
            drafting.shelf,
            layers=family.layers,
            checkpoint=work.checkpoint.name,
            recheck=graph_recheck(family.task, work.config, target=drafting.options.target),
        )
        assert drafted.result is not None
        spent += drafted.result.spent
        done.append(drafted)
    return done
