"""Batched matrix product of two activations: torch.matmul, @, bmm, baddbmm and einsum.

Every accepted spelling is brought into one form, a [Z, M, K] times b [Z, K, N], by views (and copies, where a batch
axis is broadcast on one side only): matmul with matrices of any batch axes, bmm, baddbmm (the kernel multiplies, scaling
and addition stay with the compiler), and an einsum of two operands whose labels are each a batch axis, a summed axis, or
an axis of one operand. Anything else (vectors, sums over one operand, diagonals, an ellipsis) is not bound.
Any size; float32 and bfloat16. Sizes: Z = problems, M = rows, K = summed features, N = columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance

Shape = tuple[int, ...]


class Einsum(NamedTuple):
    """The labels of an einsum of two operands by what happens to them."""

    first: str
    second: str
    result: str
    batch: str  # in both and in the result
    summed: str  # in both, not in the result
    rows: str  # in the first only
    columns: str  # in the second only


def bind(call: Any) -> Binding | None:
    """Accept two matrices, or stacks of them, whose product is a batched matrix product."""
    if call.operation != "matmul":
        return None
    shapes = [spec.shape for spec in call.inputs]
    if not shapes or any(spec.dtype != call.inputs[0].dtype for spec in call.inputs):
        return None
    name = call.attributes["function"].strip("_")
    if name == "einsum":
        fits = len(shapes) == 2 and parse(equation_of(call.args), *shapes) is not None
    else:
        operands = {"matmul": 2, "rmatmul": 2, "bmm": 2, "baddbmm": 3}.get(name)
        fits = operands == len(shapes) and all(len(shape) >= 2 for shape in shapes[-2:])
    return Binding(attributes={"function": name}) if fits else None


def equation_of(args: tuple[Any, ...]) -> str:
    """An einsum's equation, or nothing where it is given as numbers."""
    return args[0].replace(" ", "") if args and isinstance(args[0], str) else ""


def parse(equation: str, first_shape: Shape, second_shape: Shape) -> Einsum | None:
    """What an einsum does, if it is a batched matrix product of its two operands."""
    sides, _, result = equation.partition("->")
    first, _, second = sides.partition(",")
    labels = first + second + result
    if not labels.isalpha() or "->" not in equation:
        return None
    if any(len(set(part)) != len(part) for part in (first, second, result)):
        return None  # a diagonal
    if len(first) != len(first_shape) or len(second) != len(second_shape):
        return None
    sizes = dict(zip(first, first_shape, strict=True))
    if any(sizes.setdefault(label, size) != size for label, size in zip(second, second_shape, strict=True)):
        return None  # a broadcast axis
    batch = "".join(label for label in first if label in second and label in result)
    summed = "".join(label for label in first if label in second and label not in result)
    rows = "".join(label for label in first if label not in second)
    columns = "".join(label for label in second if label not in first)
    if not summed or set(batch + rows + columns) != set(result):
        return None  # an outer product, or a sum over one operand
    return Einsum(first, second, result, batch, summed, rows, columns)


def forward(operator: Any, weights: Any, attributes: Any, *args: Any, **options: Any) -> Any:
    """Compute the call as it is spelt, its product through the operator."""
    function = attributes["function"]
    if function == "einsum":
        operands = args[1] if len(args) == 2 else args[1:]
        return einsum_product(operator, equation_of(args), *operands)
    given = (*args, *(value for value in options.values() if hasattr(value, "shape")))
    if function == "rmatmul":
        return product(operator, given[1], given[0])
    if function != "baddbmm":
        return product(operator, given[0], given[1])
    added = given[0]  # torch rounds once, after the sum: the product comes in float32
    scaled = product(operator, given[1], given[2], wide=True) * options.get("alpha", 1)
    return (scaled + added * options.get("beta", 1)).to(added.dtype)


def product(operator: Any, a: Any, b: Any, wide: bool = False) -> Any:
    """a [..., M, K] @ b [..., K, N] through the operator, batch axes broadcast as torch.matmul does; wide: in float32."""
    rows, columns = a.shape[-2], b.shape[-1]
    if math.prod(b.shape[:-2]) == 1:  # one b: all rows of a are one problem
        batch = a.shape[:-2] if a.ndim >= b.ndim else (1,) * (b.ndim - a.ndim) + tuple(a.shape[:-2])
        flat = operator(a.reshape(1, -1, a.shape[-1]), b.reshape(1, *b.shape[-2:]), wide=wide)
    elif math.prod(a.shape[:-2]) == 1:
        batch = b.shape[:-2] if b.ndim >= a.ndim else (1,) * (a.ndim - b.ndim) + tuple(b.shape[:-2])
        flat = operator(a.reshape(1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), wide=wide)
    else:
        batch = broadcast(a.shape[:-2], b.shape[:-2])
        a = a.expand(*batch, *a.shape[-2:]).reshape(-1, *a.shape[-2:])
        b = b.expand(*batch, *b.shape[-2:]).reshape(-1, *b.shape[-2:])
        flat = operator(a, b, wide=wide)
    return flat.reshape(*batch, rows, columns)


