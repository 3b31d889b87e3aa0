"""Models that see become graphs whose answers are transformers' own: pictures, places and masks of images included."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from neuron_port.checkpoint import build_skeleton
from neuron_port.errors import CheckpointError, UsageError
from neuron_port.parity.model import check_outputs, run_oracle
from neuron_port.pipeline.samples import picture_values
from neuron_port.port.export import export_graph
from neuron_port.port.generate import Session
from neuron_port.port.run import GraphRunner, WeightBank
from neuron_port.registry import Registry
from neuron_port.types import CaseResult
from neuron_port.walk.families import family_of, programs_of
from neuron_port.walk.families.vision_language import picture_of, prompt_with_picture
from neuron_port.walk.known_values import KnownValues
from neuron_port.walk.program import GraphShapes
from neuron_port.walk.walker import walk

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))  # where the zoo's package stands

import zoo  # noqa: E402
from zoo.entry import IMAGE, IMAGE_TOKEN, Entry, text_settings  # noqa: E402

BUCKET, SLOTS = 32, 40
TEXTS = {"model_type": "llama", **text_settings()}


def _entry(model_type: str, architecture: str, **settings: Any) -> Entry:
    return Entry(
        name=model_type,
        family="vision_language",
        model_type=model_type,
        architecture=architecture,
        settings=settings,
        inputs=dict,
    )


ENTRIES = {name: entry for name, entry in zoo.ZOO.items() if entry.family == "vision_language"} | {
    "smolvlm": _entry(
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        text_config=TEXTS,
        vision_config=dict(IMAGE),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    ),
    "internvl": _entry(
        "internvl",
        "InternVLForConditionalGeneration",
        text_config=TEXTS | {"model_type": "qwen2"},
        vision_config={**IMAGE, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=IMAGE_TOKEN,
        downsample_ratio=0.5,
    ),
    "mistral3": _entry(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        text_config=TEXTS | {"model_type": "mistral"},
        vision_config={"model_type": "pixtral", **IMAGE},
        image_token_index=IMAGE_TOKEN,
        image_token_id=IMAGE_TOKEN,
        spatial_merge_size=2,
    ),
}


@cache
def _model(name: str) -> PreTrainedModel:
    return zoo.build(ENTRIES[name])


def _skeleton(name: str) -> PreTrainedModel:
    return build_skeleton(ENTRIES[name].config(), torch.float32)


def _sample(skeleton: PreTrainedModel) -> dict[str, torch.Tensor]:
    picture = picture_of(skeleton, BUCKET)
    return prompt_with_picture(skeleton, [11, 23, 42, 17], picture) | {
        "pixel_values": picture_values(picture.shape, 0)
    }


@cache
def _session(name: str, batch: int = 1) -> Session:
    """The model's graphs, exported without data, with its weights."""
    skeleton, state = _skeleton(name), _model(name).state_dict()
    shapes = GraphShapes(batch=batch, buckets=(BUCKET,), cache_length=SLOTS)
    bank = WeightBank(lambda tensor, dtype: state[tensor].to(dtype))
    prefill, decode = (
        GraphRunner(
            export_graph(
                skeleton,
                lambda copy, number=number: programs_of(copy, shapes)[number],
                {},
                Registry(),
                stored=state,
                canonical=lambda tensor: tensor,
            ),
            bank,
        )
        for number in range(2)
    )
    return Session({BUCKET: prefill}, decode)


def _cases(name: str, sample: Mapping[str, torch.Tensor], session: Session) -> list[CaseResult]:
    truth = run_oracle(_model(name), _sample(_skeleton(name)), new_tokens=4)
    given = type(truth)(**vars(truth) | {"sample": sample})
    prefill, decode = check_outputs(session, name, given, None, tier="simulator", decode_steps=3)
    return [*prefill, *decode]


