"""The OpenEnv adapter, with the real package: an episode in process, and over its server with its own client."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("openenv", reason="openenv-core is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")

import yaml  # noqa: E402

from neuron_port.bench.scripts import scripted_replies  # noqa: E402
from neuron_port.bench.suite import load_suite  # noqa: E402
from neuron_port.environments.openenv_adapter import (  # noqa: E402
    KernelAction,
    KernelClient,
    KernelEnvironment,
    create_server,
)
from neuron_port.environments.suite import KernelSuite  # noqa: E402
from neuron_port.errors import UsageError  # noqa: E402

FOUND = load_suite(["swiglu"])[0]
WRONG, RIGHT = (reply.text for reply in scripted_replies(FOUND) if reply.purpose != "plan")
SUITE = KernelSuite(tasks={FOUND.name: FOUND.task})
FOLDER = Path(__file__).parents[2] / "examples" / "openenv"


def test_an_episode_ends_with_a_right_kernel() -> None:
    """reset gives the prompt; a wrong attempt gives feedback and goes on; a right one ends the episode."""
    environment = KernelEnvironment(SUITE)
    opening = environment.reset(task_id="swiglu")
    assert "Entry point: `swiglu`" in opening.prompt
    assert opening.reward is None
    assert not opening.done
    first = environment.step(KernelAction(code=WRONG))
    assert (first.reward, first.done, first.turn) == (0.2, False, 1)
    assert "has 256 partitions" in first.feedback
    second = environment.step(KernelAction(code=RIGHT))
    assert (second.reward, second.done, second.stage) == (0.6, True, "hidden")
    assert environment.state.solved
    assert environment.state.best_reward == 0.6
    assert environment.state.step_count == 2


def test_an_episode_ends_with_its_last_turn() -> None:
    """After the last turn the episode is over, unsolved; a reset begins a new one."""
    environment = KernelEnvironment(SUITE, maximum_turns=2)
    environment.reset(seed=1)
    assert [environment.step(KernelAction(code="prose")).done for _ in range(2)] == [False, True]
    assert not environment.state.solved
    environment.reset(seed=1)
    assert environment.state.step_count == 0


def test_a_lone_step_names_its_task() -> None:
    """A client without a session, as OpenEnv's plain HTTP interface is, names the task with its attempt."""
    action = KernelAction(code=RIGHT, metadata={"task_id": "swiglu"})
    assert KernelEnvironment(SUITE).step(action).reward == 0.6


def test_an_unknown_task_is_refused() -> None:
    """A misspelt task is named, with its neighbour."""
    with pytest.raises(UsageError, match="swiglue"):
        KernelEnvironment(SUITE).reset(task_id="swiglue")


@pytest.fixture
def address() -> Iterator[str]:
    """A running server on a free port of loopback."""
    server = uvicorn.Server(
        uvicorn.Config(
            create_server(SUITE), host="127.0.0.1", port=0, log_level="error", ws="websockets-sansio"
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_client_plays_an_episode_over_the_server(address: str) -> None:
    """The package's client and server carry observation, reward, end and state of an episode."""
    with KernelClient(base_url=address).sync() as client:
        opening = client.reset(task_id="swiglu")
        assert opening.observation.task_id == "swiglu"
        assert client.step(KernelAction(code=WRONG)).reward == 0.2
        last = client.step(KernelAction(code=RIGHT))
        assert (last.reward, last.done) == (0.6, True)
        assert last.observation.metrics["hidden"] == 1.0
        assert client.state().solved


def test_the_files_to_serve_it_agree_with_the_code() -> None:
    """openenv.yaml and the Dockerfile name a factory that exists, and one port."""
    manifest = yaml.safe_load((FOLDER / "openenv.yaml").read_text())
    module, _, name = manifest["app"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert manifest["app"] in dockerfile
    assert f'"--port", "{manifest["port"]}"' in dockerfile
