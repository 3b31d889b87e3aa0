"""What is known to fail: a trimmed copy of the model is lowered and linted, and rules look at the full sizes.

Codes and their meanings are those that AWS documents for neuronx-cc (compiler/error-codes of the SDK); the linter is
the one that `convert` runs. A finding of severity `refused` is predicted to stop the compilation, `contested` is
disputed between public sources or an estimate near a limit, `note` changes nothing but should be known.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from neuron_port.checkpoint.architecture import module_specs
from neuron_port.errors import NeuronPortError
from neuron_port.instances import instance
from neuron_port.lower import decompose, emit, lint
from neuron_port.port.export import export_graph
from neuron_port.preflight.blocks import meta_model
from neuron_port.preflight.fitting import gib
from neuron_port.preflight.records import Candidate, Finding, Work
from neuron_port.preflight.roofline import GIB
from neuron_port.preflight.sizing import Sizes
from neuron_port.registry import Registry
from neuron_port.walk.families import programs_of
from neuron_port.walk.program import GraphShapes

ERROR_CODES = "aws-neuron-sdk, compiler/error-codes (2.32)"
MEMORY_CODES = ("NCC_EVRF009",)  # of the trimmed copy: the full sizes are judged by the verdict
# A compilation was refused at 8,658,944 instructions "over the threshold (5000000)": aws-neuron-sdk issue 987.
INSTRUCTION_LIMIT = 5_000_000
# One TensorE instruction multiplies 128 x 128 weights with up to 512 columns (trainium_inferentia2_arch.rst); the
# other engines and DMA are taken to need as many again.
FLOPS_OF_INSTRUCTION = 2 * 128 * 128 * 512
INSTRUCTIONS_OF_MATMUL = 2
LINT_TOKENS = 128


def lowered(sizes: Sizes, target: str) -> Iterator[Finding]:
    """What the linter finds in the graphs of the trimmed model, or why they cannot be made."""
    model = sizes.cut(1).model
    stored = set(module_specs(meta_model(sizes.trimmed.config)))
    shapes = _short(sizes)
    try:
        programs = programs_of(model, shapes)
        for number, program in enumerate(programs):
            if any(other.phase == program.phase for other in programs[:number]):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, about its own future
                graph = export_graph(
                    model,
                    lambda copy, number=number: programs_of(copy, shapes)[number],  # type: ignore[misc]
                    {},
                    Registry(),
                    stored=stored,
                    canonical=lambda name: name,
                )
                hlo = emit(decompose(graph.program), graph.spec, kernels={})
            for found in lint(hlo, target, graph.spec).findings:
                if found.code not in MEMORY_CODES:
                    yield Finding(
                        severity="refused",
                        code=found.code,
                        cause=f"{program.phase}: {found.cause} ({found.count} times in the trimmed graph)",
                        cure=found.cure,
                        source=ERROR_CODES,
                    )
    except NeuronPortError as error:
        yield Finding(
            severity="refused",
            code="LOWERING",
            cause=error.message,
            cure=error.hint or "",
            source="neuron-port's own lowering, of a trimmed copy",
        )
    except Exception as error:  # torch.export raises whatever the model's own code does under it
        reason = " ".join(f"{type(error).__name__}: {error}".split()[:30])
        yield Finding(
            severity="refused",
            code="EXPORT",
            cause=f"`{sizes.anatomy.architecture}` cannot be exported: {reason}",
            cure="Its code is not exportable yet.",
            source="torch.export of a trimmed copy",
        )


def _short(sizes: Sizes) -> GraphShapes:
    """Graphs as small as the model allows: what the rules look at does not depend on their lengths."""
    shapes = sizes.shapes
    if sizes.anatomy.family != "causal":
        return shapes
    bucket = min(LINT_TOKENS, *shapes.buckets)
    return GraphShapes(batch=1, buckets=(bucket,), cache_length=min(2 * bucket, shapes.cache_length))


def of_sizes(sizes: Sizes, work: Work, target: str, chosen: Candidate | None) -> Iterator[Finding]:
    """What follows from the full sizes on the instance that was chosen."""
    if chosen is not None and chosen.degree is not None:
        yield from _instructions(sizes, work, chosen.degree)
        yield from _gathered(sizes, chosen, chosen.degree)
        yield from _host(sizes, work, chosen)
    if sizes.weight_format == "fp8" and target in ("inf2", "trn1", "trn2"):
        yield Finding(
            severity="contested",
            code="NCC_EVRF051",
            cause=f"float8_e4m3fn operands are refused on {target}: the documents name Trn3 as the first chip",
            cure="Use --weight-format int8, which has no such rule.",
            source=ERROR_CODES,
        )
    if target in ("inf2", "trn1"):
        yield Finding(
            severity="contested",
            code="NKI",
            cause=f"whether NKI kernels run on {target} is disputed: product pages list it, NxD Inference 2.29 and "
            "AWS's engineers say Trn2 and newer",
            cure="Every graph has a twin without kernels; a kernel is used there only after it compiled and passed.",
            source="nxd-inference.rst (2.29), vllm-neuron issue 16, aws-neuron-sdk issues 1311 and 1322",
        )


def _instructions(sizes: Sizes, work: Work, degree: int) -> Iterator[Finding]:
    """Whether a prompt as long as the context would become too many instructions in one graph."""
    if sizes.anatomy.family == "encoder":
        tokens, count = sizes.context, _instruction_count(work.forward_flops)
    else:
        tokens = sizes.context
        count = _instruction_count(_prompt_flops(work, tokens) / degree)
    if count <= INSTRUCTION_LIMIT:
        return
    while tokens > 1 and _instruction_count(_prompt_flops(work, tokens) / degree) > INSTRUCTION_LIMIT:
        tokens //= 2
    yield Finding(
        severity="contested",
        code="NCC_EVRF007",
        cause=f"one graph for {sizes.context} tokens would be about {count / 1e6:.0f} million instructions on a core "
        f"at degree {degree}; {INSTRUCTION_LIMIT / 1e6:.0f} million were refused (estimate)",
        cure=f"Use --buckets of at most {tokens} tokens, or a higher degree.",
        source=f"{ERROR_CODES}; aws-neuron-sdk issue 987",
    )


def _prompt_flops(work: Work, tokens: int) -> float:
    return tokens * (work.linear_flops_per_token + work.pair_flops * tokens)


def _instruction_count(flops: float) -> float:
    return INSTRUCTIONS_OF_MATMUL * flops / FLOPS_OF_INSTRUCTION


def _gathered(sizes: Sizes, chosen: Candidate, degree: int) -> Iterator[Finding]:
    """Experts as the compiler lowers them: each token's own weights are gathered, which long prompts cannot have."""
    gathered = sizes.gathered_bytes("prefill") // degree
    if gathered <= chosen.capacity_bytes_per_core // 4:
        return
    tokens = sizes.shapes.buckets[0]
    yield Finding(
        severity="contested",
        code="NCC_EOOM001",
        cause=f"without a kernel, the experts of a prompt of {tokens} tokens gather {gib(gathered)} of weights on "
        f"a core at degree {degree}",
        cure="Recipes `moe_experts` and `moe_dense_experts` gather nothing: see `neuron-port plan`.",
        source=ERROR_CODES,
    )


def _host(sizes: Sizes, work: Work, chosen: Candidate) -> Iterator[Finding]:
    """Whether the instance's own memory is smaller than the weights that pass through it."""
    host = instance(chosen.instance)
    if work.weight_bytes > host.memory_gib * GIB:
        yield Finding(
            severity="note",
            code="HOST",
            cause=f"{host.name} has {host.memory_gib:.0f} GiB of its own for {gib(work.weight_bytes)} of weights",
            cure="Weights must go to the device file by file; ours do (safetensors, mapped).",
            source="arithmetic",
        )
