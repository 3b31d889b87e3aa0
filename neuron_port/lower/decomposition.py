"""Brings an exported program into the form that the emitter reads: core ATen, custom operators kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from neuron_port.errors import LoweringError
from neuron_port.lower.complex_numbers import without_complex_numbers
from neuron_port.lower.rewrites import REWRITES, TORCH_DECOMPOSES

NAMESPACE = "neuron_port"
_DONE = "neuron_port.decomposed"
CHECKS = frozenset(
    {
        torch.ops.aten._assert_async.msg,
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten.sym_constrain_range.default,
        torch.ops.aten.sym_constrain_range_for_size.default,
    }
)
_NUMBERS = frozenset({torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default})


def decompose(
    program: ExportedProgram, references: Mapping[str, Callable[..., Any]] | None = None
) -> ExportedProgram:
    """The program in core ATen; operators named in `references` become their plain-torch reference.

    Run it once per form of a graph: `emit` decomposes only programs that did not pass through here.
    Raises LoweringError when a reference names an operator that was never defined.
    """
    table = torch.export.default_decompositions()
    table.update(torch._decomp.get_decompositions(TORCH_DECOMPOSES))
    table.update(REWRITES)
    table[torch.ops.aten.scaled_dot_product_attention.default] = _attention
    for name, reference in (references or {}).items():
        table[_operator(name)] = reference
    decomposed = program.run_decompositions(table)
    _drop_checks(decomposed.graph_module.graph)
    without_complex_numbers(decomposed)
    decomposed.graph_module.meta[_DONE] = True
    return decomposed


def inline_references(
    program: ExportedProgram, references: Mapping[str, Callable[..., Any]]
) -> ExportedProgram:
    """The decomposed program, every `torch.ops.neuron_port.<name>` in `references` replaced by its reference.

    This is the form that XLA-CPU can execute: it has no kernel calls left for the named operators.
    """
    return decompose(program, references)


def _drop_checks(graph: torch.fx.Graph) -> None:
    """Remove what a model checks about its data while it runs, and what only those checks read.

    A compiled graph has no way to stop. The checks' inputs can have shapes that depend on data.
    """
    for node in reversed(list(graph.nodes)):
        if node.target in CHECKS or (node.target in _NUMBERS and not node.users):
            graph.erase_node(node)
    graph.eliminate_dead_code()


def is_decomposed(program: ExportedProgram) -> bool:
    """True when `decompose` made this program."""
    return bool(program.graph_module.meta.get(_DONE))


def _operator(name: str) -> Any:
    packet = getattr(getattr(torch.ops, NAMESPACE), name, None)
    if packet is None:
        raise LoweringError(
            f"Unknown operator: `{NAMESPACE}::{name}`",
            hint="Import the module that defines it before the references are inlined.",
        )
    return packet.default


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention written out, softmax in float32: torch's own decomposition differs by device."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    scores = (query @ key.transpose(-2, -1)) * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ value
