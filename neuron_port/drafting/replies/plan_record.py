"""The plan of a kernel as a record: what a language model fills in before it writes code. Its schema is in the prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

Memory = Literal["sbuf", "psum"]
Engine = Literal["tensor", "vector", "scalar", "gpsimd", "dma"]
Tail = Literal["none", "slice"]
# Far beyond any machine, and small enough to be multiplied and printed.
Number = Annotated[int, pydantic.Field(ge=-(2**31), le=2**31)]
Shape = Annotated[tuple[Number, ...], pydantic.Field(max_length=8)]
_STRICT = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How one of the task's sizes is walked: `tile` elements at a time along an axis of the tiles."""

    __pydantic_config__ = _STRICT
    size: str  # a size that the task names: "T"
    tile: Number
    axis: Literal["partition", "free", "loop"]
    tail: Tail  # "slice": the last tile is cut short; "none": the tile divides every value of the size


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One tile on chip at its largest; shape[0] counts partitions. `buffers` are alive at once."""

    __pydantic_config__ = _STRICT
    name: str
    memory: Memory
    shape: Shape
    dtype: str
    buffers: Number = 1


@dataclass(frozen=True, kw_only=True)
class Product:
    """One nc_matmul at its largest: stationary [contraction, m], moving [contraction, n], `into` a tile in PSUM."""

    __pydantic_config__ = _STRICT
    contraction: Number
    m: Number
    n: Number
    into: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the computation, the instruction that does it, and where."""

    __pydantic_config__ = _STRICT
    what: str
    instruction: str  # "nisa.activation"
    engine: Engine


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A part of the source or the reference, and what becomes of it."""

    __pydantic_config__ = _STRICT
    source: str
    nki: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a kernel will compute its task."""

    __pydantic_config__ = _STRICT
    summary: str
    partition_axis: str  # what lies on the partitions
    free_axis: str
    tiling: tuple[Tiling, ...]
    tiles: tuple[Tile, ...]
    products: tuple[Product, ...]
    steps: tuple[Step, ...]
    edges: str  # how tails are handled
    numerics: str  # what could overflow or lose precision, and what is done about it
    source_map: tuple[Mapped, ...]

    @property
    def instructions(self) -> tuple[str, ...]:
        """Names of `nki.isa`, without prefix, in order of first use."""
        names = [step.instruction.rpartition(".")[2] for step in self.steps]
        return tuple(dict.fromkeys(["nc_matmul"] * bool(self.products) + names))

    def text(self) -> str:
        """The plan as JSON, for prompts and for people."""
        return json.dumps(plan_adapter().dump_python(self, mode="json"), indent=1, ensure_ascii=False)


def plan_adapter() -> pydantic.TypeAdapter[Any]:
    """Reads and writes plans as JSON values."""
    return pydantic.TypeAdapter(Plan)
