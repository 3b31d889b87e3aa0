"""Small inputs and reference outputs that travel in the bundle, so that a chip can be checked without transformers."""

from __future__ import annotations

import numpy as np
import torch

from neuron_port.execution import to_numpy
from neuron_port.parity.model import OracleRun
from neuron_port.pipeline.sequence_proof import SequenceProof
from neuron_port.port.ranks import whole_spec
from neuron_port.types import GraphSpec


def golden_arrays(proof: SequenceProof | None) -> dict[str, dict[str, np.ndarray]]:
    """For each graph that a prompt fits: its inputs (without weights) and transformers' float32 logits.

    Arrays carry the graph's own names; absent states are zero. Decode starts from the caches that the prompts left: in
    a batch every row has a prompt of its own, the first ones again where there are more rows. Models whose prompts must
    fill their bucket have none: a prompt takes several steps, so that no single graph answers it.
    """
    if proof is None or set(proof.truths[0].sample) != {"input_ids"} or proof.graphs[0].spec.fills_bucket:
        return {}
    found = {}
    specs = [whole_spec(graph.spec) for graph in proof.graphs]  # each rank takes its part of the states
    for spec in specs[:-1]:
        fitting = [truth for truth in proof.truths if truth.length <= spec.sequence_length]
        if fitting:
            found[spec.id] = _prefill(spec, fitting[0])
    decode = specs[-1]
    return found | {decode.id: _decode(decode, proof)}


def _prefill(spec: GraphSpec, truth: OracleRun) -> dict[str, np.ndarray]:
    """One prompt, padded to its bucket; of several rows it takes the last."""
    ids = np.zeros((1, spec.sequence_length), np.int32)
    ids[:, : truth.length] = truth.prompt_ids
    given = {"input_ids": ids, "positions": np.array([truth.length - 1], np.int32)}
    for item in spec.inputs:
        if item.name == "slot":
            rows = next(state.spec.shape[0] for state in spec.inputs if state.role == "state")
            given["slot"] = np.array([rows - 1], np.int32)
    return given | {"logits": to_numpy(truth.logits[:1])}


def _decode(spec: GraphSpec, proof: SequenceProof) -> dict[str, np.ndarray]:
    """The first token after its prompt in every row."""
    numbers = [row % len(proof.truths) for row in range(spec.batch)]
    truths = [proof.truths[number] for number in numbers]
    runs = [(proof.baselines or proof.truths)[number] for number in numbers]
    return {
        "input_ids": np.array([[truth.tokens[0]] for truth in truths], np.int32),
        "positions": np.array([truth.length for truth in truths], np.int32),
        "logits": to_numpy(torch.stack([truth.logits[1] for truth in truths])),
        **_caches(spec, runs),
    }


def _caches(spec: GraphSpec, runs: list[OracleRun]) -> dict[str, np.ndarray]:
    """The decode graph's states after each row's prompt, in its own layout and dtype.

    transformers keeps of a layer with a window its last tokens alone; the slots before them are not looked at.
    """
    states = [item for item in spec.inputs if item.role == "state"]
    caches = [torch.zeros(item.spec.shape, dtype=getattr(torch, item.spec.dtype)) for item in states]
    for row, run in enumerate(runs):
        sides = [side for layer in run.prompt_caches for side in layer]
        for number, (cache, values) in enumerate(zip(caches, sides, strict=True)):
            first = run.length - values.shape[1]
            if number % 2 == 0:  # keys are kept transposed
                cache[row, :, :, first : run.length] = values.transpose(1, 2)
            else:
                cache[row, :, first : run.length] = values
    return {item.name: to_numpy(cache) for item, cache in zip(states, caches, strict=True)}
