"""Language models that see: prefill runs the image encoder too, and its features take the place of image tokens.

    prefill: (input_ids [B, S], positions [B], pixel_values, position_ids [A, B, S] where places have A axes), caches
             -> logits [B, V] of token `positions[b]`, caches
    decode:  (input_ids [B, 1], positions [B], position_ids [A, B, 1]), caches -> logits [B, V], caches

Every prompt has one picture, of one size: how many tokens it is, and the grid of patches that some models want beside
it, are constants of the graph. Where the image tokens stand is data. B = batch, S = tokens of the bucket, V = vocabulary.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel

from neuron_port.errors import CheckpointError, UsageError
from neuron_port.types import Phase
from neuron_port.walk.calls import flatten_tensors
from neuron_port.walk.cutpoints import unobserved
from neuron_port.walk.families.causal import CausalStep
from neuron_port.walk.families.encoder import image_shape
from neuron_port.walk.known_values import KnownValues
from neuron_port.walk.program import GraphShapes, Program, takes
from neuron_port.walk.recurrent_cache import StateLayout, state_layout

IMAGE_TOKEN_NAMES = ("image_token_id", "image_token_index")  # of a configuration
# What may stand around the image tokens, by the configuration's names.
BRACKETS = (
    ("vision_start_token_id", "vision_end_token_id"),
    ("boi_token_id", "eoi_token_id"),
    ("boi_token_index", "eoi_token_index"),
)
_RESERVED = re.compile(r"(image|video|audio|vision|boi|eoi)_.*(id|index)|vision_.*_id")
LARGEST_SIDE_PIXELS = 448  # of a picture whose size is ours to choose
GRID = "image_grid_thw"  # frames, rows and columns of patches, of each picture
SIZES = "image_sizes"  # height and width of each picture in pixels
_MISFITS = (
    ValueError,
    RuntimeError,
    TypeError,
)  # what a model's own code makes of a picture of the wrong shape


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The picture of one prompt, as the model takes it.

    shape: of `pixel_values`; its first axis counts rows of the batch (or patches of all of them).
    constants: the whole numbers that the model wants beside it, by their argument's name.
    tokens: how many image tokens its features replace.
    """

    shape: tuple[int, ...]
    constants: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    tokens: int

    def constant_tensors(self, batch: int) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(rows * batch) for name, rows in self.constants.items()}

    def pixels(self, model: PreTrainedModel, batch: int) -> torch.Tensor:
        """Pictures of zeros, on the model's device."""
        shape = (batch * self.shape[0], *self.shape[1:])
        return torch.zeros(shape, dtype=model.dtype, device=next(model.parameters()).device)


