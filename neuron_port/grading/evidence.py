"""What a wrong output looks like: the sentences from which a repair can start.

Each pattern is a small function that returns a sentence with a probable cause, or nothing. They see public cases only;
of hidden cases nothing but the kind is ever said (`grader`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from neuron_port.recipe import Case

TILE_ROWS, TILE_COLUMNS = 128, 512
NEAR = {
    "float32": 2e-4,
    "bfloat16": 2.5e-2,
    "float16": 4e-3,
}  # relative L2 within which two answers are the same
EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
SHOWN_ELEMENTS = 3
MOST_LINES = 0.9  # of all rows or columns are wrong
SMALL_ERROR = 2e-2  # relative; larger errors are logic, smaller ones may be rounding


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """One output that is not what it should be. Arrays are float64 of the output's own shape."""

    expected: np.ndarray
    got: np.ndarray
    noise: float  # largest legal error of an element
    dtype: str
    case: Case
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    others: Mapping[str, np.ndarray] = field(default_factory=dict)  # what other cases of this shape expect

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Expected and got as [rows, columns]: all axes but the last are rows."""
        columns = self.expected.shape[-1] if self.expected.ndim else 1
        return self.expected.reshape(-1, columns), self.got.reshape(-1, columns)

    @cached_property
    def mask(self) -> np.ndarray:
        """Which elements [rows, columns] are wrong beyond their noise."""
        expected, got = self.rows
        with np.errstate(all="ignore"):
            finite = np.isfinite(expected)
            rms = math.sqrt(float(np.mean(np.square(expected[finite])))) if finite.any() else 0.0
            allowed = 4 * self.noise + 8 * EPSILON[self.dtype] * (np.abs(expected) + 0.1 * rms)
            differs = np.abs(got - expected) > allowed
        return np.where(finite & np.isfinite(got), differs, finite != np.isfinite(got))

    @cached_property
    def error(self) -> float:
        """Relative L2: a pattern must explain most of it to be the cause."""
        size = float(np.linalg.norm(self.expected))
        error = float(np.linalg.norm(self.got - self.expected)) / size if size else math.inf
        return error if math.isfinite(error) else math.inf

    def near(self, other: np.ndarray, target: np.ndarray | None = None) -> bool:
        """Whether an array is the expected one (or `target`) within rounding."""
        target = self.expected if target is None else target
        if other.shape != target.shape or not (np.isfinite(other).all() and np.isfinite(target).all()):
            return False
        size = float(np.linalg.norm(target))
        return (
            size > 0 and float(np.linalg.norm(other - target)) <= min(NEAR[self.dtype], self.error / 4) * size
        )


Pattern = Callable[[Wrong], str]


def describe(wrong: Wrong) -> list[str]:
    """What is recognised in one output, then where it is worst, then a few elements."""
    with np.errstate(all="ignore"):
        whole = next((sentence for pattern in WHOLE if (sentence := pattern(wrong))), "")
        said = [whole] if whole else [sentence for pattern in PLACES if (sentence := pattern(wrong))]
        return [*said, *worst_tile(wrong)]


def is_trivial(wrong: Wrong) -> str:
    """The sentence on an answer that no work was done for, or ""."""
    with np.errstate(all="ignore"):
        return next((sentence for pattern in TRIVIAL if (sentence := pattern(wrong))), "")


# The whole output is something else.


def all_zeros(wrong: Wrong) -> str:
    if wrong.got.size and not wrong.got.any():
        return "the output is zero everywhere: the result is never stored, or is stored before it is computed"
    return ""


def all_one_value(wrong: Wrong) -> str:
    got = wrong.got.ravel()
    if got.size > 1 and (got == got[0]).all():
        return f"the output is {got[0]:.6g} everywhere: a constant is stored instead of the result"
    return ""


def echo_of_input(wrong: Wrong) -> str:
    for name, array in wrong.inputs.items():
        if array.size == wrong.got.size and np.array_equal(array.ravel(), wrong.got.ravel()):
            return f"the output equals the input `{name}`: it was copied through, nothing was computed"
    return ""


def answer_of_another_case(wrong: Wrong) -> str:
    for name, array in wrong.others.items():
        if wrong.near(wrong.got, array):
            return (
                f"the output is the answer of the case `{name}`: something is kept from one call to the next"
            )
    return ""


def transposed(wrong: Wrong) -> str:
    if wrong.expected.ndim < 2 or 1 in wrong.expected.shape[-2:]:
        return ""
    flipped = np.swapaxes(wrong.expected, -1, -2)
    if wrong.near(wrong.got, flipped.reshape(wrong.expected.shape)):
        return "the last two axes are transposed: the result is right but stored as its transpose"
    return ""


def moved_by_one(wrong: Wrong) -> str:
    expected, got = wrong.rows
    for axis, name, count in ((0, "row", expected.shape[0]), (1, "column", expected.shape[1])):
        if count < 3:
            continue
        front, back = _cut(axis, slice(0, -1)), _cut(axis, slice(1, None))
        for ahead, theirs, ours in (("later", back, front), ("earlier", front, back)):
            if wrong.near(got[theirs], expected[ours]):
                return (
                    f"everything stands one {name} {ahead} than it should: an index or a slice is off by one"
                )
    return ""


def _cut(axis: int, part: slice) -> tuple[slice, ...]:
    return (part, slice(None)) if axis == 0 else (slice(None), part)


def constant_factor(wrong: Wrong) -> str:
    expected, got = wrong.expected, wrong.got
    size = float(np.vdot(expected, expected))
    if not np.isfinite(got).all() or not size:
        return ""
    factor = float(np.vdot(expected, got)) / size
    if abs(factor - 1) < 5e-4 or abs(factor) < 1e-6 or not wrong.near(got / factor):
        return ""
    return f"every element is the expected one times {factor:.6g}{_name_factor(factor, wrong.case)}"


def _name_factor(factor: float, case: Case) -> str:
    """Where a factor may come from: a size, its root, an attribute."""
    candidates: dict[str, float] = {
        "-1: a sign": -1.0,
        "2": 2.0,
        "1/2": 0.5,
        "log2(e): exp2 for exp": math.log2(math.e),
    }
    for name, size in case.sizes.items():
        if size > 1:
            candidates[f"{name}: a mean or an average is a sum"] = float(size)
            candidates[f"1/{name}: divided by {name} once too often"] = 1 / size
            candidates[f"sqrt({name})"] = math.sqrt(size)
            candidates[f"1/sqrt({name}): scaled once too often"] = 1 / math.sqrt(size)
            candidates[f"sqrt(({name} - 1)/{name}): variance with {name} - 1"] = math.sqrt((size - 1) / size)
    for name, value in case.attributes.items():
        if isinstance(value, float) and value not in (0.0, 1.0):
            candidates[f"`{name}`: it is applied twice"] = value
            candidates[f"1/`{name}`: it is not applied"] = 1 / value
    for name, value in candidates.items():
        if math.isclose(factor, value, rel_tol=2e-3):
            return f", which is {name}"
    return ": a scale is missing or wrong"


def constant_offset(wrong: Wrong) -> str:
    if not np.isfinite(wrong.got).all() or wrong.got.size < 2:
        return ""
    offset = float(np.mean(wrong.got - wrong.expected))
    if offset and not wrong.near(wrong.got) and wrong.near(wrong.got - offset):
        return (
            f"every element is the expected one plus {offset:.6g}: a constant term is missing or added twice"
        )
    return ""


def missing_input(wrong: Wrong) -> str:
    """An input that is left out, or used twice, as addend or as factor along the last axis."""
    for name, array in wrong.inputs.items():
        try:
            shaped = np.broadcast_to(array, wrong.expected.shape)
        except ValueError:
            continue
        if array.size < 2:
            continue
        if wrong.near(wrong.got + shaped):
            return f"adding the input `{name}` to the output gives the expected one: `{name}` is never added"
        if wrong.near(wrong.got - shaped):
            return f"the input `{name}` is added once too often"
        if wrong.near(wrong.got * shaped):
            return f"multiplying the output by the input `{name}` gives the expected one: `{name}` is never applied"
        if (shaped != 0).all() and wrong.near(wrong.got / shaped):
            return f"the input `{name}` is multiplied in once too often"
    return ""


def factor_of_rows(wrong: Wrong) -> str:
    return _by_line(
        wrong, 1, "row", "what each row is divided or multiplied by (a sum, a mean, an inverse root) is wrong"
    )


def factor_of_columns(wrong: Wrong) -> str:
    return _by_line(wrong, 0, "column", "the gain of each column is wrong, or taken from another column")


def _by_line(wrong: Wrong, axis: int, name: str, cause: str) -> str:
    expected, got = wrong.rows
    if not np.isfinite(got).all() or expected.shape[axis] < 3 or expected.shape[1 - axis] < 2:
        return ""
    sizes = np.sum(expected * expected, axis=axis, keepdims=True)
    factor = np.sum(expected * got, axis=axis, keepdims=True) / np.where(sizes == 0, 1, sizes)
    lines = np.any(wrong.mask, axis=axis)
    if float(np.mean(lines)) < MOST_LINES:  # where they are says more then
        return ""
    if wrong.near(got, factor * expected) and float(np.std(factor)) > 0:
        low, high = float(factor.min()), float(factor.max())
        return f"every {name} is right up to a factor of its own ({low:.7g} to {high:.7g}): {cause}"
    offset = np.mean(got - expected, axis=axis, keepdims=True)
    if wrong.near(got - offset, expected) and float(np.std(offset)) > 0:
        return f"every {name} is right up to an offset of its own: what is added to or subtracted from it is wrong"
    return ""


def all_non_finite(wrong: Wrong) -> str:
    if wrong.got.size and not np.isfinite(wrong.got).any():
        return (
            "every element is NaN or infinite: exp or a square overflows (was the maximum subtracted?), or something "
            "is divided by zero"
        )
    return ""


def lost_precision(wrong: Wrong) -> str:
    """float32 that was 16-bit on its way: no element is far off, none is right."""
    expected, got = wrong.expected, wrong.got
    size = float(np.linalg.norm(expected))
    if wrong.dtype != "float32" or not np.isfinite(got).all() or not size:
        return ""
    error = float(np.linalg.norm(got - expected)) / size
    if not 1e-5 < error < SMALL_ERROR or wrong.mask.mean() < 0.2:
        return ""
    bits = got.astype(np.float32).view(np.uint32) & 0xFFFF
    if not bits.any():
        return "every element is a bfloat16 value: the result or the tile that it is stored from is bfloat16, not float32"
    return (
        f"nearly every element is off by about {error:.1g} of its size: an intermediate tile, a matmul operand or an "
        "accumulator has fewer bits than float32, or a term is approximated"
    )


# Parts of it are wrong.


def wrong_rows(wrong: Wrong) -> str:
    flags: np.ndarray = np.any(wrong.mask, axis=1)
    return _lines(flags, "row", TILE_ROWS, "partitions") if not flags.all() else ""


def wrong_columns(wrong: Wrong) -> str:
    flags: np.ndarray = np.any(wrong.mask, axis=0)
    return _lines(flags, "column", TILE_COLUMNS, "the free dimension") if not flags.all() else ""


def _lines(flags: np.ndarray, name: str, tile: int, where: str) -> str:
    """Which rows or columns are wrong, when it is some and not all."""
    places = np.flatnonzero(flags)
    count = len(flags)
    if not len(places):
        return ""
    first, last = int(places[0]), int(places[-1])
    partial = count // TILE_ROWS * TILE_ROWS
    contiguous = len(places) == last - first + 1
    if contiguous and len(places) == 1:
        which = "the first" if first == 0 else "the last" if first == count - 1 else "one"
        return f"only {which} {name}, {first} of {count}, is wrong: a loop, a slice or a mask is off by one"
    if contiguous and last == count - 1 and count > TILE_ROWS and first == partial:
        return (
            f"{name}s {first} to {count - 1} are wrong and the others right: the last, partial tile of {where} "
            f"({count - partial} of {TILE_ROWS}) is not handled"
        )
    if contiguous and last == count - 1 and first in {tile, TILE_ROWS, TILE_COLUMNS, 2048}:
        return (
            f"only the first {first} {name}s are right: the loop over tiles of {where} handles the first only"
        )
    if contiguous:
        return f"{name}s {first} to {last} of {count} are wrong, the others right"
    steps = np.diff(places)
    if len(places) > 2 and (steps == steps[0]).all():
        step = int(steps[0])
        if step == TILE_ROWS:
            return (
                f"{name} {first} of every {TILE_ROWS} is wrong: one of the {where} is left out in each tile"
            )
        return f"every {step}. {name}, from {first} on, is wrong: a stride or an interleaved layout is wrong"
    return f"{len(places)} of {count} {name}s are wrong, the first is {first}"


def wrong_planes(wrong: Wrong) -> str:
    """One index of a leading axis (a batch row, a head) that is wrong altogether."""
    shape = wrong.expected.shape
    if len(shape) < 3:
        return ""
    mask = wrong.mask.reshape(shape)
    for axis in range(len(shape) - 1):
        flags = mask.any(axis=tuple(other for other in range(len(shape)) if other != axis))
        if shape[axis] > 1 and not flags.all():
            places = np.flatnonzero(flags)
            if len(places):
                return f"along axis {axis} (of {shape[axis]}) only these are wrong: {_few(places)}"
    return ""


def triangle(wrong: Wrong) -> str:
    """Errors on one side of the diagonal: a causal mask."""
    expected, _ = wrong.rows
    if min(expected.shape) < 3 or not wrong.mask.any() or wrong.mask.all():
        return ""
    row, column = np.nonzero(wrong.mask)
    if (column > row).all():
        return "only elements above the diagonal are wrong: the causal mask is missing or one off"
    return ""


def some_non_finite(wrong: Wrong) -> str:
    expected, got = wrong.rows
    bad = ~np.isfinite(got) & np.isfinite(expected)
    if not bad.any() or bad.all():
        return ""
    rows = np.flatnonzero(bad.any(axis=1))
    return (
        f"{int(bad.sum())} elements are NaN or infinite, in rows {_few(rows)}: exp or a square overflows, something is "
        "divided by zero, or a masked value takes part"
    )


def _few(places: np.ndarray) -> str:
    shown = ", ".join(str(int(place)) for place in places[:4])
    return shown if len(places) <= 4 else f"{shown} and {len(places) - 4} more"


def worst_tile(wrong: Wrong) -> Iterator[str]:
    """Where the largest error is, how much is wrong, and a few elements."""
    expected, got = wrong.rows
    error = np.where(np.isfinite(got), np.abs(got - expected), np.inf)
    error = np.where(wrong.mask, error, 0.0)
    if not error.any():
        return
    row, column = (int(place) for place in np.unravel_index(int(error.argmax()), error.shape))
    top, left = row // TILE_ROWS * TILE_ROWS, column // TILE_COLUMNS * TILE_COLUMNS
    bottom, right = min(top + TILE_ROWS, error.shape[0]), min(left + TILE_COLUMNS, error.shape[1])
    share = float(wrong.mask.mean())
    yield (
        f"{100 * share:.3g}% of all elements are wrong; the worst are in rows {top}:{bottom}, columns {left}:{right} "
        f"(all axes but the last are rows; {error.shape[0]} x {error.shape[1]} in all)"
    )
    worst = np.argsort(error.ravel())[::-1][:SHOWN_ELEMENTS]
    shown = []
    for place in worst:
        index = tuple(int(part) for part in np.unravel_index(int(place), wrong.expected.shape or (1,)))
        if wrong.mask.ravel()[place]:
            shown.append(
                f"[{', '.join(map(str, index))}] expected {wrong.expected.ravel()[place]:.6g}, "
                f"got {wrong.got.ravel()[place]:.6g}"
            )
    yield "; ".join(shown)


TRIVIAL: tuple[Pattern, ...] = (all_zeros, all_one_value, echo_of_input, answer_of_another_case)
WHOLE: tuple[Pattern, ...] = (
    *TRIVIAL, all_non_finite, transposed, moved_by_one, missing_input, constant_factor, constant_offset,
    factor_of_rows, factor_of_columns, lost_precision,
)  # fmt: skip
PLACES: tuple[Pattern, ...] = (some_non_finite, triangle, wrong_planes, wrong_rows, wrong_columns)
