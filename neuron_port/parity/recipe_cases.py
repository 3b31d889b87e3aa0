"""Proves a recipe's kernel on the recipe's own cases, without any model: what every recipe folder must pass.

The truth is the reference in float64 (in float32 for 16-bit cases); the noise that is legal is the reference's own
in the case's dtype.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from neuron_port.parity.comparison import Comparison, compare, is_telling, sabotages, shifted
from neuron_port.parity.draw import Draw
from neuron_port.parity.problems import nudged
from neuron_port.recipe import Case, Recipe

Operator = Callable[..., Any]
NEIGHBOURS = 4  # inputs near those of a case, on which the reference shows what its rounding does


def case_inputs(recipe: Recipe, case: Case) -> tuple[torch.Tensor | None, ...]:
    """The operator's tensor arguments for a case, in float32; None where an optional one is missing."""
    seed = zlib.crc32(f"{recipe.name}/{case.name}".encode())
    draw = Draw(seed, case.scale, case.style)
    arrays = recipe.inputs(case.sizes, draw)
    return tuple(None if array is None else torch.from_numpy(array) for array in arrays)


def run_case(
    recipe: Recipe, reference: Operator, operator: Operator, case: Case, dtype: torch.dtype
) -> tuple[list[Comparison], Mapping[str, Comparison]]:
    """Compare every output of `operator` on one case; also judge wrong outputs, all of which must be refused."""
    inputs = tuple(_cast(tensor, dtype) for tensor in case_inputs(recipe, case))
    exact = torch.float64 if dtype is torch.float32 else torch.float32
    with torch.no_grad():
        truths = _outputs(reference(*(_cast(tensor, exact) for tensor in inputs), **case.attributes))
        baselines = _outputs(reference(*inputs, **case.attributes))
        outputs = _outputs(operator(*inputs, **case.attributes))
        alternatives = []
        for seed in range(NEIGHBOURS):
            nearby = _neighbours(inputs, seed)
            exact_nearby = _outputs(
                reference(*(_cast(tensor, exact) for tensor in nearby), **case.attributes)
            )
            own_nearby = _outputs(reference(*nearby, **case.attributes))
            alternatives.append(shifted(truths, exact_nearby, own_nearby))
    options: dict[str, Any] = {
        "reduction_length": case.sizes.get(recipe.tolerance.reduction_length or "", 1),
        "r_ratio_limit": recipe.tolerance.r_ratio,
    }
    comparisons: list[Comparison] = []
    refused: dict[str, Comparison] = {}
    for number, (output, truth, baseline) in enumerate(zip(outputs, truths, baselines, strict=True)):
        options["alternatives"] = [answers[number] for answers in alternatives]
        comparisons.append(compare(output, truth, baseline, **options))
        given = tuple(tensor for tensor in inputs if tensor is not None)
        for name, wrong in sabotages(baseline, given).items():
            judged = compare(wrong, truth, baseline, **options)
            if is_telling(judged):
                refused[f"output {number}: {name}"] = judged
    return comparisons, refused


def _cast(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor


def _neighbours(inputs: tuple[torch.Tensor | None, ...], seed: int) -> tuple[torch.Tensor | None, ...]:
    """The inputs with every value moved by up to two units in its last place."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        nudged(tensor, generator) if tensor is not None and tensor.is_floating_point() else tensor
        for tensor in inputs
    )


def _outputs(result: Any) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)
