"""Sizes that a kernel has not been shown: for each that varies 1, a prime, around a tile, and the largest affordable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from neuron_port.grading.work import ShapesOnly
from neuron_port.recipe import Case, Recipe, Size

TILE = 128  # partitions: one less, as many, and one more
PRIME = 97
# What the simulator and the reference do in about a second: elements of all inputs, and operations of TensorE.
MOST_ELEMENTS, MOST_FLOPS = 150_000, 100_000_000


def swept_cases(recipe: Recipe) -> Iterator[Case]:
    """Cases in which one size takes a telling value and the others stay those of the smallest ordinary case.

    Where that would be too much, the others are halved, as far as they may be. The largest value of a size is found by
    doubling.
    """
    base = smallest_case(recipe)
    known = [dict(case.sizes) for case in recipe.cases]
    for name, size in recipe.sizes.items():
        if name not in base.sizes:
            continue
        for value in sorted({*_telling(size), largest_affordable(recipe, base, name, size)}):
            sizes = _made_affordable(recipe, base, name, value)
            if sizes is not None and sizes not in known:
                known.append(sizes)
                yield replace(base, name=f"{name} = {value}", kind="tail", sizes=sizes)


def smallest_case(recipe: Recipe) -> Case:
    """The ordinary case with the fewest elements: what sizes are varied from."""
    ordinary = [case for case in recipe.cases if case.kind == "ordinary"] or list(recipe.cases)
    return min(ordinary, key=lambda case: elements(recipe, case.sizes))


def roomy_case(recipe: Recipe) -> Case:
    """The largest ordinary case that is affordable: values show there that one short row may hide."""
    affordable_ones = [
        case for case in recipe.cases if case.kind == "ordinary" and affordable(recipe, case.sizes)
    ]
    return max(affordable_ones, key=lambda case: elements(recipe, case.sizes), default=smallest_case(recipe))


def _telling(size: Size) -> set[int]:
    """Values in the size's range that reach tails; where it has a multiple, the nearest at or above each."""
    wanted = (size.least, 1, PRIME, TILE - 1, TILE, TILE + 1)
    rounded = (-(-value // size.multiple) * size.multiple for value in wanted)
    return {value for value in rounded if value in size}


def largest_affordable(recipe: Recipe, base: Case, name: str, size: Size) -> int:
    """The largest value of one size with which the case stays affordable, within a factor of two; odd where it can be."""
    value = base.sizes[name]
    while 2 * value in size and affordable(recipe, {**base.sizes, name: 2 * value}):
        value *= 2
    odd = value - size.multiple
    return odd if odd in size and value > TILE else value


def _made_affordable(recipe: Recipe, base: Case, name: str, value: int) -> dict[str, int] | None:
    """The base's sizes with one of them changed, the others halved as often as it takes; None: it stays too much."""
    sizes = {**base.sizes, name: value}
    others = {other: size for other, size in recipe.sizes.items() if other in sizes and other != name}
    while not affordable(recipe, sizes):
        halved = {other: sizes[other] // 2 // size.multiple * size.multiple for other, size in others.items()}
        able = [other for other, size in others.items() if halved[other] in size]
        if not able:
            return None
        widest = max(able, key=lambda other: sizes[other])
        sizes[widest] = halved[widest]
    return sizes


def affordable(recipe: Recipe, sizes: Mapping[str, int]) -> bool:
    """Whether a case of these sizes takes about a second. Sizes that do not go together fail later, and are said."""
    try:
        shapes = _shapes(recipe, sizes)
        return sum(map(math.prod, shapes)) <= MOST_ELEMENTS and recipe.flops(*shapes) <= MOST_FLOPS
    except Exception:  # whatever the recipe's own functions make of sizes that do not go together
        return True


def elements(recipe: Recipe, sizes: Mapping[str, int]) -> int:
    """Elements of all inputs together."""
    return sum(map(math.prod, _shapes(recipe, sizes)))


def _shapes(recipe: Recipe, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Of all tensor arguments that are there; nothing is drawn."""
    return [tuple(array.shape) for array in recipe.inputs(sizes, ShapesOnly()) if array is not None]
