"""Stage `oracle`: what transformers itself answers to each prompt, kept so that no proof computes it twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from neuron_port.parity.model import OracleRun, run_oracle
from neuron_port.pipeline.samples import Sample, fingerprints
from neuron_port.pipeline.workbench import WEIGHTS_CODE, Workbench, code_digest, oracle_name
from neuron_port.store import write_json
from neuron_port.types import digest
from neuron_port.walk.calls import dtype_name

STAGE = "oracle"
DECODE_STEPS = 16  # tokens appended to each prompt when outputs are compared; caches are kept after these


def oracle_key(work: Workbench, sample: Sample, dtype: torch.dtype) -> str:
    return digest(
        work.checkpoint.revision,
        fingerprints(sample),
        work.options.new_tokens,
        str(dtype),
        DECODE_STEPS,
        oracle_name(),
        code_digest("parity/model", *WEIGHTS_CODE),
    )


def oracle(
    work: Workbench, sample: Sample, dtype: torch.dtype, forced: Sequence[int] | None = None
) -> tuple[OracleRun, bool]:
    """The run in `dtype` (16 bit: along the float32 run's tokens, `forced`), and whether it was stored already."""
    key = oracle_key(work, sample, dtype)

    def write(folder: Path) -> None:
        run = run_oracle(work.model(dtype), sample, work.options.new_tokens, forced, DECODE_STEPS)
        tensors = {"logits": run.logits}
        for name, caches in (("prompt", run.prompt_caches), ("final", run.final_caches)):
            for layer, (keys, values) in enumerate(caches):
                tensors[f"{name}.{layer}.keys"] = keys.contiguous()
                tensors[f"{name}.{layer}.values"] = values.contiguous()
        save_file(tensors, folder / "run.safetensors")
        write_json(folder / "run.json", {"tokens": list(run.tokens)})

    folder, reused = work.store.build(STAGE, key, write)
    tensors = load_file(folder / "run.safetensors")
    layers = sum(1 for name in tensors if name.startswith("prompt.")) // 2
    return OracleRun(
        sample=sample,
        tokens=tuple(work.store.read_json(STAGE, key, "run.json")["tokens"]),
        logits=tensors["logits"],
        prompt_caches=[(tensors[f"prompt.{n}.keys"], tensors[f"prompt.{n}.values"]) for n in range(layers)],
        final_caches=[(tensors[f"final.{n}.keys"], tensors[f"final.{n}.values"]) for n in range(layers)],
    ), reused


def all_oracles(
    work: Workbench, progress: Callable[[str, int, int], None]
) -> tuple[dict[torch.dtype, list[OracleRun]], bool]:
    """Every prompt in every proof dtype, and whether all were stored already."""
    prompts = [work.sample(number) for number in range(len(work.options.prompts))]
    runs: dict[torch.dtype, list[OracleRun]] = {}
    all_reused = True
    for dtype in work.proof_dtypes:
        runs[dtype] = []
        for number, sample in enumerate(prompts):
            progress(f"prompt {number + 1}, {dtype_name(dtype)}", number, len(prompts))
            forced = runs[torch.float32][number].tokens if dtype is not torch.float32 else None
            run, reused = oracle(work, sample, dtype, forced)
            runs[dtype].append(run)
            all_reused &= reused
    return runs, all_reused
