"""What tells the failing cases of a candidate from the passing ones, in sentences. Public cases only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuron_port.recipe import Case

TILE = 128  # partitions
SMALL_ERROR = 0.2  # relative; larger errors are logic, smaller ones may be rounding


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A public case and how it went."""

    case: Case
    dtype: str
    passed: bool
    error_class: str = ""
    error: float | None = None  # relative L2


def compare_cases(tried: Sequence[Tried]) -> list[str]:
    """What tells failing cases from passing ones, most telling first."""
    failed, passed = [one for one in tried if not one.passed], [one for one in tried if one.passed]
    if not failed or not passed:
        return []
    rules = (_by_values, _by_multiple, _by_size, _by_attribute, _by_dtype)
    return [sentence for rule in rules if (sentence := rule(failed, passed))]


def _by_values(failed: list[Tried], passed: list[Tried]) -> str:
    if all(one.case.scale == 1.0 and one.case.style == "normal" for one in failed):
        return ""
    if all(one.case.scale > 1 for one in failed) and not any(one.case.scale > 1 for one in passed):
        cause = (
            "exp or a square overflows: no maximum was subtracted before exp, or a mask is not negative enough"
            if any(one.error_class == "non-finite" for one in failed)
            else "something saturates, or precision is lost where values are large"
        )
        return f"only cases with large values fail: {cause}"
    if all(one.case.scale < 1 for one in failed) and not any(one.case.scale < 1 for one in passed):
        return "only cases with tiny values fail: an epsilon is missing, misplaced or fixed, or small values are lost"
    styles = {one.case.style for one in failed}
    if len(styles) == 1 and "normal" not in styles and not any(one.case.style in styles for one in passed):
        return f"only cases with {min(styles)} fail"
    return ""


def _by_multiple(failed: list[Tried], passed: list[Tried]) -> str:
    for name in failed[0].case.sizes:
        sizes = [one.case.sizes.get(name, 0) for one in failed]
        others = [one.case.sizes.get(name, 0) for one in passed]
        if all(size % TILE for size in sizes) and all(size % TILE == 0 for size in others):
            return (
                f"exactly the cases whose {name} is not a multiple of {TILE} fail: the last, partial tile along "
                f"{name} is not handled"
            )
    return ""


def _by_size(failed: list[Tried], passed: list[Tried]) -> str:
    for name in failed[0].case.sizes:
        sizes = [one.case.sizes[name] for one in failed if name in one.case.sizes]
        others = [one.case.sizes[name] for one in passed if name in one.case.sizes]
        if len(sizes) < len(failed) or not others:
            continue
        if min(sizes) > max(others):
            return (
                f"exactly the cases with {name} above {max(others)} fail (from {min(sizes)} on): what exceeds one tile, "
                f"one block or one PSUM bank along {name} is not handled"
            )
        if max(sizes) < min(others):
            return f"exactly the cases with {name} below {min(others)} fail: small {name} is not handled"
    return ""


def _by_attribute(failed: list[Tried], passed: list[Tried]) -> str:
    for name in failed[0].case.attributes:
        values = {repr(one.case.attributes.get(name)) for one in failed}
        others = {repr(one.case.attributes.get(name)) for one in passed}
        if len(others) == 1 and not values & others:
            return f"only cases with `{name}` other than {min(others)} fail: its value is fixed in the kernel"
    return ""


def _by_dtype(failed: list[Tried], passed: list[Tried]) -> str:
    dtypes = {one.dtype for one in failed}
    if len(dtypes) == 1 and "float32" not in dtypes and all(one.dtype == "float32" for one in passed):
        return (
            f"float32 is right and {min(dtypes)} is not: sums, exp and normalisers must be float32, rounded once at the "
            "end; look for tiles that take the dtype of an input"
        )
    return ""


def growth(tried: Sequence[Tried], reduction: str | None) -> str:
    """Errors that grow with the length of a sum: it is kept in too few bits."""
    if reduction is None:
        return ""
    points = sorted(
        (one.case.sizes[reduction], one.error)
        for one in tried
        if one.error and reduction in one.case.sizes and one.case.style == "normal"
    )
    if len(points) < 3 or points[0][0] * 4 > points[-1][0]:
        return ""
    lengths, errors = np.log([point[0] for point in points]), np.log([point[1] for point in points])
    if not errors.std():
        return ""
    slope = float(np.polyfit(lengths, errors, 1)[0])
    straight = float(np.corrcoef(lengths, errors)[0, 1])
    if points[-1][1] < SMALL_ERROR and slope > 0.4 and straight > 0.8:
        return (
            f"the error grows with {reduction} (as its power {slope:.1f}): the sum over {reduction} is kept in too "
            "few bits"
        )
    return ""