def broadcast(first: Shape, second: Shape) -> Shape:
    """The batch axes of a product."""
    rank = max(len(first), len(second))
    pairs = zip(
        (1,) * (rank - len(first)) + tuple(first), (1,) * (rank - len(second)) + tuple(second), strict=True
    )
    return tuple(b if a == 1 else a for a, b in pairs)


def einsum_product(operator: Any, equation: str, a: Any, b: Any) -> Any:
    """An einsum as a batched product: axes permuted and joined, and the result's put in their places."""
    what = parse(equation, a.shape, b.shape)
    assert what is not None, "bind accepts only what can be parsed"
    sizes = dict(zip(what.first + what.second, (*a.shape, *b.shape), strict=True))

    def join(tensor: Any, labels: str, *groups: str) -> Any:
        order: Callable[[str], int] = labels.index
        permuted = tensor.permute([order(label) for group in groups for label in group])
        return permuted.reshape([math.prod(sizes[label] for label in group) for group in groups])

    flat = operator(
        join(a, what.first, what.batch, what.rows, what.summed),
        join(b, what.second, what.batch, what.summed, what.columns),
    )
    labels = what.batch + what.rows + what.columns
    return flat.reshape([sizes[label] for label in labels]).permute(
        [labels.index(label) for label in what.result]
    )


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """a [Z, M, K], b [Z, K, N]; one of them alone if sizes say so."""
    left = 1 if sizes.get("one_a") else sizes["Z"]
    right = 1 if sizes.get("one_b") else sizes["Z"]
    return draw.normal((left, sizes["M"], sizes["K"])), draw.normal((right, sizes["K"], sizes["N"]))


def flops(a: Shape, b: Shape) -> int:
    """Two per multiply-add."""
    return 2 * max(a[0], b[0]) * a[1] * a[2] * b[2]


RECIPE = Recipe(
    name="matmul",
    summary="Batched matrix product of two activations, however it is spelt.",
    schema="(Tensor a, Tensor b, bool wide=False) -> Tensor",
    operation="matmul",
    bind=bind,
    forward=forward,
    sequence_axes=(),
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="K"),
    sizes={
        "Z": Size(least=1, most=4096),
        "M": Size(least=1, most=32768),
        "K": Size(least=1, most=32768),
        "N": Size(least=1, most=65536),
    },
    cases=(
        Case(name="heads", kind="ordinary", sizes={"Z": 6, "M": 64, "K": 64, "N": 64}),
        Case(name="one large product", kind="ordinary", sizes={"Z": 1, "M": 200, "K": 300, "N": 700}),
        Case(
            name="left in float32",
            kind="ordinary",
            sizes={"Z": 3, "M": 20, "K": 64, "N": 40},
            attributes={"wide": True},
        ),
        Case(name="a row for each", kind="ordinary", sizes={"Z": 5, "M": 1, "K": 512, "N": 96}),
        Case(name="one b for all", kind="ordinary", sizes={"Z": 5, "M": 30, "K": 96, "N": 130, "one_b": 1}),
        Case(name="one a for all", kind="ordinary", sizes={"Z": 3, "M": 30, "K": 150, "N": 130, "one_a": 1}),
        Case(name="long sums", kind="large", sizes={"Z": 2, "M": 130, "K": 2100, "N": 64}),
        Case(name="many small problems", kind="large", sizes={"Z": 150, "M": 16, "K": 32, "N": 24}),
        Case(name="tails everywhere", kind="tail", sizes={"Z": 3, "M": 130, "K": 257, "N": 515}),
        Case(name="tails in one tile", kind="tail", sizes={"Z": 7, "M": 33, "K": 65, "N": 131}),
        Case(name="one of each", kind="tail", sizes={"Z": 1, "M": 1, "K": 1, "N": 1}),
        Case(name="outer products", kind="tail", sizes={"Z": 3, "M": 9, "K": 1, "N": 17}),
        Case(name="small values", kind="stress", sizes={"Z": 2, "M": 20, "K": 64, "N": 64}, scale=1e-3),
        Case(name="large values", kind="stress", sizes={"Z": 2, "M": 20, "K": 160, "N": 64}, scale=30.0),
    ),
)
