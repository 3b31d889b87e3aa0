"""The layers of a model that a recipe takes, and its kernel on them: captured shapes, real widths, drawn weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from neuron_port.checkpoint import resolve
from neuron_port.contributing.records import Check, Say, judged
from neuron_port.match.matcher import match
from neuron_port.parity.kernel import verify_layer
from neuron_port.pipeline.options import complete_options
from neuron_port.pipeline.refusals import within_positions
from neuron_port.pipeline.workbench import Workbench, oracle_name
from neuron_port.registry import RegisteredRecipe, Registry
from neuron_port.store import Store
from neuron_port.types import Layer, Match, MatchPlan
from neuron_port.walk.walker import Walk

NAME = "in a model"
# Of one call, beyond which the simulator takes minutes: TensorE operations, bytes of all operands.
MOST_FLOPS, MOST_BYTES = 2_000_000_000, 128 * 2**20


def check_in_model(found: RegisteredRecipe, model: str, target: str, say: Say) -> Check:
    """The probe takes layers of the model, and the kernel is right on each distinct one of them that is affordable.

    Weights are drawn, so nothing is downloaded but the configuration.
    """
    say(f"walking {model}")
    work, walks, decided = layers_taken(found, model, target, say)
    if not decided.matches or all(one.recipe is None for one in decided.matches):
        near = sorted({one.reason for one in decided.matches if found.name in one.reason})
        reason = f": {near[0]}" if near else ": `bind` accepts none of its layers"
        return judged(NAME, "", [f"the recipe takes no layer of {model}{reason}"])
    taken = [one for one in decided.matches if one.recipe is not None]
    layers = len({name for one in taken for name in one.layers})
    problems, done, too_large = [], [], []
    for number, (one, walk, layer) in enumerate(_with_layers(taken, walks)):
        inputs = " ".join(str(list(spec.shape)) for spec in layer.inputs)
        if layer.flops > MOST_FLOPS or layer.hbm_bytes > MOST_BYTES:
            too_large.append(f"{layer.name} {inputs}")
            continue
        say(f"{number + 1} of {len(taken)}: {layer.name} {inputs}")
        report = verify_layer(
            layer,
            walk.calls[one.signature],
            one,
            found,
            read_weight=lambda name, first: work.reader.get(name, torch.float32, first=first),
            target=target,
            dtypes=work.proof_dtypes,
            oracle=oracle_name(),
        )
        done.append({"layer": layer.name, "shapes": [list(spec.shape) for spec in layer.inputs]})
        problems += [
            f"{layer.name} {inputs}: {case.name}, {case.dtype}: {case.detail}"
            for case in report.cases
            if not case.passed
        ]
    summary = f"takes {layers} layers of {model}, {len(taken)} distinct; {len(done)} tried at their own shapes, {target}"
    if too_large:
        summary += f"; too large to be run here: {', '.join(too_large)}"
    facts = {"layers": layers, "tried": done, "too_large": too_large}
    return judged(NAME, "", problems, facts, tried=summary)


def layers_taken(
    found: RegisteredRecipe, model: str, target: str, say: Say
) -> tuple[Workbench, list[Walk], MatchPlan]:
    """The model's walks, and which layers this recipe alone takes."""
    store = Store()
    options = complete_options(
        model, target=target, dtype="bfloat16", output=Path("unused"), new_tokens=2, random_weights=True
    )
    work = Workbench(options, resolve(model, store=store, random_weights=True, progress=say), store)
    work = Workbench(within_positions(work), work.checkpoint, store)
    walks = work.walks(work.dtype)
    decided = match(walks, Registry.of(found), target=target, generation=options.generation, parameters=())
    return work, walks, decided


def _with_layers(taken: list[Match], walks: list[Walk]) -> Iterator[tuple[Match, Walk, Layer]]:
    """Each match with the first layer that has its signature."""
    for one in taken:
        for walk in walks:
            layer = next((layer for layer in walk.graph.layers if layer.signature == one.signature), None)
            if layer is not None:
                yield one, walk, layer
                break
