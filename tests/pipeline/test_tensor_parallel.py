"""`convert --tensor-parallel`: all ranks run and agree with transformers and with one rank; wrong parts are found."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from neuron_port.checkpoint import quantized, resolve
from neuron_port.lower import read_module
from neuron_port.pipeline.batch_proof import BatchProof
from neuron_port.pipeline.degree import with_degree
from neuron_port.pipeline.lowering import lower_all
from neuron_port.pipeline.options import complete_options
from neuron_port.pipeline.oracle import all_oracles
from neuron_port.pipeline.parallel_proof import OneRankProof
from neuron_port.pipeline.planning import make_plan
from neuron_port.pipeline.sequence_proof import SequenceProof
from neuron_port.pipeline.workbench import Workbench
from neuron_port.store import Store
from neuron_port.types import CaseResult, Checkpoint, Shard, TensorSpec
from neuron_port.walk.sharding import Sharding
from tests.pipeline.command import convert, failed, manifest, parity

RANKS = 2
RANK_FILE = "tp{}_sharded_checkpoint.safetensors"
DOWN = "model.layers.0.mlp.down_proj"
VALUES = "model.layers.0.self_attn.v_proj.weight"


def nothing(*_: Any) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def ranked_bundle(_session_home: Path, small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama (4 heads, 2 key/value heads) converted for two ranks in float32."""
    pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")
    folder = tmp_path_factory.mktemp("ranked") / "bundle"
    finished = convert(small_llama, folder, "--dtype", "float32", "--tp", RANKS)
    assert finished.code == 0, finished.stderr
    assert f"{RANKS} tensor-parallel ranks" in finished.stdout
    return folder


def interface(bundle: Path, graph: str) -> dict[str, dict[str, Any]]:
    found = json.loads((bundle / "graphs" / graph / "io.json").read_text())
    return {item["name"]: item for item in found["inputs"]}


def test_every_output_agrees_with_one_rank(ranked_bundle: Path) -> None:
    """Logits and both caches of both graphs, all ranks together beside one rank's graphs and beside transformers."""
    report = parity(ranked_bundle)
    for graph in ("prefill_b1_s16", "decode_b1_t32"):
        cases = next(item for item in report["graphs"] if item["subject"] == graph)["cases"]
        for output in ("logits", "key caches", "value caches"):
            for beside in (output, f"{output} beside one rank"):
                found = [case for case in cases if case["name"].endswith(f" · {beside}")]
                assert len(found) == 3, beside
                assert all(case["passed"] and case["metrics"]["relative_max"] < 1e-5 for case in found)


def test_the_manifest_says_how_many_ranks(ranked_bundle: Path) -> None:
    """The degree, and a file of weights for each rank in place of the checkpoint's own."""
    written = manifest(ranked_bundle)
    assert written["target"]["tp"] == RANKS
    names = {entry["name"] for entry in written["weights"]["files"]}
    assert {RANK_FILE.format(rank) for rank in range(RANKS)} <= names
    assert not list((ranked_bundle / "weights").glob("model*.safetensors"))


def test_a_ranks_file_has_its_part_of_every_weight(ranked_bundle: Path, small_llama: Path) -> None:
    """Row-sharded weights are cut in columns, column-sharded ones in rows; norms and the embedding are whole."""
    whole = load_file(small_llama / "model.safetensors")
    parts = [load_file(ranked_bundle / "weights" / RANK_FILE.format(rank)) for rank in range(RANKS)]
    name = f"{DOWN}.weight"
    np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], 1), whole[name])
    np.testing.assert_array_equal(np.concatenate([part[VALUES] for part in parts], 0), whole[VALUES])
    for part in parts:
        np.testing.assert_array_equal(part["model.embed_tokens.weight"], whole["model.embed_tokens.weight"])
        np.testing.assert_array_equal(part["model.norm.weight"], whole["model.norm.weight"])
    head = np.concatenate([part["lm_head.weight"] for part in parts])
    np.testing.assert_array_equal(head, whole["model.embed_tokens.weight"])  # tied, and cut all the same


