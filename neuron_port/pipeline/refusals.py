"""What can be refused before the long work: a place that cannot be written, prompts that the graphs cannot hold."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from neuron_port.build.finishing.files import MANIFEST
from neuron_port.errors import CheckpointError, UsageError
from neuron_port.pipeline.options import ConvertOptions
from neuron_port.pipeline.workbench import Workbench


def check_output(output: Path, marker: str = MANIFEST, kind: str = "neuron bundle") -> None:
    """Raise UsageError unless a bundle can be written at `output`; its parent folders are made on the way.

    `marker` is the file by which a folder is known to be a bundle (or something of another `kind`), and replaced.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        found = "a link" if output.is_symlink() else "a file"
        raise UsageError(f"`{output}` is {found}, not a {kind}", hint="Choose another --output.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir() and any(output.iterdir()) and not (output / marker).is_file():
            raise UsageError(
                f"`{output}` is not empty and no {kind}: it is not replaced",
                hint="Choose another --output, or remove it yourself.",
            )
    except OSError as error:  # a file in the way, no permission, a read-only file system
        raise UsageError(
            f"Nothing can be written at `{output}`: {error.strerror}", hint="Choose another --output."
        ) from error
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"Nothing can be written at `{output}`: Permission denied", hint="Choose another --output."
        )


def check_positions(work: Workbench) -> None:
    """Raise UsageError if the graphs have places for more tokens than the model has positions.

    A table of learned positions ends there, and rotary positions beyond it were never trained.
    """
    known = getattr(work.config.get_text_config(), "max_position_embeddings", None)
    if work.family not in ("causal", "vision language"):
        if known is not None and max(work.options.buckets) > known and work.takes_text:
            raise UsageError(
                f"A bucket of {max(work.options.buckets)} tokens is longer than the model's {known} positions",
                hint=f"Use --buckets {known}.",
            )
        return
    if known is not None and work.options.cache_length > known:
        buckets = "" if max(work.options.buckets) <= known else f" and --buckets of at most {known}"
        raise UsageError(
            f"The cache of {work.options.cache_length} slots is longer than the model's {known} positions",
            hint=f"Use --cache-length {known}{buckets}.",
        )


def within_positions(work: Workbench) -> ConvertOptions:
    """The options with buckets and cache cut to the model's positions: for looking at its layers, which need no more."""
    known = getattr(work.config.get_text_config(), "max_position_embeddings", None)
    options = work.options
    if known is None or options.cache_length <= known:
        return options
    buckets = tuple(sorted({min(size, known) for size in options.buckets}))
    return replace(options, buckets=buckets, cache_length=known)


def check_prompts(work: Workbench) -> None:
    """Raise unless every prompt of the proof, with what is generated after it, fits the graphs and the vocabulary.

    Raises:
        UsageError: a prompt without tokens, longer than the largest bucket, or longer than the cache with its answer.
        CheckpointError: the tokenizer makes ids that the model does not have.
    """
    options = work.options
    if not work.takes_text:
        return
    vocabulary = work.config.get_text_config().vocab_size
    largest = max(options.buckets)
    for number, prompt in enumerate(options.prompts):
        ids = work.prompt_ids(prompt, number)
        if ids and work.family == "vision language":  # the picture's tokens count too
            ids = work.sample(number)["input_ids"][0].tolist()
        if not ids:
            raise UsageError(
                f"Prompt {number + 1}, `{prompt.text}`, has no tokens", hint="Give each --prompt a text."
            )
        if len(ids) > largest:
            raise UsageError(
                f"Prompt {number + 1} has {len(ids)} tokens, the largest bucket holds {largest}",
                hint=f"Use --buckets {len(ids)} or larger, or shorter texts for --prompt.",
            )
        if max(ids) >= vocabulary:
            raise CheckpointError(
                f"The tokenizer gives token {max(ids)}, but the model's vocabulary has {vocabulary}",
                hint="Tokenizer and model do not belong together: fetch both from the same place.",
            )
        if work.family not in ("causal", "vision language"):
            continue
        slots = len(ids) + options.new_tokens - 1  # the last token is chosen and never fed back
        if slots > options.cache_length:
            raise UsageError(
                f"Prompt {number + 1} ({len(ids)} tokens) and {options.new_tokens} new tokens need {slots} cache "
                f"slots, there are {options.cache_length}",
                hint=_cure(len(ids), slots, options.cache_length),
            )


def _cure(prompt_length: int, slots: int, cache_length: int) -> str:
    most = cache_length - prompt_length + 1
    fewer = f", or --new-tokens {most}" if most >= 2 else ""
    return f"Use --cache-length {slots} or larger{fewer}."
