"""Small inputs and reference outputs that travel in the bundle, so that a chip can be checked without transformers."""

from __future__ import annotations

import numpy as np
import torch

from neuron_port.execution import to_numpy
from neuron_port.pipeline.sequence_proof import SequenceProof
from neuron_port.types import GraphSpec


def golden_arrays(proof: SequenceProof | None) -> dict[str, dict[str, np.ndarray]]:
    """For each graph that the first prompt reached: its inputs (without weights) and transformers' float32 logits.

    Arrays carry the graph's own names. Decode starts from the caches that the prompt left; absent states are zero.
    """
    if proof is None:
        return {}
    truth = proof.truths[0]
    if set(truth.sample) != {"input_ids"}:
        return {}
    count = len(truth.prompt_ids)
    fitting = [g.spec for g in proof.graphs[:-1] if g.spec.sequence_length >= count]
    if not fitting or fitting[0].fills_bucket or any("state" in item.name for item in fitting[0].inputs):
        return {}  # the prompt takes several steps: no single graph answers it
    prefill = fitting[0]
    decode = proof.graphs[-1].spec
    ids = np.zeros((prefill.batch, prefill.sequence_length), np.int32)
    ids[:, :count] = truth.prompt_ids
    after_prompt = {
        "input_ids": np.full((decode.batch, 1), truth.tokens[0], np.int32),
        "positions": np.full((decode.batch,), count, np.int32),
        "logits": _for_each_row(truth.logits[1], decode.batch),
    }
    return {
        prefill.id: {
            "input_ids": ids,
            "positions": np.full((prefill.batch,), count - 1, np.int32),
            "logits": _for_each_row(truth.logits[0], prefill.batch),
        },
        decode.id: after_prompt | _caches(proof, decode, count),
    }


def _for_each_row(logits_V: torch.Tensor, batch: int) -> np.ndarray:
    """[V] -> [B, V]: every row of the batch carries the same sequence."""
    return to_numpy(logits_V[None].expand(batch, -1))


def _caches(proof: SequenceProof, decode: GraphSpec, count: int) -> dict[str, np.ndarray]:
    """The decode graph's states after the prompt, in its own layout and dtype."""
    run = (proof.baselines or proof.truths)[0]
    states = [item for item in decode.inputs if item.role == "state"]
    sides = [side for layer in run.prompt_caches for side in layer]
    caches = {}
    for number, (item, values) in enumerate(zip(states, sides, strict=True)):
        cache = torch.zeros(item.spec.shape, dtype=getattr(torch, item.spec.dtype))
        if number % 2 == 0:
            cache[:, :, :, :count] = values.transpose(1, 2)  # keys are kept transposed
        else:
            cache[:, :, :count] = values
        caches[item.name] = to_numpy(cache)
    return caches
