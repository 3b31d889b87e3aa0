"""Kernel tasks for OpenEnv (openenv-core 0.3): an environment, its server and its client.

    uvicorn --factory neuron_port.environments.openenv_adapter:create_server

An episode is one task and a few attempts: `reset(task_id=...)` gives the prompt, each `step` grades one completion
and answers with feedback, and the episode ends with a right kernel or with the last turn.
"""

from __future__ import annotations

import random
import uuid
from typing import Any

from openenv.core.client_types import StepResult
from openenv.core.env_client import EnvClient
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
from pydantic import Field

from neuron_port.environments.suite import KernelSuite

MAXIMUM_TURNS = 4
MAXIMUM_SESSIONS = 8


class KernelAction(Action):
    """One attempt."""

    code: str = Field(description="A kernel module, bare or in a fenced block with prose around it")


class KernelObservation(Observation):
    """The task at first, then what became of the last attempt."""

    task_id: str = ""
    system_prompt: str = ""
    prompt: str = ""
    stage: str = ""
    feedback: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    reward_terms: dict[str, float] = Field(default_factory=dict)
    turn: int = 0


class KernelState(State):
    """Where the episode stands."""

    task_id: str = ""
    best_reward: float | None = None
    solved: bool = False


class KernelEnvironment(Environment[KernelAction, KernelObservation, KernelState]):
    """One task at a time, up to `maximum_turns` attempts at it. Sessions share nothing but remembered grades."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, suite: KernelSuite | None = None, maximum_turns: int = MAXIMUM_TURNS) -> None:
        super().__init__()
        self.suite = suite or KernelSuite()
        self.maximum_turns = maximum_turns
        self._state = KernelState()

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, task_id: str | None = None, **_: Any
    ) -> KernelObservation:
        """Begin an episode on `task_id`; without one, on a task that `seed` chooses."""
        chosen = task_id or random.Random(seed).choice(sorted(self.suite.tasks))
        self.suite.task(chosen)  # an unknown name is refused here, with its neighbour
        self._state = KernelState(episode_id=episode_id or uuid.uuid4().hex, task_id=chosen)
        return KernelObservation(
            task_id=chosen, system_prompt=self.suite.system_prompt(chosen), prompt=self.suite.prompt(chosen)
        )

    def step(self, action: KernelAction, timeout_s: float | None = None, **_: Any) -> KernelObservation:
        """Grade one attempt. A step without a reset, as a stateless HTTP client makes it, starts an episode."""
        if not self._state.task_id:
            self.reset(seed=0, task_id=action.metadata.get("task_id"))
        found = self.suite.grade(self._state.task_id, action.code)
        state = self._state
        state.step_count += 1
        state.best_reward = max(
            found.reward, state.best_reward if state.best_reward is not None else found.reward
        )
        state.solved = state.solved or found.stage in ("hidden", "admitted")
        return KernelObservation(
            task_id=state.task_id,
            stage=found.stage,
            feedback=found.feedback,
            metrics=dict(found.metrics),
            reward_terms=dict(found.reward_terms),
            turn=state.step_count,
            reward=found.reward,
            done=state.solved or state.step_count >= self.maximum_turns,
        )

    @property
    def state(self) -> KernelState:
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        """Name and purpose, for lists of environments."""
        return EnvironmentMetadata(
            name="neuron-port",
            description="Write NKI kernels for AWS Trainium; graded on a simulator, on hidden shapes and seeds.",
        )


class KernelClient(EnvClient[KernelAction, KernelObservation, KernelState]):
    """The client of a running server: `KernelClient(base_url="http://localhost:8000")`."""

    def _step_payload(self, action: KernelAction) -> dict[str, Any]:
        return action.model_dump()

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[KernelObservation]:
        fields = payload["observation"]
        reward, done = payload.get("reward"), bool(payload.get("done", False))
        return StepResult(KernelObservation(**fields, reward=reward, done=done), reward=reward, done=done)

    def _parse_state(self, payload: dict[str, Any]) -> KernelState:
        return KernelState(**payload)


def create_server(suite: KernelSuite | None = None, maximum_turns: int = MAXIMUM_TURNS) -> Any:
    """The FastAPI application; every session has an environment of its own over one suite."""
    shared = suite or KernelSuite()
    return create_fastapi_app(
        lambda: KernelEnvironment(shared, maximum_turns),
        KernelAction,
        KernelObservation,
        max_concurrent_envs=MAXIMUM_SESSIONS,
    )
