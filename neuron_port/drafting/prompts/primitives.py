"""Which GPU operation needs which NKI instruction: the one table of the dialect that people write.

task ─ primitives_of ─▶ ("product", "softmax") ─ instructions_for ─▶ ("dma_copy", ..., "nc_matmul")
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from neuron_port.drafting.prompts.prompting import PromptError
from neuron_port.drafting.sources.loading import shown_text
from neuron_port.simulator.coverage import least_generation
from neuron_port.simulator.nki import isa
from neuron_port.simulator.target import Target, find_target
from neuron_port.task import KernelTask

# What nearly every kernel needs, whatever it computes.
BASICS = (
    "dma_copy", "memset", "tensor_copy", "tensor_tensor", "tensor_scalar", "scalar_tensor_tensor", "activation",
    "tensor_reduce", "reciprocal",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Primitive:
    """One kind of computation: how GPU code spells it, and the instructions that carry it out.

    Spellings are whole words, or attributes (".T") and functions of torch alone ("torch.arange": Triton's counts lanes).
    """

    spellings: tuple[str, ...]
    instructions: tuple[str, ...]
    advice: str = ""


# In the order of their weight in a slice: when a slice grows too long, instructions of the last go first.
PRIMITIVES: Mapping[str, Primitive] = {
    "product": Primitive(
        spellings=(
            "@", "matmul", "mm", "bmm", "addmm", "baddbmm", "linear", "einsum", "dot", "scaled_dot_product_attention",
            "outer", "bilinear", "wmma", "mma_sync", "cublas", "gemm", "Linear",
        ),
        instructions=("nc_matmul", "nc_transpose", "dma_transpose"),
    ),
    "convolution": Primitive(
        spellings=("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "unfold", "Conv1d", "Conv2d"),
        instructions=("nc_matmul", "nc_transpose"),
        advice="A convolution is a sum of products, one for each tap: shifted views of the input as `moving`, the "
        "weights of the tap as `stationary`, all accumulated into one PSUM tile.",
    ),
    "softmax": Primitive(
        spellings=(
            "softmax", "log_softmax", "logsumexp", "scaled_dot_product_attention", "online_softmax", "cross_entropy",
        ),
        instructions=("tensor_reduce", "activation", "activation_reduce", "reciprocal"),
        advice="Softmax of rows: maximum by `nisa.tensor_reduce`, its negative as `bias` of `nisa.activation` with "
        "`nl.exp`, which also sums (`reduce_op=nl.add`), then `nisa.reciprocal` and a product.",
    ),
    "statistics": Primitive(
        spellings=(
            "layer_norm", "LayerNorm", "group_norm", "GroupNorm", "batch_norm", "instance_norm", "rms_norm", "RMSNorm",
            "var", "std", "var_mean", "normalize", "norm",
        ),
        instructions=("activation_reduce", "bn_stats", "bn_aggr", "tensor_reduce"),
        advice="Mean and variance of rows: `nisa.bn_stats` and `nisa.bn_aggr`, or sums by `nisa.activation_reduce`; "
        "subtract the mean before squaring, the difference of two large sums loses precision.",
    ),
    "reduction": Primitive(
        spellings=(
            "sum", "mean", "max", "min", "amax", "amin", "prod", "reduce", "__shfl_down_sync", "__shfl_xor_sync",
            "atomicAdd",
        ),
        instructions=("tensor_reduce", "activation_reduce", "tensor_scalar_reduce"),
    ),
    "transpose": Primitive(
        spellings=("transpose", "permute", "swapaxes", "movedim", "trans", ".t", ".T", ".mT"),
        instructions=("nc_transpose", "dma_transpose"),
    ),
    "gather": Primitive(
        spellings=("embedding", "Embedding", "gather", "index_select", "take", "take_along_dim"),
        instructions=("nc_n_gather", "local_gather"),
        advice="Rows by index: `nisa.dma_copy` from `table.ap(pattern=..., vector_offset=index_tile, indirect_dim=0)`.",
    ),
    "scatter": Primitive(
        spellings=("scatter", "scatter_add", "scatter_add_", "index_add", "index_add_", "index_put_", "index_copy_"),
        instructions=("dma_compute",),
        advice="Rows to indices: `nisa.dma_copy` into a view with `vector_offset`; `nisa.dma_compute` adds.",
    ),
    "mask": Primitive(
        spellings=("where", "masked_fill", "masked_fill_", "tril", "triu", "is_causal", "causal", "clamp", "clip"),
        instructions=("affine_select", "tensor_copy_predicated", "select_reduce", "range_select"),
        advice="Causal masks: `nisa.affine_select` keeps where `offset + channel_multiplier * partition + step * "
        "index` compares with 0.",
    ),
    "index": Primitive(
        spellings=("torch.arange", "linspace", "iota", "positions"),
        instructions=("iota",),
    ),
    "search": Primitive(
        spellings=("argmax", "argmin", "topk", "sort", "argsort", "kthvalue", "multinomial"),
        instructions=("max8", "nc_find_index8", "nc_match_replace8", "topk"),
    ),
    "scan": Primitive(
        spellings=("cumsum", "cumprod", "cummax", "associative_scan", "cumulative_sum", "logcumsumexp", "scan", "ssm"),
        instructions=("tensor_tensor_scan", "tensor_scalar_cumulative"),
        advice="`nisa.tensor_tensor_scan` computes h[i] = (h[i-1] op0 data0[i]) op1 data1[i] along the free axis.",
    ),
    "shuffle": Primitive(
        spellings=("roll", "flip", "pixel_shuffle", "rotate_half", "interleave"),
        instructions=("nc_stream_shuffle",),
    ),
    "sequence": Primitive(
        spellings=("nonzero", "segment_ids", "cu_seqlens"),
        instructions=("nonzero_with_count", "sequence_bounds"),
    ),
    "random": Primitive(
        spellings=("dropout", "Dropout", "rand", "randn", "rand_like", "bernoulli"),
        instructions=("dropout", "rng", "set_rng_seed"),
    ),
    "quantised": Primitive(
        spellings=("float8_e4m3fn", "float8_e5m2", "float8", "fp8", "mxfp8", "mxfp4", "quantize", "_scaled_mm"),
        instructions=("nc_matmul_mx", "quantize_mx"),
    ),
}  # fmt: skip
_SPELLED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|(?<=[\w)\]] )@(?= [\w(])")
_DOTTED = re.compile(r"(?:\btorch)?\.[A-Za-z_][A-Za-z0-9_]*")


# ---- which instructions ----------------------------------------------------------------------------------


def primitives_of(task: KernelTask) -> tuple[str, ...]:
    """Names of PRIMITIVES that the task's reference and the code of its sources spell, in the table's order.

    Raises:
        CommentError: comments of a source cannot be told from its code.
    """
    return primitives_in("\n".join([task.reference_text, *(shown_text(source) for source in task.sources)]))


def primitives_in(text: str) -> tuple[str, ...]:
    """Names of PRIMITIVES that the code spells as whole words, in the table's order.

    Words, not a parse: sources are Triton, CUDA and PyTorch, and an instruction too many costs a few lines.
    """
    dotted = _DOTTED.findall(text)
    words = {*_SPELLED.findall(text), *dotted, *(name.removeprefix("torch") for name in dotted)}
    return tuple(name for name, primitive in PRIMITIVES.items() if words & set(primitive.spellings))


def instructions_for(primitives: Iterable[str], target: str | Target) -> tuple[str, ...]:
    """Instructions of `nki.isa` for these primitives, basics first, without what the target does not have.

    Raises:
        PromptError: a primitive that is not in the table.
    """
    names = list(BASICS)
    for primitive in primitives:
        if primitive not in PRIMITIVES:
            raise PromptError(f"Unknown primitive: `{primitive}`", hint=f"Known: {', '.join(PRIMITIVES)}")
    for primitive, entry in PRIMITIVES.items():
        if primitive in set(primitives):
            names += entry.instructions
    generation = find_target(target).generation
    return tuple(name for name in dict.fromkeys(names) if available(name, generation))


def available(instruction: str, generation: int) -> bool:
    """Whether NeuronCores of that generation have the instruction."""
    return (_least_generation(instruction) or 2) <= generation


@cache
def _least_generation(instruction: str) -> int | None:
    return least_generation(inspect.unwrap(getattr(isa, instruction)))
