"""`convert --batch`: rows with prompts of their own, proven together, and told from rows that get in each other's way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from neuron_port.build.finishing.comparing import compare
from neuron_port.checkpoint import resolve
from neuron_port.pipeline.batch_proof import BatchProof, has_own_rows
from neuron_port.pipeline.forward_proof import _rows
from neuron_port.pipeline.golden import golden_arrays
from neuron_port.pipeline.graph_steps import XlaStep
from neuron_port.pipeline.kernel_proof import KernelProof
from neuron_port.pipeline.lowering import lower_all
from neuron_port.pipeline.options import complete_options
from neuron_port.pipeline.oracle import all_oracles
from neuron_port.pipeline.planning import make_plan
from neuron_port.pipeline.workbench import Workbench
from neuron_port.store import Store
from neuron_port.types import ParityReport
from tests.pipeline.command import convert, manifest, parity

ROWS = 3
Arrays = dict[str, np.ndarray[Any, Any]]
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def nothing(text: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def proof(_session_home: Path, small_llama: Path) -> BatchProof:
    """Proof 2 and 3 of the small Llama in float32, three rows, two buckets."""
    pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")
    options = complete_options(
        str(small_llama), dtype="float32", buckets=(8, 16), cache_length=32, batch=ROWS, new_tokens=4
    )
    store = Store()
    work = Workbench(options, resolve(options.model, store=store), store)
    plan, _ = make_plan(work, nothing)
    graphs, _ = lower_all(work, plan, torch.float32, nothing)
    truths, _ = all_oracles(work, nothing)
    return BatchProof(
        work=work, plan=plan, dtype=torch.float32, graphs=graphs, truths=truths[torch.float32], baselines=None
    )


class ChangedStep:
    """A graph whose inputs are not what they should be."""

    def __init__(self, step: XlaStep, change: Change) -> None:
        self.spec, self._step, self._change = step.spec, step, change

    def __call__(self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> Any:
        names = [item.name for item in self.spec.inputs if item.role == "input"]
        named = dict(zip(names, inputs, strict=True))
        return self._step([*(named | self._change(named)).values()], states)


def verdicts(proof: BatchProof, prefill: Change, decode: Change) -> dict[str, bool]:
    """Which output of which graph agrees with transformers, over all rows, when the steps are changed so."""
    steps = [
        ChangedStep(step, decode if step.spec.phase == "decode" else prefill) for step in proof.xla_steps
    ]
    return {
        f"{graph} {output}": all(case.passed for case in cases if output in case.name)
        for graph, cases in proof.run_on_xla(steps, nothing).items()
        for output in ("logits", "key caches", "value caches")
    }


def unchanged(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {}


def test_prompts_in_rows_of_their_own_agree_with_transformers(proof: BatchProof) -> None:
    """Every logit and every cache of every prompt in every row is transformers' own."""
    found = verdicts(proof, unchanged, unchanged)
    assert len(found) == 9
    assert all(found.values()), found


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        (lambda inputs: {"slot": (inputs["slot"] + 1) % ROWS}, unchanged),
        (lambda inputs: {"slot": torch.zeros_like(inputs["slot"])}, unchanged),
        (unchanged, lambda inputs: {"positions": inputs["positions"].max().expand(ROWS).contiguous()}),
        (unchanged, lambda inputs: {"positions": inputs["positions"].roll(1)}),
        (unchanged, lambda inputs: {"input_ids": inputs["input_ids"].roll(1, 0)}),
    ],
    ids=["the next slot", "one slot", "one position", "swapped positions", "swapped tokens"],
)
def test_rows_that_are_mixed_up_are_refused(prefill: Change, decode: Change, proof: BatchProof) -> None:
    """Slots, positions or tokens of another row fail the decode graph's proof."""
    found = verdicts(proof, prefill, decode)
    assert not found[f"decode_b{ROWS}_t32 logits"]


def test_the_proof_fills_rows_at_different_times_and_uses_one_again(proof: BatchProof) -> None:
    """Prompts of different lengths have rows of their own, and the second one's had another prompt before."""
    visits = proof.visits([(0, None), (1, None), (2, None)], 3)
    assert [visit.row for visit in visits] == [1, 2, 1, 0]
    assert [visit.prompt for visit in visits] == [0, 0, 1, 2]
    assert len({len(visit.ids) for visit in visits[1:]}) == 3
    assert [visit.steps for visit in visits] == [1, 3, 3, 3]


def agreement(proof: BatchProof, arrays: dict[str, Arrays]) -> dict[str, bool]:
    """As a device is checked: each graph on its golden inputs, absent states zero, its logits compared."""
    found = {}
    for step in proof.xla_steps:
        given = arrays[step.spec.id]
        wanted = [
            torch.from_numpy(given[item.name])
            if item.name in given
            else torch.zeros(item.spec.shape, dtype=getattr(torch, item.spec.dtype))
            for item in step.spec.inputs
            if item.role != "weight"
        ]
        count = sum(item.role == "input" for item in step.spec.inputs)
        (logits,), _ = step(wanted[:count], wanted[count:])
        limits = {"relative_error": 1e-5, "cosine_distance": 1e-9}
        found[step.spec.id] = compare(logits.numpy(), given["logits"], limits)["pass"]
    return found


