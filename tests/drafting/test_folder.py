"""A draft's folder serves like a recipe, says what it is, and is not used once what was verified has changed."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from neuron_port.drafting.folder import adopt, draft_files, read_draft, task_from_draft, write_draft
from neuron_port.errors import RecipeError
from neuron_port.execution import simulated_operator
from neuron_port.grading.verdict import Verdict
from neuron_port.parity.kernel import verify_layer
from neuron_port.parity.recipe_cases import run_case
from neuron_port.registry import Registry, data_folder, load_recipe, stale_reason
from neuron_port.task import Source
from tests.drafting.layer_kernels import GAIN_BESIDE_ONE_NORM, GELU_MLP, LAYER_NORM, SCALED_EMBEDDING, kernel
from tests.drafting.tiny_models import drafted, few_recipes_and, provenance, walked

LAYER = "transformer.h.0.ln_1"
NAME = "gpt2_layer_norm"


def layer_norm():
    return drafted("gpt2")[LAYER].task


@pytest.fixture
def folder(tmp_path):
    """A folder of drafts with GPT-2's layer norm in it."""
    write_draft(tmp_path, layer_norm(), kernel(LAYER_NORM, NAME), provenance())
    return tmp_path


@pytest.mark.parametrize(
    ("model", "layer", "source", "named"),
    [
        ("gpt2", LAYER, LAYER_NORM, None),
        ("opt", "model.decoder.layers.0.final_layer_norm", LAYER_NORM, None),
        ("gemma2", "model.layers.0.input_layernorm", GAIN_BESIDE_ONE_NORM, None),
        ("gemma2", "model.embed_tokens", SCALED_EMBEDDING, None),
        ("gemma3", "model.layers.0.self_attn.q_norm", GAIN_BESIDE_ONE_NORM, None),
        ("phi", "model.layers.0.mlp", GELU_MLP, ("model.layers.0.mlp",)),
    ],
)
def test_the_whole_way(tmp_path, model, layer, source, named):
    """Layer, task, kernel, folder, registry: the matcher takes the layer to the draft and its proof passes."""
    made = drafted(model, named)[layer].task
    write_draft(tmp_path, made, kernel(source, made.task.name), provenance())
    registry = few_recipes_and(tmp_path)
    tiny = walked(model, registry)
    for walk in tiny.walks:
        decided = tiny.plan.by_layer(walk.graph)[layer]
        assert (decided.decision, decided.recipe) == ("draft", made.task.name)
        found = registry[made.task.name]
        assert found.kernel.origin == "draft"
        (first,) = [item for item in walk.graph.layers if item.name == layer]
        generator = torch.Generator().manual_seed(1)
        weights = {
            name: torch.randn(spec.shape, generator=generator) for name, spec in first.parameters.items()
        }
        report = verify_layer(
            first,
            walk.calls[first.signature],
            decided,
            found,
            read_weight=lambda name, first, weights=weights: weights[name.removeprefix(f"{layer}.")],
            target="trn2",
            dtypes=(torch.float32, torch.bfloat16),
            oracle="transformers",
        )
        assert report.passed, [case for case in report.cases if not case.passed][:1]


def test_every_case_of_the_generated_recipe_passes_and_wrong_answers_do_not(folder):
    """A draft's folder stands the test that every recipe folder stands."""
    found = Registry(folder)[NAME]
    operator = simulated_operator(found, "trn2")
    for case in found.recipe.cases:
        for dtype in (torch.float32, torch.bfloat16):
            comparisons, refused = run_case(found.recipe, found.reference, operator, case, dtype)
            assert all(comparison.passed for comparison in comparisons), (case.name, dtype)
            assert refused
            assert not any(comparison.passed for comparison in refused.values())


def test_equal_drafts_are_equal_bytes(folder):
    """The same task, kernel and provenance give the same files; writing again replaces the draft."""
    files = draft_files(layer_norm(), kernel(LAYER_NORM, NAME), provenance())
    assert {path.name for path in (folder / NAME).iterdir()} == set(files)
    for name, text in files.items():
        assert (folder / NAME / name).read_text() == text
    write_draft(folder, layer_norm(), kernel(LAYER_NORM, NAME), provenance(model="another"))
    assert read_draft(folder / NAME)["model"] == "another"
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_the_page_says_what_is_known_and_what_is_not(folder):
    """The README has model, date, cost, tier, hidden seed and source, and that no device has confirmed it."""
    page = (folder / NAME / "README.md").read_text()
    for fact in ("scripted", "2026-09-01", "$0.2500, 3 calls, 1200 tokens", "| hidden seed | 7 |", "BSD-3-Clause",
                 "No Neuron device has run this kernel", "**Draft.**", "T from 1 to 300"):  # fmt: skip
        assert fact in page, fact
    header = (folder / NAME / "kernel.py").read_text().splitlines()
    assert header[0].startswith("# Drafted by scripted on 2026-09-01")
    ast.parse("\n".join(header))


def test_a_kernel_that_was_not_admitted_gets_no_folder(tmp_path):
    """A failed verdict is refused with its stage and message, and nothing is written."""
    verdict = Verdict(passed=False, stage="public", message="worst_slice is 0.5")
    with pytest.raises(RecipeError, match=r"came to stage `public`: worst_slice is 0\.5"):
        write_draft(tmp_path, layer_norm(), "import nki\n", provenance(verdict=verdict))
    assert not list(tmp_path.iterdir())


