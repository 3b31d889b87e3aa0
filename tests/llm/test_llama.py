"""A real, weak model: llama-cpp-python's own server with a GGUF, through the same door as any endpoint.

NEURON_PORT_LLAMA_GGUF names the file. NEURON_PORT_LLAMA_PYTHON names an interpreter that has `llama_cpp` with its server;
by default this one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuron_port.llm.choose import choose_model
from neuron_port.llm.errors import ContextTooLongError
from tests.llm.conftest import ask

PYTHON = os.environ.get("NEURON_PORT_LLAMA_PYTHON", sys.executable)
GGUF = os.environ.get("NEURON_PORT_LLAMA_GGUF", "")
START_SECONDS = 120


def missing() -> str:
    """What is not there; empty when the test can run."""
    if not Path(GGUF).is_file():
        return "NEURON_PORT_LLAMA_GGUF names no file"
    found = subprocess.run([PYTHON, "-c", "import llama_cpp.server"], capture_output=True, check=False)
    return "" if found.returncode == 0 else f"{PYTHON} has no llama_cpp.server"


pytestmark = pytest.mark.llm


@pytest.fixture(scope="module")
def llama_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that is ready, with a context of 512 tokens."""
    if reason := missing():
        pytest.skip(reason)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("llama") / "server.log"
    command = [PYTHON, "-m", "llama_cpp.server", "--model", GGUF, "--model_alias", "weak", "--n_ctx", "512"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=output, stderr=output
        )
        try:
            url = f"http://127.0.0.1:{port}/v1"
            wait_until_ready(f"{url}/models", server, log)
            yield url
        finally:
            server.terminate()
            server.wait()


def wait_until_ready(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(START_SECONDS * 10):
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except (urllib.error.URLError, TimeoutError):
            try:
                server.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
        else:
            return
    pytest.fail(f"the server is not ready after {START_SECONDS} s: {log.read_text()[-2000:]}")


def test_a_weak_model_answers(llama_url: str) -> None:
    """The only model of the address is found, and its reply is streamed, within its limit."""
    model = choose_model(llama_url)
    assert model.name == f"{llama_url}#weak"
    pieces: list[str] = []
    reply = model.complete(
        ask("Name three colours.", max_output_tokens=12, temperature=0.0), on_text=pieces.append
    )
    assert "".join(pieces) == reply.text
    assert len(pieces) > 1
    assert 0 < reply.usage.output_tokens <= 12
    assert reply.finish in ("stop", "length")


def test_a_probe_is_small(llama_url: str) -> None:
    """A probe costs a few tokens."""
    assert choose_model(f"{llama_url}#weak").probe().usage.output_tokens <= 16


def test_a_prompt_that_is_too_long_is_named(llama_url: str) -> None:
    """A real server's own complaint about its context becomes our sentence."""
    with pytest.raises(ContextTooLongError, match="too long"):
        choose_model(f"{llama_url}#weak").complete(ask("word " * 2000))
