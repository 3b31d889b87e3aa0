"""Tiles for property tests: where an operand lies, what it holds, and running one instruction on such tiles.

A `Layout` is an allocation and the view of it that an instruction gets: a slice with steps, permuted free
dimensions, a reshape, an access pattern or a broadcast, at any legal start partition, in SBUF or PSUM. The same
view can be taken of a NumPy array, so that the whole allocation is compared afterwards: what an instruction
must not touch has to be as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from property_reference import ALL_INTEGERS, INTEGERS, NUMPY, rounded, spacing_of

from neuron_port.simulator import run_kernel, to_hbm
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

EXAMPLES = int(os.environ.get("NEURON_PORT_PROPERTY_EXAMPLES", "100"))  # raise for a thorough run by hand
BACKGROUND = 3  # what surrounds a result; every dtype holds it

properties = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],  # explaining a failure takes minutes here
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
few_properties = settings(properties, max_examples=max(EXAMPLES // 3, 5))

covered: set[str] = set()  # names of nki.isa that a property test of this folder judges


def covers(*names: str) -> Callable[[Any], Any]:
    """Say which instructions a property test judges; test_property_coverage looks for gaps."""

    def mark(test: Any) -> Any:
        covered.update(names)
        return test

    return mark


# ---- layouts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """An allocation [partitions, ...] and the operations that make the view [P, *free] of it."""

    shape: tuple[int, ...]  # of the view
    allocated: tuple[int, ...]
    steps: tuple[tuple[str, Any], ...] = ()
    psum: bool = False

    @property
    def buffer(self) -> Any:
        """The memory."""
        return nl.psum if self.psum else nl.sbuf

    def view(self, tile: Any, *, repeated: bool = True) -> Any:
        """The view of an NkiTensor; without `repeated`, before its broadcast."""
        for kind, argument in self.steps:
            if kind == "index":
                tile = tile[argument]
            elif kind == "permute":
                tile = tile.permute(argument)
            elif kind == "reshape":
                tile = tile.reshape(argument)
            elif kind == "pattern":
                pattern, offset = argument
                tile = tile.ap(pattern=pattern, offset=offset)
            elif repeated:
                tile = tile.broadcast(*argument)
        return tile

    def mirror(self, array: np.ndarray, *, repeated: bool = True) -> np.ndarray:
        """The same view of a NumPy array of the allocated shape."""
        for kind, argument in self.steps:
            if kind == "index":
                array = array[argument]
            elif kind == "permute":
                array = array.transpose(argument)
            elif kind == "reshape":
                array = array.reshape(argument)
            elif kind == "pattern":
                pattern, offset = argument
                strides = [stride * array.itemsize for stride, _ in pattern]
                shape = [count for _, count in pattern]
                flat = array.reshape(-1)[offset:]
                array = np.lib.stride_tricks.as_strided(flat, shape, strides)
            elif repeated:
                dim, size = argument
                array = np.broadcast_to(array, (*array.shape[:dim], size, *array.shape[dim + 1 :]))
        return array


def legal_starts(partitions: int) -> list[int]:
    """Where an engine may start an access of so many partitions."""
    step = 32 if partitions <= 32 else 64 if partitions <= 64 else 128
    return [start for start in range(0, 128, step) if start + partitions <= 128]


@st.composite
def layouts(
    draw: Any,
    shape: tuple[int, ...],
    *,
    psum: bool | None = None,
    repeated: bool = False,
    starts: Sequence[int] | None = None,
) -> Layout:
    """Any layout of a view [P, *free]; psum=None means either memory; repeated allows broadcast dimensions."""
    in_psum = draw(st.booleans()) if psum is None else psum
    start = draw(st.sampled_from(list(starts) if starts is not None else legal_starts(shape[0])))
    kind = draw(
        st.sampled_from(["whole", "part", "permuted", "reshaped", "pattern"] + ["repeated"] * repeated)
    )
    free = shape[1:]
    steps: list[tuple[str, Any]] = []
    last: list[tuple[str, Any]] = []
    if kind == "repeated":
        dim = draw(st.integers(1, len(free)))
        last = [("broadcast", (dim, shape[dim]))]
        free = (*free[: dim - 1], 1, *free[dim:])
        kind = draw(st.sampled_from(["whole", "part"]))
    partitions = start + shape[0] + (draw(st.integers(0, 2)) if start + shape[0] <= 126 else 0)
    if kind == "part":
        leads, strides, tails = (draw(st.tuples(*[st.integers(low, 2)] * len(free))) for low in (0, 1, 0))
        ends = [lead + (n - 1) * step + 1 for lead, n, step in zip(leads, free, strides, strict=True)]
        allocated = (partitions, *[end + tail for end, tail in zip(ends, tails, strict=True)])
        slices = [slice(*entry) for entry in zip(leads, ends, strides, strict=True)]
        steps.append(("index", (slice(start, start + shape[0]), *slices)))
    elif kind == "pattern":
        strides, row = [], 1
        for size in reversed(free):  # rows of each dimension with a gap between them
            row *= draw(st.integers(1, 2))
            strides.insert(0, row)
            row = row * size
        lead, tail = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        width = lead + row + tail
        allocated = (partitions, width)
        entries = [[width, shape[0]], *[list(entry) for entry in zip(strides, free, strict=True)]]
        steps.append(("pattern", (entries, start * width + lead)))
    else:
        allocated = (partitions, *free)
        if kind == "permuted":
            order = draw(st.permutations(range(1, len(free) + 1)))
            allocated = (partitions, *[free[axis - 1] for axis in order])
            back = [0] * len(free)
            for position, axis in enumerate(order):
                back[axis - 1] = position + 1
            steps.append(("permute", (0, *back)))
        elif kind == "reshaped":
            allocated = (partitions, int(np.prod(free)))
            steps.append(("reshape", (partitions, *free)))
        if partitions != shape[0] or draw(st.booleans()):
            steps.append(("index", (slice(start, start + shape[0]),)))
    return Layout(shape, allocated, tuple(steps + last), in_psum)


def plain(shape: tuple[int, ...], *, psum: bool = False) -> Layout:
    """The whole of an allocation of this shape."""
    return Layout(shape, shape, (), psum)


# ---- shapes and values -------------------------------------------------------------------------------------

partition_counts = st.sampled_from([1, 2, 5, 16, 31, 32, 33, 48, 64, 65, 96, 127, 128])
free_shapes = st.one_of(  # small enough for four such tiles with gaps in the eight banks of PSUM
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


@st.composite
def shapes(draw: Any) -> tuple[int, ...]:
    """[P, *free] with one to three free dimensions."""
    return (draw(partition_counts), *draw(free_shapes))


float_names = st.sampled_from(["float32", "float32", "bfloat16", "float16", "float8_e5m2", "float8_e4m3"])
value_names = st.one_of(float_names, st.sampled_from([*ALL_INTEGERS, "tfloat32"]))
narrow_integers = st.sampled_from(list(INTEGERS))
integer_names = st.sampled_from(list(ALL_INTEGERS))


def make_values(shape: tuple[int, ...], dtype: str, seed: int, flavour: str = "any") -> np.ndarray:
    """Representable float64 values: halves with many ties and zeros, or a spread over magnitudes."""
    rng = np.random.default_rng(seed)
    if flavour == "any":
        flavour = ("halves", "normal", "spread")[seed % 3]
    if dtype in ALL_INTEGERS:
        low, high = ALL_INTEGERS[dtype]
        if flavour == "halves":
            return rng.integers(max(low, -6), 7, shape).astype(np.float64)
        if flavour == "normal":
            return rng.integers(max(low, -1000), min(high, 1000) + 1, shape).astype(np.float64)
        return rng.integers(low, high + 1, shape, dtype=np.int64).astype(np.float64)
    if flavour == "halves":
        return rng.integers(-6, 7, shape) / 2.0
    values = rng.standard_normal(shape)
    if flavour == "spread":
        values = values * 2.0 ** rng.integers(-4, 4, shape)
    return rounded(values, dtype)


seeds = st.integers(0, 2**16)


@dataclass(frozen=True)
class Tile:
    """One operand: its dtype, layout, and logical values [P, *free] (of a result: what it held before)."""

    dtype: str
    layout: Layout
    values: np.ndarray | None = None

    @property
    def logical(self) -> np.ndarray:
        """The values, of an operand that has them."""
        assert self.values is not None
        return self.values


@st.composite
def tiles(
    draw: Any,
    shape: tuple[int, ...],
    dtypes: Any = value_names,
    *,
    flavour: str = "any",
    psum: bool | None = None,
    repeated: bool = True,
    values: np.ndarray | None = None,
    starts: Sequence[int] | None = None,
) -> Tile:
    """A source of this shape; dtypes is a name or a strategy of names."""
    dtype = dtypes if isinstance(dtypes, str) else draw(dtypes)
    layout = draw(layouts(shape, psum=psum, repeated=repeated and values is None, starts=starts))
    if values is None:
        base = layout.mirror(np.zeros(layout.allocated), repeated=False).shape
        values = np.broadcast_to(make_values(base, dtype, draw(seeds), flavour), shape)
    return Tile(dtype, layout, values)


@st.composite
def results(
    draw: Any,
    shape: tuple[int, ...],
    dtypes: Any = value_names,
    *,
    psum: bool | None = None,
    prior: bool = False,
    starts: Sequence[int] | None = None,
) -> Tile:
    """A destination of this shape; with `prior` it holds values of its own before the instruction."""
    dtype = dtypes if isinstance(dtypes, str) else draw(dtypes)
    layout = draw(layouts(shape, psum=psum, starts=starts))
    return Tile(dtype, layout, make_values(shape, dtype, draw(seeds)) if prior else None)


def columns(partitions: int, **options: Any) -> Any:
    """Strategy of float32 [P, 1] tiles, the vector operands of arithmetic."""
    return tiles((partitions, 1), "float32", repeated=False, **options)


@st.composite
def scalars_or_columns(draw: Any, partitions: int, flavour: str = "any") -> tuple[Tile | float, np.ndarray]:
    """A number or a float32 [P, 1] tile, and its values [P, 1]."""
    if draw(st.booleans()):
        number = float(make_values((1,), "float32", draw(seeds), flavour)[0])
        return number, np.full((partitions, 1), number)
    tile = draw(columns(partitions, flavour=flavour))
    return tile, tile.logical


def over(column: np.ndarray, like: np.ndarray) -> np.ndarray:
    """[P, 1] values shaped to broadcast over the free dimensions of `like`."""
    return column.reshape((column.shape[0],) + (1,) * (like.ndim - 1))


# ---- running -----------------------------------------------------------------------------------------------


def run_instruction(
    body: Callable[..., Any],
    destinations: Sequence[Tile],
    sources: Sequence[Tile | float | None],
    *,
    target: str = "trn2",
) -> list[np.ndarray]:
    """Run body(*destination views, *source views); return the whole destination allocations as float64."""
    loads = [tile for tile in (*destinations, *sources) if isinstance(tile, Tile) and tile.values is not None]
    inputs = []
    for tile in loads:
        base = tile.layout.mirror(np.zeros(tile.layout.allocated), repeated=False).shape
        kept = tuple(slice(0, size) for size in base)  # broadcast dimensions are loaded once
        inputs.append(to_hbm(tile.logical[kept].astype(NUMPY[tile.dtype])))

    def kernel(*arrays: Any) -> Any:
        waiting = iter(arrays)
        wholes, views = [], []
        for position, tile in enumerate((*destinations, *sources)):
            if not isinstance(tile, Tile):
                views.append(tile)
                continue
            dtype = getattr(nl, tile.dtype)
            whole = nl.ndarray(tile.layout.allocated, dtype, tile.layout.buffer)
            if position < len(destinations):
                nisa.memset(whole, BACKGROUND)
                wholes.append(whole)
            if tile.values is not None:
                load(tile.layout.view(whole, repeated=False), next(waiting))
            views.append(tile.layout.view(whole))
        body(*views)
        return tuple(store(whole) for whole in wholes)

    outputs = run_kernel(kernel, *inputs, target=target).outputs
    return [output.astype(np.float64) for output in outputs]


def load(view: Any, source: Any) -> None:
    """HBM to a view on chip; PSUM by way of SBUF, as DMA cannot reach it."""
    if view.buffer is nl.sbuf:
        nisa.dma_copy(view, source)
        return
    staged = nl.ndarray(view.shape, view.dtype, nl.sbuf)
    nisa.dma_copy(staged, source)
    nisa.tensor_copy(view, staged)


def store(whole: Any) -> Any:
    """A tile to a new output in HBM."""
    if whole.buffer is nl.psum:
        staged = nl.ndarray(whole.shape, whole.dtype, nl.sbuf)
        nisa.tensor_copy(staged, whole)
        whole = staged
    out = nl.ndarray(whole.shape, whole.dtype, nl.shared_hbm)
    nisa.dma_copy(out, whole)
    return out


def check(
    body: Callable[..., Any],
    destinations: Tile | Sequence[Tile],
    sources: Sequence[Tile | float | None],
    expected: np.ndarray | Sequence[np.ndarray],
    *,
    target: str = "trn2",
    error: Any = None,
) -> None:
    """The instruction writes `expected` (rounded here to each dtype) and nothing else.

    error: None for equality to the last bit, else an absolute error in the values before rounding (or one for
    each destination), which may move the result by that much and one rounding step more.
    """
    if isinstance(destinations, Tile):
        destinations, expected, error = [destinations], [expected], [error]  # type: ignore[list-item]
    if not isinstance(error, list):
        error = [error] * len(destinations)
    wholes = run_instruction(body, destinations, sources, target=target)
    for tile, whole, wanted, allowed in zip(destinations, wholes, expected, error, strict=True):
        wanted = np.asarray(wanted, dtype=np.float64).reshape(tile.layout.shape)
        surroundings = np.ones(whole.shape, dtype=bool)
        tile.layout.mirror(surroundings)[...] = False
        assert (whole[surroundings] == BACKGROUND).all(), "elements outside the view have changed"
        got, exact = tile.layout.mirror(whole), rounded(wanted, tile.dtype)
        if allowed is None:
            np.testing.assert_array_equal(got, exact)
            continue
        allowed = np.asarray(allowed, dtype=np.float64)
        allowed = np.broadcast_to(allowed.reshape(() if allowed.size == 1 else wanted.shape), wanted.shape)
        lowest = rounded(wanted - allowed, tile.dtype)
        highest = rounded(wanted + allowed, tile.dtype)
        same = (got == exact) | (np.isnan(got) & np.isnan(exact))
        inside = same | ((got >= lowest) & (got <= highest))
        assert inside.all(), (
            f"got {got[~inside][:4]}, expected {exact[~inside][:4]} within {allowed[~inside][:4]} "
            f"at {np.argwhere(~inside)[:4].tolist()}"
        )


def ulps(values: np.ndarray, count: float = 4.0) -> np.ndarray:
    """An error of `count` float32 rounding steps at each value."""
    return count * spacing_of(values, "float32")


def op(name: str) -> Any:
    """The operator token `nl.<name>`."""
    return getattr(nl, name)
