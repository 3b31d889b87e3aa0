"""Models from the Hugging Face hub: configuration first, weights only if the model can be ported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library that the installed hub client uses, whichever it is
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from neuron_port.checkpoint.architecture import read_config
from neuron_port.errors import CheckpointError

CONNECT_TIMEOUT_SECONDS = 10
TEXT_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*",
)  # fmt: skip
WEIGHT_FILES = ("*.safetensors", "model.safetensors.index.json")
NOT_WANTED = ("*/*", "consolidated*")  # other formats of the same weights, in sub-folders or in one file

Snapshot = Callable[..., str]  # huggingface_hub.snapshot_download; a parameter, so that tests need no network


def fetch(
    repository: str,
    *,
    revision: str | None,
    weights: bool,
    progress: Callable[[str], None],
    snapshot: Snapshot = huggingface_hub.snapshot_download,
) -> Path:
    """The folder of the downloaded (or already cached) model. Raises CheckpointError if it cannot be had."""
    progress(f"Fetching the configuration of {repository} from the hub.")
    folder = _snapshot(snapshot, repository, revision, TEXT_FILES)
    read_config(folder)
    if weights:
        progress(f"Fetching the weights of {repository} from the hub; an interrupted download is continued.")
        commit = folder.name if folder.parent.name == "snapshots" else revision
        folder = _snapshot(snapshot, repository, commit, TEXT_FILES + WEIGHT_FILES)
        if not any(folder.glob("*.safetensors")):
            raise CheckpointError(
                f"{repository} has no safetensors files on the hub.",
                hint="Pickled weights (.bin, .pth) are not read: convert them with save_pretrained.",
            )
    return folder


def _snapshot(snapshot: Snapshot, repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    arguments: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": list(patterns),
        "ignore_patterns": list(NOT_WANTED),
        "etag_timeout": CONNECT_TIMEOUT_SECONDS,
    }
    try:
        return Path(snapshot(repository, **arguments))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _explain(error, repository, revision) from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise _unreachable(repository, str(error)) from error


def _explain(error: Exception, repository: str, revision: str | None) -> CheckpointError:
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{repository} is gated: its licence must be accepted first.",
            hint="Accept it on the model's page, then log in with `hf auth login`; or use --random-weights.",
        )
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"{repository} has no revision `{revision}`.", hint="Name a branch or commit.")
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"The hub has no model {repository}, or it is private.",
            hint="Check the spelling (owner/name); for a private model log in with `hf auth login`.",
        )
    if isinstance(error, HFValidationError):
        return CheckpointError(f"`{repository}` is not a valid hub id.", hint="A hub id is owner/name.")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "no status"
        return CheckpointError(f"The hub answered {status} for {repository}.", hint="Try again later.")
    if isinstance(error, OfflineModeIsEnabled) or huggingface_hub.constants.HF_HUB_OFFLINE:
        return _unreachable(repository, "HF_HUB_OFFLINE is set, and no copy is in the local hub cache.")
    return _unreachable(repository, f"{error.__cause__ or error}")


def _unreachable(repository: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The hub cannot be reached for {repository}: {' '.join(reason.split())}",
        hint="Check the network and HF_HUB_OFFLINE, name a local folder, or use a preset's --random-weights.",
    )
