"""What is known of one architecture, kept as one JSON file: a run that was interrupted goes on where it stopped.

A row says with which code and options it was measured. Rows of other code or options, and rows that failed, are
measured again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pydantic

from neuron_port.store import write_json
from neuron_port.types import from_json, to_json

ROOT = Path(__file__).resolve().parents[2]
# Whatever changes what is matched, or how it is counted.
_ZOO = ("recipes", "benchmarks/zoo", "benchmarks/coverage_support")
_MATCHING = (
    "neuron_port/walk", "neuron_port/match", "neuron_port/report/coverage.py", "neuron_port/report/gaps.py",
    "neuron_port/types.py", "neuron_port/recipe.py", "neuron_port/registry.py", "neuron_port/checkpoint", *_ZOO,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GraphCover:
    """The sums of one graph. `glue` layers compute nothing and are not counted; `between_flops` are outside of layers."""

    phase: str
    layers: int
    glue: int
    kernel_layers: int
    flops: int
    kernel_flops: int
    between_flops: int
    hbm_bytes: int
    kernel_bytes: int


@dataclass(frozen=True, kw_only=True)
class Left:
    """Equal layers of one graph that no kernel takes, and what would cover them."""

    phase: str
    kind: str
    layer: str  # the first of them
    count: int
    inputs: str
    flops: int
    hbm_bytes: int
    reason: str
    cure: str


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What `neuron-port convert` said: the state of each proof, and the worst error of the whole model in float32.

    `worst_float32`: the largest `relative_max` of graphs (proof 2) and ported model (proof 3) over all prompts and
    outputs; None where no whole model was compared.
    """

    state: str
    proofs: tuple[str, ...] = ()
    worst_float32: float | None = None
    seconds: float
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One architecture. With `failure` nothing else is known of it."""

    name: str
    family: str
    graphs: tuple[GraphCover, ...] = ()
    recipes: Mapping[str, int] = field(default_factory=dict)  # layers that each serves
    left: tuple[Left, ...] = ()
    unused_parameters: tuple[str, ...] = ()
    seconds: float = 0.0
    failure: str | None = None
    converted: Converted | None = None

    def total(self, name: str) -> int:
        """The sum of a `GraphCover` field over the graphs."""
        return sum(getattr(graph, name) for graph in self.graphs)

    def share(self, what: str) -> float:
        """The part of "layers", "flops" or "bytes" that kernels take, over the graphs, each run once."""
        whole = self.total("hbm_bytes" if what == "bytes" else what)
        return self.total(f"kernel_{what}") / whole if whole else 1.0

    @property
    def covered(self) -> bool:
        """Every layer has a kernel, and every parameter is used."""
        return self.failure is None and self.share("layers") == 1 and not self.unused_parameters


def code_digest(*, whole: bool) -> str:
    """A digest of the files that decide the matching, or of the `whole` package and every recipe."""
    places = ("neuron_port", *_ZOO) if whole else _MATCHING
    summed = sha256()
    for path in sorted(path for place in places for path in _python_files(ROOT / place)):
        summed.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return summed.hexdigest()[:16]


def _python_files(place: Path) -> Iterable[Path]:
    return [place] if place.is_file() else place.rglob("*.py")


def keep(folder: Path, key: str, row: Row) -> None:
    """Write the row, complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{row.name}.partial"
    write_json(aside, {"key": key, "row": to_json(row)})
    aside.replace(folder / f"{row.name}.json")


def kept(folder: Path, key: str | None, name: str) -> Row | None:
    """The row of that name which was measured under `key` (None: under any that fits) and did not fail, if any."""
    file = folder / f"{name}.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    if key not in (None, found["key"]):
        return None
    try:
        row = from_json(Row, found["row"])
    except pydantic.ValidationError:  # rows had other fields then
        return None
    usable = row.failure is None and (row.converted is None or row.converted.failure is None)
    return row if usable else None
