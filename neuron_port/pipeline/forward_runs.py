"""What transformers answers to every sample, as each graph takes it: the reference of models that answer in one pass.

A shorter text is padded and masked as in production, for transformers' own forward too: a model that looks at its last
place (SigLIP) sees the padding there. An embedding that the checkpoint pools for itself is that of the text alone,
without padding: whoever asks for it must not notice the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from neuron_port.errors import UsageError
from neuron_port.parity.embeddings import SENTENCE_EMBEDDING, embeddings_of
from neuron_port.pipeline.samples import Sample, fingerprints
from neuron_port.pipeline.workbench import WEIGHTS_CODE, Workbench, code_digest, oracle_name
from neuron_port.port.generate import padded
from neuron_port.types import GraphSpec, digest
from neuron_port.walk.families.encoder import ForwardStep
from neuron_port.walk.pooling import pooling_of

STAGE = "oracle"
Progress = Callable[[str, int, int], None]
_ALONE = "alone."  # before the name of what the model answers to a sample without padding


@dataclass(frozen=True, kw_only=True)
class ForwardRun:
    """What transformers answers to one sample as one graph takes it: inputs and every output by name, one row each.

    `embeddings` are the outputs that are compared by direction, of which a pooled one is the unpadded sample's.
    """

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    embeddings: dict[str, torch.Tensor]


Runs = dict[tuple[int, int], ForwardRun]  # by numbers of sample and graph


def all_runs(
    work: Workbench, specs: Sequence[GraphSpec], progress: Progress
) -> tuple[dict[torch.dtype, Runs], bool]:
    """Every sample in every graph that holds it, in every proof dtype; and whether all were stored already.

    Raises:
        UsageError: no graph holds a sample.
    """
    runs: dict[torch.dtype, Runs] = {}
    all_reused = True
    for dtype in work.proof_dtypes:
        runs[dtype] = {}
        for number in range(len(work.options.prompts)):
            progress(f"sample {number + 1}, {dtype}", number, len(work.options.prompts))
            sample = work.sample(number)
            places = [place for place, spec in enumerate(specs) if _holds(spec, sample)]
            if not places:
                raise UsageError(
                    f"Sample {number + 1} is longer than the largest graph",
                    hint="Convert with larger --buckets.",
                )
            for place in places:
                runs[dtype][number, place], reused = _run(work, sample, specs[place], dtype)
                all_reused &= reused
    return runs, all_reused


def _holds(spec: GraphSpec, sample: Sample) -> bool:
    wanted = {item.name: item.spec.shape for item in spec.inputs if item.role == "input"}
    return all(
        all(own <= size for own, size in zip(sample[name].shape[1:], shape[1:], strict=True))
        for name, shape in wanted.items()
    )


def _run(work: Workbench, sample: Sample, spec: GraphSpec, dtype: torch.dtype) -> tuple[ForwardRun, bool]:
    inputs = {
        item.name: padded(sample[item.name], (1, *item.spec.shape[1:]), sample[item.name].dtype, 1)
        for item in spec.inputs
        if item.role == "input"
    }
    key = digest(
        work.checkpoint.revision,
        fingerprints(inputs),
        fingerprints(sample),
        str(dtype),
        oracle_name(),
        code_digest("walk/families", "walk/pooling", *WEIGHTS_CODE),
    )

    def write(folder: Path) -> None:
        model = work.model(dtype)
        step = ForwardStep(model, tuple(inputs), pooling_of(model))
        with torch.no_grad():
            outputs = step.answer({name: _cast(tensor, dtype) for name, tensor in inputs.items()})
            if SENTENCE_EMBEDDING in outputs:
                alone = step.answer({name: _cast(sample[name], dtype) for name in inputs})
                outputs[_ALONE + SENTENCE_EMBEDDING] = alone[SENTENCE_EMBEDDING]
        whole = {
            name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in outputs.items()
        }
        save_file(whole, folder / "run.safetensors")

    folder, reused = work.store.build(STAGE, key, write)
    stored = load_file(folder / "run.safetensors")
    outputs = {name: tensor for name, tensor in stored.items() if not name.startswith(_ALONE)}
    embeddings = {name: stored.get(_ALONE + name, stored[name]) for name in embeddings_of(outputs)}
    return ForwardRun(inputs=inputs, outputs=outputs, embeddings=embeddings), reused


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
