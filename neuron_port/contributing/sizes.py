"""Sizes that a kernel has not been shown: for each that varies 1, a prime, around a tile, and the largest affordable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from neuron_port.parity.recipe_cases import case_inputs
from neuron_port.recipe import Case, Recipe, Size

TILE = 128  # partitions: one less, as many, and one more
PRIMES = (97, 509)
# What the simulator does in about a second: elements of all inputs, and operations of TensorE.
MOST_ELEMENTS, MOST_FLOPS = 600_000, 400_000_000


def swept_cases(recipe: Recipe) -> Iterator[Case]:
    """Cases in which one size takes a telling value and the others stay those of the smallest ordinary case.

    The largest value of a size is found by doubling, with all other sizes as they are in that case.
    """
    base = smallest_case(recipe)
    known = [dict(case.sizes) for case in recipe.cases]
    for name, size in recipe.sizes.items():
        if name not in base.sizes:
            continue
        for value in sorted({*_telling(size), largest_affordable(recipe, base, name, size)}):
            sizes = {**base.sizes, name: value}
            if sizes not in known:
                known.append(sizes)
                yield replace(base, name=f"{name} = {value}", kind="tail", sizes=sizes)


def smallest_case(recipe: Recipe) -> Case:
    """The ordinary case with the fewest elements, but more than a handful: what sizes are varied from."""
    ordinary = [case for case in recipe.cases if case.kind == "ordinary"] or list(recipe.cases)
    return min(ordinary, key=lambda case: elements(recipe, case.sizes, case))


def _telling(size: Size) -> set[int]:
    """Values in the size's range that reach tails; where it has a multiple, the nearest at or above each."""
    wanted = (size.least, 1, *PRIMES, TILE - 1, TILE, TILE + 1)
    rounded = (-(-value // size.multiple) * size.multiple for value in wanted)
    return {value for value in rounded if value in size}


def largest_affordable(recipe: Recipe, base: Case, name: str, size: Size) -> int:
    """The largest value of one size with which the case stays affordable, within a factor of two; odd where it can be."""
    value = base.sizes[name]
    while 2 * value in size and affordable(recipe, {**base.sizes, name: 2 * value}, base):
        value *= 2
    odd = value - size.multiple
    return odd if odd in size and value > TILE else value


def affordable(recipe: Recipe, sizes: Mapping[str, int], base: Case) -> bool:
    """Whether the simulator does a case of these sizes in about a second; sizes that do not go together are not."""
    case = replace(base, sizes=dict(sizes))
    try:
        shapes = [tuple(tensor.shape) for tensor in case_inputs(recipe, case) if tensor is not None]
        return elements(recipe, sizes, base) <= MOST_ELEMENTS and recipe.flops(*shapes) <= MOST_FLOPS
    except Exception:  # whatever the recipe's own functions make of sizes that do not go together
        return False


def elements(recipe: Recipe, sizes: Mapping[str, int], base: Case) -> int:
    """Elements of all inputs together."""
    drawn = case_inputs(recipe, replace(base, sizes=dict(sizes)))
    return sum(tensor.numel() for tensor in drawn if tensor is not None)
