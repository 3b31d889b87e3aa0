"""A model behind a scripted server, with a home of its own and no real waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuron_port.llm.choose import choose_model
from neuron_port.llm.messages import LanguageModel, Message, Request
from neuron_port.llm.retry import RetryPolicy
from tests.llm.scripted_server import ScriptedServer

KEY = "sk-test-0123456789"


def ask(text: str = "hello", **more: Any) -> Request:
    return Request(messages=(Message(role="user", content=text),), **{"max_output_tokens": 100, **more})


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, address or configuration of whoever runs the tests."""
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "NEURON_PORT_LLM",
        "NEURON_PORT_LLM_KEY",
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_BEARER_TOKEN_BEDROCK",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("NEURON_PORT_HOME", str(tmp_path / "home"))


@pytest.fixture
def waits() -> list[float]:
    """The seconds that a model would have slept."""
    return []


@pytest.fixture
def said() -> list[str]:
    """The sentences that a model told its user while working."""
    return []


@pytest.fixture
def connect(waits: list[float], said: list[str]) -> Callable[..., LanguageModel]:
    """connect(server, model="scripted", **policy) -> the model behind it; waits are noted, not slept."""

    def connected(server: ScriptedServer, model: str = "scripted", **policy: Any) -> LanguageModel:
        retry = RetryPolicy(sleep=waits.append, chance=lambda: 0.5, **policy)
        return choose_model(f"{server.url}#{model}", api_key=KEY, retry=retry, say=said.append)

    return connected