class VisionLanguageStep(CausalStep):
    """Wraps a model that sees; `forward` is one of the steps above. It must run inside `intercept`."""

    def __init__(
        self,
        model: PreTrainedModel,
        phase: Phase,
        layout: StateLayout,
        slots: int,
        names: Sequence[str],
        picture: Picture,
    ) -> None:
        super().__init__(model, phase, layout, slots)
        self.names = tuple(names)
        self.picture = picture

    def forward(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        given = dict(zip(self.names, inputs, strict=True))
        input_ids, positions = given.pop("input_ids"), given.pop("positions")
        batch, length = input_ids.shape
        with static(self.picture, batch, length, input_ids.device):
            if self.phase == "prefill":
                given |= self.picture.constant_tensors(batch) | _token_types(self.model, input_ids)
            return self.run(input_ids, positions, states, given)


@contextmanager
def static(picture: Picture, batch: int, length: int, device: torch.device) -> Iterator[None]:
    """Let a model without data run on pictures of one size: what follows from the size is known, checks are left out."""
    with ExitStack() as stack:
        if device.type == "meta":
            pictures = batch * (picture.shape[1] if len(picture.shape) == 5 else 1)
            # A mask over pictures would leave out the empty ones: there are none.
            counts = {pictures: pictures, batch * length: batch * picture.tokens}
            stack.enter_context(KnownValues(counts, {batch: [pictures // batch] * batch}))
            # transformers' own switch: its checks count tokens, which is data
            stack.enter_context(mock.patch.dict(os.environ, TRANSFORMERS_DISABLE_TORCH_CHECK="1"))
        yield


def _token_types(model: PreTrainedModel, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens are an image's, for models that let them see each other; not where places tell it already."""
    if places_of(model) is not None:
        return {}
    names = [name for name in ("token_type_ids", "mm_token_type_ids") if takes(model, name)]
    return {name: (input_ids == image_token(model)).to(torch.int64) for name in names}


def image_token(model: PreTrainedModel) -> int:
    """The token whose embeddings an image's features replace.

    Raises:
        CheckpointError: the configuration names none.
    """
    for name in IMAGE_TOKEN_NAMES:
        if getattr(model.config, name, None) is not None:
            return int(getattr(model.config, name))
    raise CheckpointError(
        f"The configuration of {type(model).__name__} has none of {', '.join(IMAGE_TOKEN_NAMES)}",
        hint="Models that see otherwise than by image tokens cannot be converted yet.",
    )


def places_of(model: PreTrainedModel) -> Callable[..., Any] | None:
    """The model's own function for the places of its tokens on several axes; None where a token's number is its place."""
    owner: Any = next((item for item in model.modules() if hasattr(item, "get_rope_index")), None)
    return None if owner is None else owner.get_rope_index


def picture_of(model: PreTrainedModel, bucket: int) -> Picture:
    """One prompt's picture for graphs whose smallest prefill has `bucket` tokens: read off a run of the image encoder.

    Raises:
        UsageError: a picture leaves no place for a text.
        CheckpointError: the image encoder takes no picture that we know how to make.
    """
    failures = []
    for shape, constants in _known_pictures(model, bucket):
        try:
            picture = Picture(shape=shape, constants=constants, tokens=0)
            picture = Picture(shape=shape, constants=constants, tokens=_tokens_of(model, picture))
        except _MISFITS as error:
            failures.append(f"{list(shape)}: {' '.join(str(error).split())[:200]}")
            continue
        if picture.tokens >= bucket:
            raise UsageError(
                f"A picture is {picture.tokens} tokens, the smallest bucket holds {bucket}",
                hint=f"Use --buckets of more than {picture.tokens} tokens.",
            )
        return picture
    raise CheckpointError(
        f"The image encoder of {type(model).__name__} takes no picture of the shapes that are known: "
        + "; ".join(failures),
        hint="Pictures of one size and patches with a grid are.",
    )


Constants = Mapping[str, tuple[tuple[int, ...], ...]]


def _known_pictures(model: PreTrainedModel, bucket: int) -> list[tuple[tuple[int, ...], Constants]]:
    """Shapes of one prompt's picture that models take, the likeliest first, with the whole numbers beside it."""
    if takes(model, GRID):
        return [_in_patches(model, bucket)]
    shape = image_shape(model)
    constants: Constants = {}
    encode: Any = getattr(model, "get_image_features", None)
    asked = inspect.signature(encode).parameters.get(SIZES) if encode is not None else None
    if asked is not None and asked.default is inspect.Parameter.empty:
        constants = {SIZES: (shape[1:],)}
    # Some count the pictures of a row on an axis of its own; some take the whole picture and one tile of it.
    return [((1, *shape), constants), ((1, 1, *shape), constants), ((1, 2, *shape), constants)]


def _in_patches(model: PreTrainedModel, bucket: int) -> tuple[tuple[int, ...], Constants]:
    """Shape and grid of a square picture in rows of patches, which takes half of the bucket at most."""
    config = model.config.vision_config
    merged = int(getattr(config, "spatial_merge_size", 1))
    side = min(math.isqrt(bucket // 2), LARGEST_SIDE_PIXELS // (config.patch_size * merged))
    patches = merged * max(1, side)
    named = (getattr(config, name, None) for name in ("in_channels", "in_chans", "num_channels"))
    channels = next((count for count in named if count is not None), 3)
    width = channels * getattr(config, "temporal_patch_size", 1) * config.patch_size**2
    return (patches**2, width), {GRID: ((1, patches, patches),)}


def _tokens_of(model: PreTrainedModel, picture: Picture) -> int:
    """How many vectors of the language model's width the image encoder makes of one picture."""
    pixels = picture.pixels(model, 1)
    with torch.no_grad(), unobserved(model), static(picture, 1, 0, pixels.device):
        constants = picture.constant_tensors(1)
        see: Any = model.get_image_features
        features = see(pixels, **constants, return_dict=True).pooler_output
    elements = sum(tensor.numel() for tensor in flatten_tensors(features))
    return int(elements) // int(model.config.get_text_config().hidden_size)


def programs(model: PreTrainedModel, shapes: GraphShapes) -> list[Program]:
    """One prefill for each bucket, then decode; examples are zeros on the model's device."""
    return programs_for(model, shapes, picture_of(model, min(shapes.buckets)))


def programs_for(model: PreTrainedModel, shapes: GraphShapes, picture: Picture) -> list[Program]:
    """The programs for pictures of one size."""
    device = next(model.parameters()).device
    layout = state_layout(model)
    slots = shapes.cache_length if any(item.role == "key_cache" for item in layout.tensors) else 0
    caches = layout.zeros(batch=shapes.batch, cache_length=shapes.cache_length, device=device)

    def program(phase: Phase, length: int) -> Program:
        last = length - 1 if phase == "prefill" else 0
        inputs = {
            "input_ids": torch.zeros((shapes.batch, length), dtype=torch.int32, device=device),
            "positions": torch.full((shapes.batch,), last, dtype=torch.int32, device=device),
        }
        if phase == "prefill":
            inputs["pixel_values"] = picture.pixels(model, shapes.batch)
        if places_of(model) is not None:
            inputs["position_ids"] = torch.zeros((3, shapes.batch, length), dtype=torch.int32, device=device)
        return Program(
            phase=phase,
            step=VisionLanguageStep(model, phase, layout, slots, tuple(inputs), picture),
            inputs=inputs,
            states=caches,
            outputs=("logits",),
            batch=shapes.batch,
            sequence_length=length,
            cache_length=shapes.cache_length,
            fills_bucket=layout.is_recurrent,
        )

    return [*(program("prefill", size) for size in shapes.buckets), program("decode", 1)]


def run_sample(
    model: PreTrainedModel,
    sample: Mapping[str, torch.Tensor],
    *,
    cache_length: int,
    begin: Callable[[Phase], None],
) -> None:
    """A prompt with its picture, and one further token."""
    ids = sample["input_ids"]
    length = ids.shape[1]
    constants = {name: tuple(map(tuple, sample[name].tolist())) for name in (GRID, SIZES) if name in sample}
    picture = Picture(
        shape=tuple(sample["pixel_values"].shape),
        constants=constants,
        tokens=int((ids == image_token(model)).sum()),
    )
    shapes = GraphShapes(batch=1, buckets=(length,), cache_length=cache_length)
    prefill, decode = programs_for(model, shapes, picture)
    given = dict(sample) | {"positions": torch.tensor([length - 1], dtype=torch.int32)}
    begin("prefill")
    logits, *states = prefill.step(tuple(given[name] for name in prefill.inputs), prefill.arguments[1])
    given |= {
        "input_ids": logits.argmax(-1, keepdim=True),
        "positions": torch.tensor([length], dtype=torch.int32),
    }
    if "position_ids" in sample:
        given["position_ids"] = (
            sample["position_ids"].amax().expand(*sample["position_ids"].shape[:-1], 1) + 1
        )
    begin("decode")
    decode.step(tuple(given[name] for name in decode.inputs), tuple(states))


def prompt_with_picture(
    model: PreTrainedModel, text_ids: Sequence[int], picture: Picture
) -> dict[str, torch.Tensor]:
    """A sample without its pixels: the picture's tokens before the text, and all whole numbers that the model wants.

    A token that begins every text stays in front. Ids in the text that stand for pictures or sounds give way to another.
    """
    config, token = model.config, image_token(model)
    reserved = {
        value for name, value in vars(config).items() if _RESERVED.fullmatch(name) and isinstance(value, int)
    }
    free = next(number for number in range(3, 4 + len(reserved)) if number not in reserved)
    text = [free if number in reserved else number for number in text_ids]
    first = getattr(config.get_text_config(), "bos_token_id", None)
    front = text[:1] if text[0] == first else []
    image = _bracketed(config, [token] * picture.tokens)
    ids = torch.tensor([[*front, *image, *text[len(front) :]]])
    types = (ids == token).to(torch.int64)
    sample = {"input_ids": ids, **picture.constant_tensors(1)}
    sample |= {name: types for name in ("token_type_ids", "mm_token_type_ids") if takes(model, name)}
    places = places_of(model)
    if places is not None:
        sample["position_ids"], _ = places(
            **{name: item for name, item in sample.items() if name != "token_type_ids"}
        )
    return sample


def _bracketed(config: Any, tokens: list[int]) -> list[int]:
    """The image tokens between those that begin and end an image, where the configuration has such."""
    for names in BRACKETS:
        before, after = (getattr(config, name, None) for name in names)
        if before is not None and after is not None:
            return [before, *tokens, after]
    return tokens