@pytest.mark.parametrize("graph", ["prefill_b1_s16", "decode_b1_t32"])
@pytest.mark.parametrize("file", ["graph.hlo.pb", "graph.ref.hlo.pb"])
def test_a_sum_for_each_row_sharded_layer(ranked_bundle: Path, graph: str, file: str) -> None:
    """One layer: attention and MLP are added up, the head is gathered, in one group of both ranks."""
    module = read_module((ranked_bundle / "graphs" / graph / file).read_bytes())
    assert (module.opcodes()["all-reduce"], module.opcodes()["all-gather"]) == (2, 1)
    groups = [item.attributes["replica_groups"] for _, item in module.instructions() if "all-" in item.opcode]
    assert groups == [[{"replica_ids": [0, 1]}]] * 3


def test_the_interface_says_which_part_a_rank_has(ranked_bundle: Path) -> None:
    """Weights and states are described as parts of the whole; what is whole has no part."""
    found = interface(ranked_bundle, "decode_b1_t32")
    assert found[f"{DOWN}.weight"]["shard"] == {"ranks": 2, "axis": 1, "blocks": 1, "units": 2}
    assert found["key_cache.0"]["shard"]["axis"] == 1
    assert found["key_cache.0"]["shape"][1] == 1  # of two key/value heads
    assert found["model.norm.weight"]["shard"] is None


def proof_of(model: Path, sharding: Sharding | None = None, **changed: Any) -> SequenceProof:
    """Proof 2 of the small Llama on two ranks; with `sharding`, cut differently from what its plan says."""
    asked: dict[str, Any] = {"buckets": (16,), "cache_length": 32, "new_tokens": 4, "tensor_parallel": RANKS}
    options = complete_options(str(model), dtype="float32", **(asked | changed))
    store = Store()
    work = Workbench(options, resolve(options.model, store=store), store)
    plan, _ = make_plan(work, nothing)
    if sharding is not None:
        work.__dict__["sharding"] = sharding
        plan = replace(plan, key=f"{plan.key} cut as {sharding}")
    graphs, _ = lower_all(work, plan, torch.float32, nothing)
    truths, _ = all_oracles(work, nothing)
    proof = BatchProof if options.batch > 1 else SequenceProof
    return proof(
        work=work, plan=plan, dtype=torch.float32, graphs=graphs, truths=truths[torch.float32], baselines=None
    )


def prefill_cases(proof: SequenceProof) -> dict[str, list[CaseResult]]:
    """The verdicts on each output of the prefill graph."""
    found: dict[str, list[CaseResult]] = {}
    for case in proof.graph_reports(nothing)[0][0].cases:
        found.setdefault(case.name.split(" · ")[1], []).append(case)
    return found


def test_a_missing_sum_is_found_by_running_the_ranks(ranked_bundle: Path, small_llama: Path) -> None:
    """Without the sum behind the MLP every rank goes on with its own part: the logits tell, the caches before it not."""
    made = proof_of(small_llama).work.sharding
    assert made is not None
    fewer = replace(made, sums={name: place for name, place in made.sums.items() if name != DOWN})
    prefill = prefill_cases(proof_of(small_llama, fewer))
    assert not any(case.passed for case in prefill["logits"])
    assert all(case.passed for case in (*prefill["key caches"], *prefill["value caches"]))


def test_a_wrong_slice_fails_where_it_shows(ranked_bundle: Path, small_llama: Path) -> None:
    """Every other quarter of the value projection has the right shape: the value caches and the logits tell."""
    made = proof_of(small_llama).work.sharding
    assert made is not None
    wrong = {**made.tensors, VALUES: Shard(ranks=2, axis=0, blocks=2, units=2)}
    prefill = prefill_cases(proof_of(small_llama, replace(made, tensors=wrong)))
    assert not any(case.passed for case in (*prefill["value caches"], *prefill["logits"]))
    assert all(case.passed for case in prefill["key caches"])


def beside_one_rank(proof: SequenceProof) -> dict[str, list[CaseResult]]:
    """The cases of every graph beside one rank's."""
    return {report.subject: list(report.cases) for report in OneRankProof(proof).reports(nothing)[0]}


def test_four_ranks_agree_with_one_in_every_bucket(home: Path, small_llama: Path) -> None:
    """Two ranks share each of two key/value heads; a bucket that no prompt needs is compared as the others are."""
    found = beside_one_rank(proof_of(small_llama, tensor_parallel=4, buckets=(16, 24)))
    assert set(found) == {"prefill_b1_s16", "prefill_b1_s24", "decode_b1_t32"}
    for cases in found.values():
        assert {case.name.partition(" · ")[2] for case in cases} == {
            "logits beside one rank",
            "key caches beside one rank",
            "value caches beside one rank",
        }
        assert all(case.passed and case.metrics["relative_max"] < 1e-5 for case in cases)


