"""Embedding lookup: a row of a table for each token id.

Matches modules whose only parameter is a 2-D `weight` and that are called with integer ids: of tokens (the rows
perhaps scaled, as in Gemma) or of positions (perhaps past the first `offset` rows, as in OPT). Renormalising
embeddings (max_norm) are left to others. Any size; float32 and bfloat16; without scale the result is exact.
Sizes: T = tokens, V = vocabulary, H = hidden.
"""

from __future__ import annotations

from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size
from neuron_port.types import WeightSource

INTEGERS = ("int32", "int64")


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Accept a module with one 2-D parameter `weight` that is called with integers among its arguments.

    A module of learned positions may be given a mask and the places, and keeps its first rows for itself (`offset`);
    one of tokens may scale its rows (`embed_scale`). Which argument holds the ids, the probe says.
    """
    module = call.module
    if call.operation != "module" or module is None:
        return None
    places = [place for place, spec in enumerate(call.inputs) if spec.dtype in INTEGERS]
    stored = dict(module.named_parameters())
    offset = getattr(module, "offset", 0)
    if not (places or offset) or list(stored) != ["weight"] or stored["weight"].ndim != 2:
        return None
    if getattr(module, "max_norm", None) is not None:  # rewrites its own table while it looks up
        return None
    scale = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", 1.0))
    table = {"table": WeightSource(name="weight")}
    common = {"offset": int(offset), "scale": float(scale)}
    looked_up = [
        Binding(weights=table, attributes={"argument": place} | common) for place in reversed(places)
    ]
    if offset:  # learned positions may be counted by the module itself
        looked_up.append(Binding(weights=table, attributes={"argument": None} | common))
    return tuple(looked_up)


def forward(operator: Any, weights: Any, attributes: Any, *args: Any, **kwargs: Any) -> Any:
    """Look up ids [.., S] of any integer dtype through the operator on int32 [T]."""
    tensors = [item for item in (*args, *kwargs.values()) if hasattr(item, "dtype")]
    table, argument = weights["table"], attributes["argument"]
    ids = counted(tensors, args) if argument is None else tensors[argument]
    if ids.ndim == 1 and tensors[0].ndim > 1:  # places of one row, said beside the tokens [B, S]
        ids = ids[None]
    rows = operator(ids.reshape(-1).int(), table, offset=attributes["offset"], scale=attributes["scale"])
    return rows.reshape(*ids.shape, table.shape[1])


def counted(tensors: Any, args: Any) -> Any:
    """The places [B, S] of the tokens of tensors[0] [B, S, ..], after the number that the second argument says."""
    import torch  # listing recipes imports no torch

    batch, length = tensors[0].shape[:2]
    before = args[1] if len(args) > 1 and args[1] is not None else 0
    places = torch.arange(length, device=tensors[0].device) + before
    return places.expand(batch, -1)


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """ids [T], table [V, H]."""
    ids = draw.integers(0, sizes["V"] - sizes.get("kept", 0), (sizes["T"],))
    return ids, draw.normal((sizes["V"], sizes["H"]))


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used."""
    return 0


RECIPE = Recipe(
    name="embedding",
    summary="A row of a table for each token id.",
    schema="(Tensor ids, Tensor table, int offset=0, float scale=1.0) -> Tensor",
    operation="module",
    bind=bind,
    forward=forward,
    mixed_dtypes=True,  # a mask in float32 may stand beside the ids and tells nothing but its shape
    sequence_axes=(-1,),
    inputs=inputs,
    flops=flops,
    sizes={
        "T": Size(least=1, most=32768),
        "V": Size(least=1, most=262144),
        "H": Size(least=1, most=65536),
    },
    cases=(
        Case(name="one token", kind="ordinary", sizes={"T": 1, "V": 1000, "H": 576}),
        Case(name="a prompt", kind="ordinary", sizes={"T": 128, "V": 1000, "H": 256}),
        Case(
            name="scaled rows",
            kind="ordinary",
            sizes={"T": 20, "V": 100, "H": 96},
            attributes={"scale": 9.797958971},
        ),
        Case(
            name="positions past two rows",
            kind="ordinary",
            sizes={"T": 20, "V": 100, "H": 96, "kept": 2},
            attributes={"offset": 2},
        ),
        Case(name="one row again and again", kind="stress", sizes={"T": 130, "V": 1, "H": 96}),
        Case(name="two partial tiles", kind="tail", sizes={"T": 130, "V": 77, "H": 577}),
        Case(name="one row", kind="tail", sizes={"T": 3, "V": 1, "H": 1}),
        Case(name="wider than one block", kind="large", sizes={"T": 5, "V": 40, "H": 20000}),
    ),
)