SLOW = {"internvl", "mistral3"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in SLOW)) for name in sorted(ENTRIES)]
)
def test_graphs_of_a_model_that_sees_answer_as_transformers(name: str) -> None:
    """Prefill with a picture, padded to its bucket, and decode give transformers' logits and caches."""
    assert family_of(_skeleton(name)) == "vision language"
    cases = _cases(name, _sample(_skeleton(name)), _session(name))
    assert [case.name for case in cases if not case.passed] == []


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("qwen2_5_vl", lambda sample: {"position_ids": torch.arange(22)[None, None].expand(3, 1, -1)}),
        ("llava", lambda sample: {"pixel_values": sample["pixel_values"].flip(-1)}),
        ("qwen3_vl", lambda sample: {"pixel_values": sample["pixel_values"].flip(0)}),
    ],
)
def test_another_picture_or_other_places_are_told_from_the_truth(name: str, changed: Any) -> None:
    """A picture turned around, or one that stands like a text, does not give transformers' logits."""
    sample = _sample(_skeleton(name))
    cases = _cases(name, sample | changed(sample), _session(name))
    assert not next(case for case in cases if "logits" in case.name).passed


def test_every_row_of_a_batch_has_its_picture() -> None:
    """In a graph of two rows the patches of both pictures follow each other, and the answer stays the same."""
    name = "qwen2_5_vl"
    cases = _cases(name, _sample(_skeleton(name)), _session(name, batch=2))
    assert [case.name for case in cases if not case.passed] == []


def test_a_module_called_with_different_words_is_a_layer_for_each() -> None:
    """The tables of sliding and of full attention come from one module, and are told apart by name and signature."""
    skeleton = _skeleton("gemma3")
    shapes = GraphShapes(batch=1, buckets=(BUCKET,), cache_length=SLOTS)
    layers = walk(skeleton, "revision", programs_of(skeleton, shapes)[0]).graph.layers
    tables = {
        layer.name.partition("#")[2]: layer.signature for layer in layers if "rotary_emb#" in layer.name
    }
    assert set(tables) == {"full_attention", "sliding_attention"}
    assert len(set(tables.values())) == 2


def test_a_picture_that_leaves_no_place_for_text_is_refused() -> None:
    """A bucket that the picture fills is refused with the number of its tokens."""
    with pytest.raises(UsageError, match="A picture is 16 tokens, the smallest bucket holds 16"):
        picture_of(_skeleton("llava"), 16)


def test_ids_that_stand_for_pictures_do_not_come_from_the_text() -> None:
    """A text that happens to hold the image token does not bring a picture too many."""
    skeleton = _skeleton("llava")
    picture = picture_of(skeleton, BUCKET)
    sample = prompt_with_picture(skeleton, [11, IMAGE_TOKEN, 12], picture)
    assert int((sample["input_ids"] == IMAGE_TOKEN).sum()) == picture.tokens


def test_what_follows_from_constants_alone_is_known() -> None:
    """Sizes computed from a grid can be read although the model's own tensors hold nothing."""
    model = torch.zeros(12, 3, device="meta")
    with KnownValues():
        grid = torch.tensor([[1, 2, 4], [1, 2, 2]])
        counts = grid.prod(-1)
        ends = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(model.device)
        assert ends.tolist() == [0, 8, 12]
        assert [part.shape[0] for part in model.split(counts.tolist())] == [8, 4]
        assert (model[: counts[0]] * counts[1]).shape == (8, 3)
        with pytest.raises(RuntimeError, match="meta"):
            (model[:2, 0] + counts).tolist()


def test_data_is_not_written_into_constants() -> None:
    """A constant that would become data is refused by the operation that writes."""
    with KnownValues(), pytest.raises(CheckpointError, match="`add_` writes what is data"):
        torch.zeros(3).add_(torch.zeros(3, device="meta"))


def test_rows_are_taken_and_put_by_masks_whose_count_is_known() -> None:
    """x[mask] and x[mask] = rows equal torch's own where the mask's count is told, and are refused where it is not."""
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])
    x = torch.arange(24.0).reshape(2, 4, 3)
    taken, put = x[mask, :], x.clone()
    put[mask] = taken + 100
    mine = x.clone()
    with KnownValues({8: 3}):
        rows = x[mask, :]
        mine[mask] = rows + 100
    assert torch.equal(rows, taken)
    assert torch.equal(mine, put)
    with KnownValues({9: 3}), pytest.raises(CheckpointError, match="how many is not known"):
        x[mask]
