"""Stage `quantization-cost`: the quantised model beside the unquantised one, prompt by prompt.

Sequences are the prompt and what the unquantised model goes on with: both models read them and are compared at every
place (models whose prompts are more than text: at every place of the continuation). Perplexity is that of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from neuron_port.parity.model import OracleRun, run_oracle
from neuron_port.parity.quantization_cost import (
    greedy_cost,
    logits_cost,
    outputs_cost,
    perplexity,
)
from neuron_port.pipeline import forward_runs
from neuron_port.pipeline.oracle import oracle
from neuron_port.pipeline.samples import fingerprints
from neuron_port.pipeline.workbench import Workbench, code_digest, oracle_name
from neuron_port.types import (
    DTYPE_BYTES,
    Checkpoint,
    GraphSpec,
    PromptCost,
    QuantizationCost,
    digest,
)

STAGE = "quantization-cost"
Progress = Callable[[str, int, int], None]


def quantization_cost(
    work: Workbench, specs: Sequence[GraphSpec], progress: Progress
) -> tuple[QuantizationCost, bool]:
    """What the weight format costs on every prompt, and whether all of it was stored already.

    specs: the graphs, which decide how models that answer in one pass are asked.
    """
    assert work.checkpoint.unquantized is not None, "the cost is that of a quantised checkpoint"
    original = Workbench(replace(work.options, weight_format=None), work.checkpoint.unquantized, work.store)
    measure = _forward_costs if work.family == "encoder" else _sequence_costs
    costs, reused = measure(original, work, specs, progress)
    return QuantizationCost(
        weight_format=str(work.checkpoint.weight_format),
        unit="sample" if work.family == "encoder" else "prompt",
        oracle=f"{oracle_name()}, float32",
        prompts=tuple(costs),
        **_sizes(work.checkpoint, work.options.dtype),
    ), reused


def _sizes(checkpoint: Checkpoint, dtype: str) -> dict[str, int]:
    """How many weights are quantised, of how many, and the bytes of all before and after; float ones in `dtype`."""
    assert checkpoint.unquantized is not None
    known = checkpoint.unquantized.weights
    matrices = [f"{layer}.weight" for layer in checkpoint.quantized]
    quantized_parameters = sum(known[name].size for name in matrices)
    parameters = sum(spec.size for spec in known.values())
    kept = (parameters - quantized_parameters) * DTYPE_BYTES[dtype]
    made = sum(spec.size_bytes for name, spec in checkpoint.weights.items() if name not in known)
    return {
        "layers": len(matrices),
        "quantized_parameters": quantized_parameters,
        "parameters": parameters,
        "bytes_before": parameters * DTYPE_BYTES[dtype],
        "bytes_after": kept + made,
    }


def _sequence_costs(
    original: Workbench, work: Workbench, specs: Sequence[GraphSpec], progress: Progress
) -> tuple[list[PromptCost], bool]:
    """One model after the other, so that one is in memory at a time; logits wait in the store."""
    numbers = range(len(work.options.prompts))
    references, all_reused = [], True
    for number in numbers:
        progress(f"prompt {number + 1}, without {work.options.weight_format}", number, len(numbers))
        truth, reused = oracle(original, work.sample(number), torch.float32)
        references.append(truth)
        all_reused &= reused
    read_logits: dict[str, list[torch.Tensor]] = {}
    for side, bench in (("reference", original), ("quantized", work)):
        read_logits[side] = []
        for number, truth in zip(numbers, references, strict=True):
            progress(f"prompt {number + 1}, {side} logits", number, len(numbers))
            logits, reused = _read(bench, truth)
            read_logits[side].append(logits)
            all_reused &= reused
        bench.forget_model()
    costs = []
    for number, truth in zip(numbers, references, strict=True):
        own, _ = oracle(work, work.sample(number), torch.float32)
        pair = read_logits["reference"][number], read_logits["quantized"][number]
        metrics = logits_cost(*pair) | greedy_cost(truth.tokens, own.tokens)
        if work.family == "causal" and truth.length > 1:
            metrics["perplexity"] = perplexity(pair[0], truth.prompt_ids)
            metrics["perplexity_quantized"] = perplexity(pair[1], truth.prompt_ids)
        costs.append(
            PromptCost(
                name=work.decode_text(truth.prompt_ids),
                places=pair[0].shape[0],
                metrics=metrics,
                reference_text=work.decode_text(truth.tokens),
                quantized_text=work.decode_text(own.tokens),
            )
        )
    return costs, all_reused


def _read(work: Workbench, truth: OracleRun) -> tuple[torch.Tensor, bool]:
    """Logits [L, V] of the prompt and its continuation; of models that read more than text, of the continuation."""
    key = digest(
        work.checkpoint.revision,
        fingerprints(truth.sample),
        list(truth.tokens),
        oracle_name(),
        code_digest("parity/model", "checkpoint", "pipeline/quantization_cost"),
    )

    def write(folder: Path) -> None:
        model = work.model(torch.float32)
        if work.family == "causal":
            ids = torch.tensor([[*truth.prompt_ids, *truth.tokens[:-1]]])
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0]
        else:
            logits = run_oracle(model, truth.sample, len(truth.tokens), forced=truth.tokens).logits
        save_file({"logits": logits.contiguous()}, folder / "logits.safetensors")

    folder, reused = work.store.build(STAGE, key, write)
    return load_file(folder / "logits.safetensors")["logits"], reused


def _forward_costs(
    original: Workbench, work: Workbench, specs: Sequence[GraphSpec], progress: Progress
) -> tuple[list[PromptCost], bool]:
    reference, first = forward_runs.all_runs(original, specs, progress)
    original.forget_model()
    quantized, second = forward_runs.all_runs(work, specs, progress)
    costs = []
    for number, prompt in enumerate(work.options.prompts):
        place = min(place for sample, place in reference[torch.float32] if sample == number)
        runs = [side[torch.float32][number, place] for side in (reference, quantized)]
        metrics = outputs_cost(*(run.outputs | run.embeddings for run in runs))
        known = work.takes_text and work.tokenizer is not None
        costs.append(
            PromptCost(name=prompt.text if known else f"sample {number + 1}", places=1, metrics=metrics)
        )
    return costs, first and second
