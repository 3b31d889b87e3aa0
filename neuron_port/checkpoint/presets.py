"""Presets: `models/<name>.toml` says where a known model's weights are and how it is converted by default.

A preset is data. Presence is registration: a new file in the folder is a new name, nothing else changes.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_port.errors import CheckpointError, UsageError
from neuron_port.registry import data_folder

# Keys that [source] must have, per kind. "config" has no weights: it can only be built with random ones.
# A wheel has a GGUF `file`, or a `folder` in Hugging Face layout.
SOURCE_KEYS = {
    "hub": {"id", "revision"},
    "wheel": {"package", "version", "sha256", "origin"},
    "config": set(),
}
WEIGHTS_OF_WHEEL = {"file", "folder"}
CONVERT_KEYS = {"target", "dtype", "buckets", "cache_length", "batch", "tensor_parallel"}
TABLES = {"description", "license", "source", "convert", "prompts", "config"}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text for the proof; `chat` puts it through the tokenizer's chat template as the user's turn."""

    text: str
    chat: bool = False


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One preset file. `config` is the configuration for random weights, None if only the source has it."""

    name: str
    description: str
    license: str | None
    source: Mapping[str, str]  # kind, and the keys of SOURCE_KEYS
    convert: Mapping[
        str, Any
    ]  # CONVERT_KEYS; tensor_parallel: over how many cores the weights are meant to be split
    prompts: tuple[Prompt, ...]
    config: Mapping[str, Any] | None


def preset_folder() -> Path:
    """`models/`: inside the package when installed, beside it in a source checkout."""
    return data_folder("models")


def list_presets(folder: Path | None = None) -> tuple[Preset, ...]:
    """All presets by name. Raises CheckpointError for a broken file: a preset is never skipped."""
    return tuple(_read(file) for file in sorted((folder or preset_folder()).glob("*.toml")))


def find_preset(name: str, folder: Path | None = None) -> Preset | None:
    """The preset of that name, or None."""
    file = (folder or preset_folder()) / f"{name}.toml"
    return _read(file) if name == Path(name).name and file.is_file() else None


def unknown_model(name: str, folder: Path | None = None) -> UsageError:
    """The error for a name that is nothing we know, with the nearest preset."""
    names = [file.stem for file in sorted((folder or preset_folder()).glob("*.toml"))]
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    suggestion = f"Did you mean `{near[0]}`? " if near else f"Presets: {', '.join(names)}. "
    return UsageError(
        f"Unknown model: `{name}`",
        hint=suggestion + "A model is a preset, a local folder, a .gguf file, or a hub id (owner/name).",
    )


def _read(file: Path) -> Preset:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"The preset {file} is not valid TOML: {error}", hint="Correct the file."
        ) from error
    _check(file, table)
    return Preset(
        name=file.stem,
        description=table["description"],
        license=table.get("license"),
        source=table["source"],
        convert=table.get("convert", {}),
        prompts=tuple(Prompt(**prompt) for prompt in table.get("prompts", [])),
        config=table.get("config"),
    )


def _check(file: Path, table: dict[str, Any]) -> None:
    """Raise CheckpointError naming the first thing that is wrong with a preset's tables."""
    source = table.get("source", {})
    kind = source.get("kind")
    problem = None
    if unknown := sorted(set(table) - TABLES):
        problem = f"has an unknown key `{unknown[0]}`"
    elif "description" not in table:
        problem = "has no `description`"
    elif kind not in SOURCE_KEYS:
        problem = f"has [source] kind `{kind}`, which is none of {', '.join(SOURCE_KEYS)}"
    elif missing := sorted(SOURCE_KEYS[kind] - set(source)):
        problem = f"has no `{missing[0]}` in [source]"
    elif kind == "wheel" and len(WEIGHTS_OF_WHEEL & set(source)) != 1:
        problem = "must have either `file` (a GGUF) or `folder` in [source]"
    elif unknown := sorted(set(table.get("convert", {})) - CONVERT_KEYS):
        problem = f"has an unknown key `{unknown[0]}` in [convert]"
    elif not _is_degree(table.get("convert", {}).get("tensor_parallel", 1)):
        problem = (
            f"has tensor_parallel `{table['convert']['tensor_parallel']}`, which must be 1 or more cores"
        )
    elif kind == "config" and "config" not in table:
        problem = "has [source] kind `config` but no [config]"
    elif any(set(prompt) - {"text", "chat"} or "text" not in prompt for prompt in table.get("prompts", [])):
        problem = "has a prompt with keys other than `text` and `chat`"
    if problem:
        raise CheckpointError(f"The preset {file} {problem}.", hint="Compare with models/smollm2-135m.toml.")


def _is_degree(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
