"""Small inputs and reference outputs that travel in the bundle, so that a chip can be checked without transformers."""

from __future__ import annotations

import numpy as np
import torch

from neuron_port.execution import to_numpy
from neuron_port.pipeline.sequence_proof import SequenceProof


def golden_arrays(proof: SequenceProof | None) -> dict[str, dict[str, np.ndarray]]:
    """For each graph that a prompt reached: its inputs (without weights) and what it must answer.

    Arrays are named `input.<graph input>`, `reference.logits` (transformers in float32) and `framework.logits`
    (transformers in the dtype that ships). Decode starts from the caches that the prompt left.
    """
    if proof is None:
        return {}
    truth = proof.truths[0]
    baseline = (proof.baselines or proof.truths)[0]
    prefill = next(g.spec for g in proof.graphs[:-1] if g.spec.sequence_length >= len(truth.prompt_ids))
    decode = proof.graphs[-1].spec
    count = len(truth.prompt_ids)
    ids = np.zeros((prefill.batch, prefill.sequence_length), np.int32)
    ids[:, :count] = truth.prompt_ids
    golden = {
        prefill.id: {
            "input.input_ids": ids,
            "input.positions": np.full((prefill.batch,), count - 1, np.int32),
            "reference.logits": to_numpy(truth.logits[0]),
            "framework.logits": to_numpy(baseline.logits[0]),
        },
        decode.id: {
            "input.input_ids": np.full((decode.batch, 1), truth.tokens[0], np.int32),
            "input.positions": np.full((decode.batch,), count, np.int32),
            "reference.logits": to_numpy(truth.logits[1]),
            "framework.logits": to_numpy(baseline.logits[1]),
        },
    }
    states = [item for item in decode.inputs if item.role == "state"]
    flat = [side for layer in baseline.prompt_caches for side in layer]
    for number, (item, values) in enumerate(zip(states, flat, strict=True)):
        cache = torch.zeros(item.spec.shape, dtype=getattr(torch, item.spec.dtype))
        if number % 2 == 0:
            cache[:, :, :, :count] = values.transpose(1, 2)  # keys are kept transposed
        else:
            cache[:, :, :count] = values
        golden[decode.id][f"input.{item.name}"] = to_numpy(cache)
    return golden
