"""The whole interface that a recipe author imports: `Recipe`, `Binding`, `Case`, `Tolerance`.

A recipe folder holds `recipe.py` (this interface, imports no torch), `kernel.py` (imports only `nki` and `math`),
`reference.py` (plain torch), `source.py` (the GPU kernel that it replaces, with origin and licence) and `README.md`.

One function, `Recipe.forward`, speaks the layer's own calling convention on top of the flat operator. The same
function serves the numeric probe (operator = the reference), the kernel's proof (operator = the kernel on the
simulator) and the port (operator = the torch custom op), so the three cannot drift apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from neuron_port.types import WeightSource

GENERATIONS = ("gen2", "gen3")
NKI_VERSION = "0.6"  # of the language that kernels are written in, and that the simulator speaks
# What a cut point hands to a recipe: docs/recipes.md says what `call` holds for each.
OPERATIONS = ("module", "rope", "attention", "attention_decode", "add", "function", "matmul", "softmax")
# How a tensor argument of a layer's call is drawn when it is probed and proven; all but the first ignore scales.
Domain = Literal["normal", "positive", "negative", "unit", "distinct", "decay"]
# For each tensor argument of a layer's call, the axis or axes that count tokens.
TokenAxes = tuple[int | tuple[int, ...] | None, ...]
CaseKind = Literal["ordinary", "tail", "stress", "large"]
# How activations are drawn (`parity/draw.py`). What a kernel may get away with on normal values, it does not on these.
Style = Literal["normal", "constant rows", "outliers", "one hot", "clustered", "long tail", "signed zeros"]


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What a layer is, in a recipe's terms: which of its parameters plays which role, and the fixed attributes.

    `weights`: role -> the module's own parameter name (dotted for children) and the layout that the kernel wants.
    `attributes`: JSON values that are passed to the operator by keyword.
    """

    weights: Mapping[str, WeightSource] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem that the kernel must solve, whatever the model: sizes by name, and how inputs are drawn."""

    name: str
    kind: CaseKind
    sizes: Mapping[str, int]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0  # multiplies the activations
    style: Style = "normal"


@dataclass(frozen=True, kw_only=True)
class Size:
    """The values that a named size may take: multiples of `multiple` from `least` to `most`, both included.

    Cases name sizes; a kernel must be right for all values, and is tried on some that it has not been shown.
    """

    least: int
    most: int
    multiple: int = 1

    def __contains__(self, value: int) -> bool:
        return self.least <= value <= self.most and value % self.multiple == 0


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a kernel may be from the exact result, in units of the dtype's own noise (`parity/comparison.py`).

    `reduction_length` names the size over which the kernel sums; the float32 bound grows with its square root.
    The defaults fit any kernel that accumulates in float32 and rounds once.
    """

    reduction_length: str | None = None
    r_ratio: float = 1.2


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A layer that we know how to run on a NeuronCore.

    Attributes:
        name: the folder's name and the operator's: `torch.ops.neuron_port.<name>`.
        summary: one sentence for tables.
        schema: the operator's arguments and results in torch.library notation, tensors first:
            "(Tensor x, Tensor gamma, float eps) -> Tensor". The kernel takes the same tensors in the same order,
            and the attributes by keyword.
        operation: which cut points it looks at, one of OPERATIONS.
        bind: narrows the candidates cheaply: bind(call) -> Binding, several Bindings to be tried in order (gain w or
            1 + w, one activation or another), or None. It never decides; the numeric probe does.
        forward: forward(operator, weights, attributes, *args, **kwargs) -> what the layer's own forward returns.
        sequence_axes: for each tensor argument of the layer's call, the axis that counts tokens (None: has none;
            -2: the last but one, whatever the rank; a tuple: several, without those of size 1, which are spread);
            the framework varies it to reach tails. Or a function of the call that says so, where layouts differ.
        domains: for each tensor argument of the layer's call that is not drawn normally, how it is: "positive",
            "negative" (softplus and its opposite), "unit" (0 to 1), "distinct" (integers, none twice in a row, as the
            indices of a top-k are), "decay" (logarithms of forget gates: at most 0).
        mixed_dtypes: whether a call may mix float32 tensors (states, decays, tables) with 16-bit ones.
        comparable: comparable(outputs of a layer or of the recipe) -> the same in an order that means something; for
            layers that leave an order open, as an unsorted top-k does.
        scales: the input scales of the numeric probe, where the usual ones make no sense for the layer.
        inputs: inputs(sizes, draw) -> the operator's tensor arguments as NumPy arrays, for `cases`;
            `draw` offers normal(shape), integers(low, high, shape) and weight(shape).
        flops: flops(shapes of the operator's tensors) -> floating point operations of TensorE (2 per multiply-add).
        cases: problems beyond those that models bring.
        sizes: which values the sizes of `cases` may take; a size that is not named stays as the cases have it.
    """

    name: str
    summary: str
    schema: str
    operation: str
    bind: Callable[[Any], Binding | tuple[Binding, ...] | None]
    forward: Callable[..., Any]
    sequence_axes: TokenAxes | Callable[[Any], TokenAxes]
    inputs: Callable[..., tuple[Any, ...]]
    flops: Callable[..., int]
    cases: tuple[Case, ...]
    sizes: Mapping[str, Size] = field(default_factory=dict)
    domains: Mapping[int, Domain] = field(default_factory=dict)
    scales: tuple[float, ...] | None = None
    mixed_dtypes: bool = False
    comparable: Callable[[list[Any]], list[Any]] = list
    tolerance: Tolerance = Tolerance()
    version: str = "1"
    generations: tuple[str, ...] = GENERATIONS
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    license: str = "Apache-2.0"
    nki_version: str = NKI_VERSION

    def token_axes(self, call: Any) -> TokenAxes:
        """`sequence_axes` for one call."""
        return self.sequence_axes(call) if callable(self.sequence_axes) else self.sequence_axes

    def bindings(self, call: Any) -> tuple[Binding, ...]:
        """What `bind` says of a call, as a tuple: empty when the call is not this recipe's."""
        found = self.bind(call)
        return () if found is None else found if isinstance(found, tuple) else (found,)

    @property
    def documentation(self) -> str:
        """The header of the recipe's `recipe.py`."""
        module = inspect.getmodule(self.bind)
        return inspect.cleandoc(module.__doc__ or "") if module else ""

    @property
    def tensor_arguments(self) -> tuple[str, ...]:
        """Names of the operator's tensor arguments, in order."""
        return tensor_arguments(self.schema)

    @property
    def attribute_arguments(self) -> tuple[str, ...]:
        """Names of the operator's other arguments, in order."""
        return attribute_arguments(self.schema)

    @property
    def result_count(self) -> int:
        return result_count(self.schema)


def tensor_arguments(schema: str) -> tuple[str, ...]:
    """Names of the tensor arguments of an operator's schema, in order."""
    return tuple(name for kind, name in _arguments(schema) if kind.startswith("Tensor"))


def attribute_arguments(schema: str) -> tuple[str, ...]:
    """Names of the other arguments of an operator's schema, in order."""
    return tuple(name for kind, name in _arguments(schema) if not kind.startswith("Tensor"))


def result_count(schema: str) -> int:
    """How many tensors the operator returns."""
    return schema.split("->")[1].count("Tensor")


def _arguments(schema: str) -> list[tuple[str, str]]:
    inside = schema[schema.index("(") + 1 : schema.index("->")].rstrip().removesuffix(")")
    pairs = [part.split("=")[0].strip().rsplit(" ", 1) for part in inside.split(",")]
    return [(kind.strip(), name.strip()) for kind, name in pairs]
