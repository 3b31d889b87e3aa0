"""Tables of rotary position embedding: the modules that make cos and sin from token positions.

Matches modules without parameters that take one tensor of integers, the positions, and have a 1-D buffer whose name
ends in `inv_freq` (one for each kind of layer, chosen by a word among the arguments, where a model has several). The
scaling that goes with it is an attribute. How the tables are laid out (in halves, interleaved, once, complex), and to
which axis of a three- or two-dimensional position a frequency belongs, is tried out: the numeric probe decides.
Positions up to 131072 times the frequency; float32 and bfloat16. Sizes: A = axes, T = tokens, F = frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuron_port.recipe import Binding, Case, Recipe, Size
from neuron_port.types import WeightSource

BUFFER = "inv_freq"
LAYOUTS = ("halves", "interleaved", "once", "complex")
TEXT, SECTIONS, STRIDED, AXIAL = "text", "sections", "strided sections", "axial"


def bind(call: Any) -> tuple[Binding, ...] | None:
    """Offer the layouts that fit the rank of the positions."""
    module = call.module
    if call.operation != "module" or module is None or next(module.parameters(), None) is not None:
        return None
    positions = [spec for spec in call.inputs if spec.dtype in ("int64", "int32")]
    name = buffer_name(
        module, [item for item in (*call.args, *call.kwargs.values()) if isinstance(item, str)]
    )
    if len(positions) != 1 or name is None:
        return None
    scaling = getattr(module, name.removesuffix(BUFFER) + "attention_scaling", 1.0)
    if not isinstance(scaling, (int, float)):
        return None
    shape = positions[0].shape
    weights = {"inv_freq": WeightSource(name=name)}
    fixed = {"scaling": float(scaling), "keeps_float32": keeps_float32(call)}
    return (
        tuple(
            Binding(weights=weights, attributes=fixed | variant)
            for variant in variants(shape, getattr(module, "mrope_section", None))
        )
        or None
    )


def keeps_float32(call: Any) -> bool:
    """Whether the tables stay in float32 beside 16-bit activations, as OLMo 2 has them: seen on the call itself."""
    if not any(spec.dtype in ("bfloat16", "float16") for spec in call.inputs):
        return False
    import torch
    from torch.utils._pytree import tree_map

    device = next(call.module.buffers()).device  # computed buffers have values where parameters have none

    def moved(item: Any) -> Any:
        return torch.zeros_like(item, device=device) if torch.is_tensor(item) else item

    args, kwargs = tree_map(moved, (call.args, dict(call.kwargs)))
    result = call.function(*args, **kwargs)
    first = result[0] if isinstance(result, (tuple, list)) else result
    return bool(first.element_size() == 4)


def buffer_name(module: Any, words: list[str]) -> str | None:
    """The buffer of frequencies that a call uses: the one that a word of the call names, or the only one."""
    names = [
        name
        for name, buffer in module.named_buffers()
        if name.endswith(BUFFER) and not name.endswith(f"original_{BUFFER}") and buffer.ndim == 1
    ]
    named = [f"{word}_{BUFFER}" for word in words if f"{word}_{BUFFER}" in names]
    return named[0] if named else names[0] if len(names) == 1 else None


def variants(shape: tuple[int, ...], sections: Any) -> list[dict[str, Any]]:
    """Attributes to try for positions [B, S], [3, B, S] with sections, or [N, 2]."""
    if len(shape) == 3 and isinstance(sections, (list, tuple)):
        kept = [int(size) for size in sections]
        return [{"kind": kind, "layout": "halves", "sections": kept} for kind in (SECTIONS, STRIDED)]
    if len(shape) > 2:
        return []
    text = [{"kind": TEXT, "layout": layout} for layout in LAYOUTS]
    return [{"kind": AXIAL, "layout": "halves"}, *text] if shape[-1] == 2 else text


def sequence_axes(call: Any) -> tuple[int | None, ...]:
    """The last axis of positions [.., S]; the first of [N, 2]. Of activations that only tell the dtype, none."""
    bindings = bind(call)
    axial = bool(bindings) and bindings[0].attributes["kind"] == AXIAL
    return tuple((0 if axial else -1) if "int" in spec.dtype else None for spec in call.inputs)


def forward(
    operator: Any, weights: Mapping[str, Any], attributes: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """cos and sin (or one complex table) for the model's positions, in the dtype of the other tensor."""
    import torch

    tensors = [item for item in (*args, *kwargs.values()) if hasattr(item, "shape")]
    positions = next(item for item in tensors if not item.is_floating_point())
    like = next((item for item in tensors if item.is_floating_point()), None)
    kind, layout = attributes["kind"], attributes["layout"]
    tokens = positions.shape[:1] if kind == AXIAL else positions.shape[-2:]
    if kind == AXIAL:
        rows = positions.transpose(0, 1)
    elif kind == TEXT:
        rows = positions.reshape(1, -1)
    else:
        rows = positions.reshape(positions.shape[0], -1).expand(3, -1)
    cos, sin = operator(
        rows.to(torch.int32).contiguous(),
        frequencies_by_axis(weights["inv_freq"], kind, attributes.get("sections", ())),
        scaling=attributes["scaling"],
        layout="once" if layout == "complex" else layout,
    )
    cos, sin = cos.reshape(*tokens, -1), sin.reshape(*tokens, -1)
    if layout == "complex":
        return torch.complex(cos, sin)
    if kind == AXIAL or like is None or attributes.get("keeps_float32"):  # tables of pictures stay in float32
        return cos, sin
    return cos.to(like.dtype), sin.to(like.dtype)


