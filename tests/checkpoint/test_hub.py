"""Hub models: the configuration is judged before weights are fetched; each failure is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    Response,
    RevisionNotFoundError,
)

from neuron_port.checkpoint import resolve
from neuron_port.errors import CheckpointError
from neuron_port.store import Store


class FakeHub:
    """Serves one folder, or raises one error, in place of snapshot_download; remembers what was asked."""

    def __init__(self, folder: Path | None = None, error: Exception | None = None) -> None:
        self.folder = folder
        self.error = error
        self.requests: list[dict[str, Any]] = []

    def __call__(self, repository: str, **options: Any) -> str:
        self.requests.append({"repository": repository, **options})
        if self.error is not None:
            raise self.error
        return str(self.folder)


def response(status: int) -> Response:
    """What a hub error carries: a status; the request is only passed on."""
    return Response(status, request=object())  # type: ignore[arg-type]


def test_configuration_first_then_weights(store: Store, make_llama: Callable[..., Path]) -> None:
    """Weights are asked for in a second request, of the same revision, and only as safetensors."""
    hub = FakeHub(make_llama())
    checkpoint = resolve("nobody/tiny", store=store, revision="v1", snapshot=hub)
    assert checkpoint.source == "nobody/tiny"
    assert [request["revision"] for request in hub.requests] == ["v1", "v1"]
    first, second = (request["allow_patterns"] for request in hub.requests)
    assert not any("safetensors" in pattern for pattern in first)
    assert "*.safetensors" in second
    assert not any(pattern.endswith((".bin", ".pth", ".py")) for pattern in second)


def test_random_weights_fetch_no_weights(store: Store, make_llama: Callable[..., Path]) -> None:
    """With random weights only the configuration and the tokenizer are fetched."""
    hub = FakeHub(make_llama())
    assert resolve("nobody/tiny", store=store, random_weights=True, snapshot=hub).random_weights
    assert len(hub.requests) == 1


def test_unportable_model_costs_no_download(store: Store, make_llama: Callable[..., Path]) -> None:
    """A model that cannot be ported is refused before its weights are fetched."""
    folder = make_llama()
    (folder / "config.json").write_text('{"architectures": ["BertForNothing"], "model_type": "bert"}')
    hub = FakeHub(folder)
    with pytest.raises(CheckpointError, match="BertForNothing"):
        resolve("nobody/tiny", store=store, snapshot=hub)
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError("gated", response=response(403)), "meta-llama/Llama-3.2-1B is gated"),
        (
            RepositoryNotFoundError("404", response=response(404)),
            "The hub has no model meta-llama/Llama-3.2-1B",
        ),
        (RevisionNotFoundError("404", response=response(404)), "has no revision `v9`"),
        (HfHubHTTPError("500", response=response(500)), "The hub answered 500"),
        (
            LocalEntryNotFoundError("no connection"),
            "cannot be reached for meta-llama/Llama-3.2-1B: no connection",
        ),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (
            ConnectionResetError("reset by peer"),
            "cannot be reached for meta-llama/Llama-3.2-1B: reset by peer",
        ),
        (TimeoutError("timed out"), "cannot be reached for meta-llama/Llama-3.2-1B: timed out"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_failures_are_one_sentence(store: Store, error: Exception, words: str) -> None:
    """Gated, missing, unreachable: each is named with the model and has a cure."""
    with pytest.raises(CheckpointError, match=words) as caught:
        resolve("llama-3.2-1b", store=store, revision="v9", snapshot=FakeHub(error=error))
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_only_pickled_weights(store: Store, make_llama: Callable[..., Path]) -> None:
    """A hub model without safetensors is refused, with the cure for pickled weights."""
    folder = make_llama()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="nobody/tiny has no safetensors files") as caught:
        resolve("nobody/tiny", store=store, snapshot=FakeHub(folder))
    assert "Pickled weights" in str(caught.value.hint)
