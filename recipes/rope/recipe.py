"""Rotary position embedding: rotates queries and keys by their positions, as nearly all decoders do.

Tables of any kind (plain, Llama 3, YaRN, dynamic, multimodal) fit, because cos and sin come in as tensors. Matches
calls of a model's `apply_rotary...` function whose arguments are (q, k, cos, sin), (q, k, complex table) or
(x, cos, sin), with heads on axis 1 or 2, with or without a batch axis, and tables that cover the whole head or a part
of it. Which elements are pairs, and whether the tables hold them in halves, interleaved, or only once, is tried out:
the numeric probe decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size

HEADS_AXIS = 1  # of the model's own q and k [B, heads, S, D]
# (pairs of the head, layout of the model's tables): what models do, by how often. The operator's tables hold the first
# members of all pairs, then the second members: "halves".
VARIANTS = (
    ("half", "halves"), ("half", "once"), ("interleaved", "interleaved"), ("interleaved", "first half"),
    ("interleaved to half", "first half"), ("interleaved", "once"), ("interleaved", "halves"),
    ("interleaved to half", "halves"), ("interleaved to half", "once"),
)  # fmt: skip
COMPLEX_VARIANTS = (("interleaved", "complex"),)


def heads_and_tables(tensors: Any) -> tuple[Any, Any]:
    """The tensors that are rotated, and their tables: (q, k, cos, sin), (q, k, complex table) or (x, cos, sin)."""
    is_complex = "complex" in str(tensors[-1].dtype)
    count = 2 if is_complex or len(tensors) == 4 else 1
    return tensors[:count], tensors[count:]


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Offer every way of pairing that fits the shapes, for heads on axis 1 and on axis 2."""
    specs = call.inputs
    if call.operation != "rope" or len(specs) not in (3, 4) or any("int" in spec.dtype for spec in specs):
        return None
    heads, tables = heads_and_tables(specs)
    if len({spec.shape for spec in tables}) != 1 or len({len(spec.shape) for spec in heads}) != 1:
        return None
    is_complex = len(tables) == 1
    bindings = []
    for axis in heads_axes([spec.shape for spec in heads], tables[0].shape, call.attributes):
        for pairs, layout in COMPLEX_VARIANTS if is_complex else VARIANTS:
            width = tables[0].shape[-1] * (2 if layout in ("once", "complex") else 1)
            if width % 2 == 0 and width <= heads[0].shape[-1]:
                attributes = {"pairs": pairs, "tables": layout, "heads_axis": axis}
                bindings.append(Binding(attributes=attributes))
    return tuple(bindings) or None


def heads_axes(
    heads: list[tuple[int, ...]], table: tuple[int, ...], attributes: Mapping[str, Any]
) -> tuple[int, ...]:
    """On which axes the heads may lie, counted with a batch axis: where the tables' tokens are on the other one.

    [B, heads, S, D] is 1, [B, S, heads, D] is 2. Tables are [B or 1, S, R] or [S, R]; heads may lack the batch axis.
    """
    if len(heads[0]) not in (3, 4) or len(table) not in (2, 3):
        return ()
    batch = heads[0][0] if len(heads[0]) == 4 else 1
    if len(table) == 3 and table[0] not in (1, batch):
        return ()
    places = {1: -2, 2: -3}  # of the tokens
    fitting = [axis for axis, place in places.items() if all(shape[place] == table[-2] for shape in heads)]
    said = attributes.get("unsqueeze_dim")
    return (said,) if said in fitting and len(table) == 3 else tuple(fitting)


def sequence_axes(call: Any) -> tuple[int, ...]:
    """The last axis but one; of heads [.., S, heads, D], the last but two."""
    bindings = bind(call)
    heads, tables = heads_and_tables(call.inputs)
    place = -3 if bindings and bindings[0].attributes["heads_axis"] == 2 else -2
    return (place,) * len(heads) + (-2,) * len(tables)


