"""What the tests of draft, verify, optimize and explain share: a user's file, its kernel, and a scripted model."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.llm.scripted_server import ScriptedServer

LAYER = '''"""A function of a user's own."""

import torch


def square_plus(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The square of each element, plus a bias for each feature."""
    return x * x + bias
'''
SHAPES = ("-i", "x=TxH", "-i", "bias=H", "--size", "T=1..6", "--size", "H=8")


DRAFT = ("draft", "layer.py:square_plus", *SHAPES)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with `layer.py`, which is also the current one, with a home of its own and a key."""
    return set_up(tmp_path, monkeypatch)


def set_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEURON_PORT_HOME", str(folder / "home"))
    monkeypatch.setenv("NEURON_PORT_LLM_KEY", "sk-scripted")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.chdir(folder)
    (folder / "layer.py").write_text(LAYER)
    return folder


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command in a process and a group of its own, to be interrupted."""
    repository = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "neuron_port.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": repository, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def model_at(server: ScriptedServer) -> tuple[str, str]:
    """The options that choose it."""
    return ("--llm", f"{server.url}#scripted")


@contextlib.contextmanager
def nothing_listens() -> Iterator[str]:
    """The address of a server that was there a moment ago."""
    with ScriptedServer([]) as server:
        url = server.url
    yield url