def frequencies_by_axis(inv_freq: Any, kind: str, sections: Any) -> Any:
    """[A, F]: the frequencies that belong to each axis of a position, zero for the others."""
    import torch

    count = inv_freq.shape[0]
    if kind == TEXT:
        return inv_freq.reshape(1, count).contiguous()
    if kind == AXIAL:  # height's frequencies, then width's
        zeros = torch.zeros_like(inv_freq)
        return torch.stack((torch.cat((inv_freq, zeros)), torch.cat((zeros, inv_freq))))
    owners = [0] * count
    if kind == SECTIONS:
        owners = [axis % 3 for axis, size in enumerate(sections) for _ in range(size)]
    else:
        for axis in (1, 2):
            for column in range(axis, min(sections[axis] * 3, count), 3):
                owners[column] = axis
    owner = torch.tensor(owners).to(inv_freq.device)  # made where it has values
    return torch.stack([torch.where(owner == axis, inv_freq, 0.0) for axis in range(3)]).to(inv_freq.dtype)


def inputs(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """positions [A, T] below M; frequencies [A, F] from 1 down, each of one axis."""
    axes, tokens, count = sizes["A"], sizes["T"], sizes["F"]
    base = np.float32(draw.integers(5_000, 500_000, (1,))[0])
    falling = np.float32(1.0) / base ** (np.arange(count, dtype=np.float32) / np.float32(count))
    owner = np.arange(count) % axes
    frequencies = np.where(owner[None, :] == np.arange(axes)[:, None], falling[None, :], 0).astype(np.float32)
    return draw.integers(0, sizes["M"], (axes, tokens)), frequencies


def flops(*shapes: tuple[int, ...]) -> int:
    """TensorE is not used."""
    return 0


def _case(name: str, kind: Any, layout: str, scaling: float = 1.0, **sizes: int) -> Case:
    full = {"A": 1, "M": 4096} | sizes
    return Case(name=name, kind=kind, sizes=full, attributes={"scaling": scaling, "layout": layout})


RECIPE = Recipe(
    name="rope_table",
    summary="Tables of rotary position embedding: cos and sin of position times frequency.",
    schema="(Tensor positions, Tensor frequencies, float scaling, str layout) -> (Tensor, Tensor)",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=sequence_axes,
    inputs=inputs,
    flops=flops,
    sizes={
        "T": Size(least=1, most=65536),
        "F": Size(least=1, most=512),
        "M": Size(least=2, most=131072),
    },
    cases=(
        _case("text", "ordinary", "halves", T=64, F=64),
        _case("interleaved", "ordinary", "interleaved", T=100, F=32),
        _case("once, scaled", "ordinary", "once", 1.139, T=40, F=32),
        _case("three axes", "ordinary", "halves", T=40, F=16, A=3),
        _case("a picture", "ordinary", "halves", T=64, F=20, A=2, M=100),
        _case("one token", "tail", "halves", T=1, F=64),
        _case("several tokens on a partition", "tail", "halves", T=1111, F=8),
        _case("uneven", "tail", "interleaved", T=131, F=5),
        _case("positions to 131072", "stress", "halves", T=300, F=64, M=131072),
        _case("small positions", "stress", "once", T=30, F=3, M=8),
    ),
)