def forward(
    operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Rotates heads in the model's own layout through the operator on [B, S, heads, D].

    Models make [B, heads, S, D] by transposing; transposing back gives the contiguous tensor free.
    """
    heads, tables = heads_and_tables([item for item in (*args, *kwargs.values()) if hasattr(item, "shape")])
    axis, layout = attributes.get("heads_axis", HEADS_AXIS), attributes.get("tables", "halves")
    cos, sin = (tables[0].real, tables[0].imag) if layout == "complex" else tables
    rows = [tokens_first(item, axis) for item in heads]
    if len(heads) == 1:  # the operator's keys are then the first head, and are not looked at
        rows.append(rows[0][:, :, :1].contiguous())
    rotated = operator(
        *rows,
        in_halves(cos, layout, rows[0].shape[0]),
        in_halves(sin, layout, rows[0].shape[0]),
        pairs=attributes.get("pairs", "half"),
    )
    results = [model_layout(item, like, axis) for item, like in zip(rotated, heads, strict=False)]
    return results[0] if len(heads) == 1 else tuple(results)


def tokens_first(x: Any, heads_axis: int) -> Any:
    """[B, S, heads, D] of whatever layout x has."""
    batched = x if x.ndim == 4 else x.unsqueeze(0)
    return (batched.transpose(1, 2) if heads_axis == 1 else batched).contiguous()


def model_layout(x: Any, like: Any, heads_axis: int) -> Any:
    """x [B, S, heads, D] in the layout of `like`."""
    turned = x.transpose(1, 2) if heads_axis == 1 else x
    return turned if like.ndim == 4 else turned.squeeze(0)


def in_halves(table: Any, layout: str, batch: int) -> Any:
    """A table [B or 1, S, W] or [S, W] as [B, S, R]: the first members of all pairs, then the second members."""
    import torch

    if layout == "interleaved":
        table = torch.cat((table[..., 0::2], table[..., 1::2]), dim=-1)
    elif layout == "first half":
        first, _ = table.chunk(2, dim=-1)
        table = torch.cat((first, first), dim=-1)
    elif layout in ("once", "complex"):
        table = torch.cat((table, table), dim=-1)
    batched = table if table.ndim == 3 else table.unsqueeze(0)
    return batched.expand(batch, -1, -1).contiguous()


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """Returns q, k, cos, sin; cos and sin are free values, so their halves differ."""
    batch, sequence, head_dim = sizes["B"], sizes["S"], sizes["D"]
    width = max(
        2, head_dim // sizes.get("P", 1) // 2 * 2
    )  # P: into how many parts the head falls, one of them turned
    return (
        draw.normal((batch, sequence, sizes["Q"], head_dim)),
        draw.normal((batch, sequence, sizes["G"], head_dim)),
        draw.normal((batch, sequence, width)),
        draw.normal((batch, sequence, width)),
    )


def flops(q: tuple[int, ...], k: tuple[int, ...], cos: tuple[int, ...], sin: tuple[int, ...]) -> int:
    """Returns 0: rotation runs on VectorE and GpSimdE, TensorE has no part in it."""
    return 0


def _case(name: str, kind: Any, scale: float = 1.0, pairs: str = "half", **sizes: int) -> Case:
    return Case(name=name, kind=kind, sizes=sizes, scale=scale, attributes={"pairs": pairs})


RECIPE = Recipe(
    name="rope",
    summary="Rotary position embedding of queries and keys: half or interleaved pairs, whole heads or parts.",
    schema='(Tensor q, Tensor k, Tensor cos, Tensor sin, str pairs="half") -> (Tensor, Tensor)',
    operation="rope",
    bind=bind,
    forward=forward,
    sequence_axes=sequence_axes,
    inputs=inputs,
    flops=flops,
    sizes={
        "B": Size(least=1, most=64),
        "S": Size(least=1, most=32768),
        "Q": Size(least=1, most=128),
        "G": Size(least=1, most=128),
        "D": Size(least=2, most=256, multiple=2),
    },
    mixed_dtypes=True,
    cases=(
        _case("llama heads", "ordinary", B=1, S=128, Q=32, G=8, D=64),
        _case("multi-head", "ordinary", B=2, S=64, Q=4, G=4, D=32),
        _case("partial", "ordinary", B=2, S=40, Q=4, G=2, D=32, P=2),
        _case("interleaved", "ordinary", pairs="interleaved", B=2, S=40, Q=4, G=2, D=32),
        _case("interleaved, partial", "ordinary", pairs="interleaved", B=1, S=40, Q=6, G=2, D=36, P=4),
        _case("interleaved to half", "ordinary", pairs="interleaved to half", B=1, S=40, Q=4, G=1, D=32),
        _case("one token", "tail", B=1, S=1, Q=32, G=8, D=128),
        _case("three heads", "tail", B=1, S=17, Q=9, G=3, D=64),
        _case("130 tokens, one key head", "tail", B=1, S=130, Q=7, G=1, D=6),
        _case("one token, interleaved", "tail", pairs="interleaved", B=3, S=1, Q=4, G=2, D=64),
        _case("tiny values", "stress", scale=1e-3, B=2, S=33, Q=4, G=2, D=16),
        _case("large values", "stress", scale=30.0, B=2, S=33, Q=4, G=2, D=16),
        _case("heads in blocks", "large", B=1, S=20, Q=51, G=1, D=128),
    ),
)