def test_golden_arrays_of_a_batch_are_what_its_graphs_answer(proof: BatchProof) -> None:
    """Every bucket that holds a prompt has one, and decode has a prompt of its own in every row, with its caches."""
    arrays = golden_arrays(proof)
    decode = arrays[f"decode_b{ROWS}_t32"]
    assert decode["positions"].tolist() == [6, 10, 14]
    assert arrays["prefill_b1_s8"]["slot"].tolist() == [ROWS - 1]
    assert agreement(proof, arrays) == {"prefill_b1_s8": True, "prefill_b1_s16": True, "decode_b3_t32": True}


@pytest.mark.parametrize("name", ["input_ids", "positions", "key_cache.0", "value_cache.0"])
def test_golden_arrays_whose_rows_are_mixed_up_do_not_agree(name: str, proof: BatchProof) -> None:
    """With any one of the decode graph's arrays given to the rows in another order the logits differ."""
    arrays = golden_arrays(proof)
    decode = arrays[f"decode_b{ROWS}_t32"]
    decode[name] = np.roll(decode[name], 1, axis=0)
    assert not agreement(proof, arrays)[f"decode_b{ROWS}_t32"]


@pytest.fixture(scope="module")
def batched_bundle(_session_home: Path, small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama converted for four rows in bfloat16."""
    folder = tmp_path_factory.mktemp("batched") / "b"
    finished = convert(small_llama, folder, "--batch", "4")
    assert finished.code == 0, finished.stderr
    return folder


@pytest.mark.long
def test_a_batched_bundle_takes_one_prompt_and_decodes_all_rows(batched_bundle: Path) -> None:
    """The prefill graph has a slot and states of the whole batch, aliased; both dtypes' proofs hold in a batch."""
    assert [graph["id"] for graph in manifest(batched_bundle)["graphs"]] == [
        "prefill_b1_s16",
        "decode_b4_t32",
    ]
    interface = json.loads((batched_bundle / "graphs/prefill_b1_s16/io.json").read_text())
    shapes = {item["name"]: item["shape"] for item in interface["inputs"] if item["role"] != "weight"}
    assert shapes["input_ids"] == [1, 16]
    assert shapes["slot"] == shapes["positions"] == [1]
    assert shapes["key_cache.0"] == [4, 2, 8, 32]
    assert [item["alias_of"] for item in interface["outputs"]] == [None, "key_cache.0", "value_cache.0"]
    reports: list[ParityReport] = parity(batched_bundle)["model"]
    assert [report["subject"] for report in reports] == [  # type: ignore[index]
        "float32 greedy in a batch of 4",
        "bfloat16 teacher-forced in a batch of 4",
    ]
    golden = load_file(batched_bundle / "parity/golden/decode_b4_t32.safetensors")
    assert golden["positions"].tolist() == [6, 10, 14, 6]


@pytest.mark.long
def test_the_same_conversion_again_proves_nothing_anew(
    batched_bundle: Path, home: Path, small_llama: Path, tmp_path: Path
) -> None:
    """A batch that was proven is taken from the store as a whole."""
    shutil.rmtree(tmp_path / "b", ignore_errors=True)
    finished = convert(small_llama, tmp_path / "b", "--batch", "4")
    assert finished.code == 0, finished.stderr
    assert {
        "graphs = model, float32 (xla-cpu)",
        "ported model = model, float32 (simulator)",
    } <= finished.skipped()


def test_only_prefill_graphs_with_a_slot_have_rows_of_their_own(proof: BatchProof) -> None:
    """Graphs without a slot carry one sequence in all rows, and are proven so."""
    prefill = proof.graphs[0].spec
    assert has_own_rows([prefill])
    without = [item for item in prefill.inputs if item.name != "slot"]
    assert not has_own_rows([type(prefill)(**vars(prefill) | {"inputs": tuple(without)})])


def test_rows_that_get_no_prompt_on_the_simulator_are_named(proof: BatchProof) -> None:
    """With a prompt for every row nothing is left open; with fewer prompts than rows the report says so."""
    assert proof._rows_without_prompt() == []
    fewer = replace(proof, truths=proof.truths[:2])
    assert fewer._rows_without_prompt() == [
        f"the first 1 of {ROWS} rows, with kernels on the simulator: no prompt came to them"
    ]


def test_prefill_kernels_are_proven_on_the_models_own_inputs(proof: BatchProof) -> None:
    """A prompt is prefilled alone, whatever the batch: its layers' inputs are captured; those of many rows are not."""
    kernels, walks = KernelProof(proof.work, proof.plan), proof.work.walks(proof.work.dtype)
    first = {match.layers[0] for match in proof.plan.matches.matches if match.recipe is not None}
    prefill, decode = (
        [kernels._capture(walk, layer) is not None for layer in walk.graph.layers if layer.name in first]
        for walk in (walks[0], walks[-1])
    )
    assert prefill
    assert all(prefill)
    assert decode
    assert not any(decode)


def test_every_row_of_an_output_is_judged() -> None:
    """What answers one sample is found in each row, along every axis that counts rows."""
    assert [tuple(row.shape) for row in _rows(torch.zeros(3, 5), torch.zeros(1, 5))] == [(1, 5)] * 3
    assert len(_rows(torch.zeros(2, 2), torch.zeros(1, 1))) == 4
    assert len(_rows(torch.zeros(8, 3), torch.zeros(4, 3))) == 2