def test_a_wrong_slice_is_not_what_one_rank_answers(home: Path, small_llama: Path) -> None:
    """Value projections that are cut in the wrong places give other logits and value caches than one rank."""
    made = proof_of(small_llama).work.sharding
    assert made is not None
    wrong = {**made.tensors, VALUES: Shard(ranks=2, axis=0, blocks=2, units=2)}
    for cases in beside_one_rank(proof_of(small_llama, replace(made, tensors=wrong))).values():
        assert {case.name.partition(" · ")[2] for case in cases if case.passed} <= {
            "key caches beside one rank"
        }


@pytest.mark.parametrize("is_right", [True, False], ids=["as they are", "another token in the last row"])
def test_every_row_of_a_batch_is_compared_with_one_rank(
    home: Path, small_llama: Path, is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows have prompts of their own on both sides, so that a difference in one row alone is found."""
    proof = proof_of(small_llama, batch=3)
    assert isinstance(proof, BatchProof)
    *prefills, decode = proof.xla_steps

    def changed(inputs: Any, states: Any) -> Any:
        ids, *others = inputs
        ids = ids.clone()
        ids[-1] += 1
        return decode([ids, *others], states)

    if not is_right:
        changed.spec = decode.spec  # type: ignore[attr-defined]
        monkeypatch.setitem(proof.__dict__, "xla_steps", [*prefills, changed])
    cases = OneRankProof(proof)._compare(partial(proof.recordings, progress=nothing))["decode_b3_t32"]
    assert all(case.passed for case in cases) == is_right


@pytest.mark.parametrize(
    ("ranks", "sentence"),
    [(3, "has 4 attention heads, which 3 ranks cannot share evenly"), (0, "at least one rank: `0`")],
)
def test_degrees_that_cannot_be_are_refused(
    home: Path, small_llama: Path, tmp_path: Path, ranks: int, sentence: str
) -> None:
    """Before any work, in one sentence, with exit code 2."""
    finished = convert(small_llama, tmp_path / "bundle", "--tensor-parallel", ranks)
    assert sentence in failed(finished, 2) + finished.stderr


def test_a_presets_ranks_are_taken_only_where_one_core_is_too_small(home: Path, small_llama: Path) -> None:
    """A model that fits stays on one core and the preset's number is mentioned; one that does not fit takes it."""
    said: list[str] = []
    store = Store()
    options = replace(complete_options(str(small_llama), new_tokens=2), preset_ranks=2)
    checkpoint = resolve(options.model, store=store)
    assert with_degree(options, checkpoint, store, said.append).tensor_parallel == 1
    assert said.pop() == "converted for one core; its preset proposes 2: --tensor-parallel 2"
    large = replace(checkpoint, weights={"w": TensorSpec(shape=(1 << 34,), dtype="bfloat16")})
    assert with_degree(options, large, store, said.append).tensor_parallel == 2
    assert said.pop().startswith("its weights are 32 GiB, a core of trn2 has 24: 2 ranks")
    uneven = replace(options, preset_ranks=3)
    assert with_degree(uneven, large, store, said.append).tensor_parallel == 1
    assert "4 attention heads, which 3 ranks cannot share" in said.pop()


def test_quantised_weights_are_not_cut_by_a_presets_ranks(home: Path, small_llama: Path) -> None:
    """Where one core is too small for them the model stays on one core all the same, and that is said."""
    said: list[str] = []
    store = Store()
    options = replace(complete_options(str(small_llama), new_tokens=2), preset_ranks=2, weight_format="int8")
    checkpoint = quantized(resolve(options.model, store=store), "int8")
    name = f"{DOWN}.weight_int8"

    def with_bytes(count: int) -> Checkpoint:
        return replace(checkpoint, weights={name: TensorSpec(shape=(count,), dtype="int8")})

    assert with_degree(options, with_bytes(20 << 30), store, said.append).tensor_parallel == 1
    assert said.pop() == "converted for one core; its preset proposes 2: --tensor-parallel 2"
    assert with_degree(options, with_bytes(40 << 30), store, said.append).tensor_parallel == 1
    assert said.pop().endswith("still it is converted for one: int8 weights are not cut yet")