def test_a_recipe_is_never_replaced_by_a_draft(folder):
    """A folder of the same name without draft.json is somebody's recipe: it stays."""
    (folder / NAME / "draft.json").unlink()
    with pytest.raises(RecipeError, match="no draft at"):
        write_draft(folder, layer_norm(), "import nki\n", provenance())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nki_version": "0.4"}, "verified under NKI 0.4"),
        ({"verifier_version": "0"}, "version 0 of the verifier"),
    ],
)
def test_a_stale_draft_is_named_and_not_used(folder, change, reason):
    """An older dialect or verifier takes a draft out of service, by name, with the cure; recipes go on."""
    path = folder / NAME / "draft.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    registry = Registry(data_folder("recipes"), folder)
    assert NAME not in registry
    assert reason in registry.stale[NAME]
    assert "linear" in registry
    with pytest.raises(RecipeError, match=reason) as raised:
        registry[NAME]
    assert "Verify it again" in str(raised.value.hint)
    assert all(found.name != NAME for found in registry.for_operation("module"))
    assert stale_reason(load_recipe(folder / NAME)) is not None


@pytest.mark.parametrize("file", ["kernel.py", "reference.py", "recipe.py"])
def test_a_draft_that_was_changed_is_not_used(folder, file):
    """One comment more in what was verified, and the draft is out of service; unchanged, it is in."""
    assert NAME in Registry(folder)
    path = folder / NAME / file
    path.write_text(path.read_text() + "# changed\n")
    assert f"{file} is not the one that was verified" in Registry(folder).stale[NAME]


def test_a_damaged_record_stops_with_its_place(folder):
    """A draft.json that cannot be read is an error with its path, never a silent recipe."""
    (folder / NAME / "draft.json").write_text("{")
    with pytest.raises(RecipeError, match=r"draft\.json is damaged"):
        Registry(folder)


def test_adoption_makes_a_recipe(folder, tmp_path):
    """The adopted folder is a recipe: no draft.json, origin recipe, provenance in its page, and a list to review."""
    adopted = adopt(folder / NAME, tmp_path / "recipes")
    registry = Registry(tmp_path / "recipes")
    assert registry[NAME].kernel.origin == "recipe"
    assert not (adopted.folder / "draft.json").exists()
    page = (adopted.folder / "README.md").read_text()
    assert "**Adopted draft.**" in page
    assert "scripted" in page
    assert any("read every line" in line for line in adopted.look_at)
    assert (folder / NAME / "draft.json").exists()


def test_adoption_refuses_what_is_not_right(folder, tmp_path):
    """A tampered kernel, a verdict short of admission, and a name that exists are refused by name."""
    adopt(folder / NAME, tmp_path / "recipes")
    with pytest.raises(RecipeError, match="There is a recipe at"):
        adopt(folder / NAME, tmp_path / "recipes")
    with pytest.raises(RecipeError, match="No draft at"):
        adopt(tmp_path / "recipes" / NAME, tmp_path / "more")
    provisional = Verdict(passed=True, stage="hidden")
    write_draft(folder, layer_norm(), kernel(LAYER_NORM, NAME), provenance(verdict=provisional))
    with pytest.raises(RecipeError, match="`hidden`, not `admitted`"):
        adopt(folder / NAME, tmp_path / "more")
    path = folder / NAME / "kernel.py"
    path.write_text(path.read_text().replace("1e-5", "1e-4"))
    with pytest.raises(RecipeError, match=r"kernel\.py is not the one"):
        adopt(folder / NAME, tmp_path / "more")


@pytest.mark.parametrize(("license_name", "copied"), [("MIT", True), ("GPL-3.0-only", False)])
def test_gpu_sources_travel_only_where_they_may(folder, tmp_path, license_name, copied):
    """A permissive source is copied with origin and licence; a refused one is named, and a reviewer is warned."""
    source = Source(
        language="triton",
        text="import triton\n",
        origin="a/b.py",
        license=license_name,
        refusal_overridden=not copied,
    )
    made = layer_norm()
    changed = replace(made, task=replace(made.task, sources=(source,)))
    place = write_draft(folder, changed, kernel(LAYER_NORM, NAME), provenance())
    text = (place / "source.py").read_text()
    assert ("import triton" in text) is copied
    assert "a/b.py" in text
    assert source.license in text
    (record,) = read_draft(place)["sources"]
    assert record["refusal_overridden"] is source.refusal_overridden
    warned = any("Do not contribute" in line for line in adopt(place, tmp_path / "recipes").look_at)
    assert warned is not copied


def test_a_draft_tells_its_task_again(folder):
    """What a folder holds is enough to verify the kernel anew."""
    task = task_from_draft(load_recipe(folder / NAME))
    assert task.layout == layer_norm().task.layout
    assert task.schema == layer_norm().task.schema
    assert task.cases == layer_norm().task.cases


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is damaged"), ("[]", "has no `format`"), ('{"format": 1}', "has no `sha256`")],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str, words: str) -> None:
    """A draft.json that nobody of ours wrote ends in one sentence with its path and the cure."""
    (tmp_path / "draft.json").write_text(text)
    with pytest.raises(RecipeError, match=words) as caught:
        read_draft(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint
