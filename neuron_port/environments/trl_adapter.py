"""Kernel tasks for TRL: a reward function and a dataset.

    trainer = GRPOTrainer(model=..., reward_funcs=kernel_reward, train_dataset=kernel_dataset(), ...)

The dataset's column `task_id` says which task a prompt belongs to; TRL hands it to the reward function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from neuron_port.environments.suite import KernelSuite
from neuron_port.errors import UsageError

Reward = Callable[..., list[float]]


def make_kernel_reward(suite: KernelSuite) -> Reward:
    """A reward function over the tasks of `suite`; TRL logs it as `kernel_reward`."""

    def kernel_reward(
        prompts: Sequence[Any], completions: Sequence[Any], task_id: str | Sequence[str], **columns: Any
    ) -> list[float]:
        """The reward of each completion. `task_id`: of all of them, or one for each."""
        names = [task_id] * len(completions) if isinstance(task_id, str) else list(task_id)
        if len(names) != len(completions):
            raise UsageError(
                f"kernel_reward: {len(names)} task ids for {len(completions)} completions",
                hint="Give the dataset a column `task_id`, or pass one name for all.",
            )
        return [
            suite.grade(name, completion_text(completion)).reward
            for name, completion in zip(names, completions, strict=True)
        ]

    return kernel_reward


def kernel_reward(
    prompts: Sequence[Any], completions: Sequence[Any], task_id: str | Sequence[str], **columns: Any
) -> list[float]:
    """The reward of each completion on the development suite, hidden seed 0, Trn2's rules."""
    return _default_reward()(prompts, completions, task_id, **columns)


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or the last assistant message of a conversation."""
    if isinstance(completion, str):
        return completion
    replies = [message for message in completion if message["role"] == "assistant"]
    return str(replies[-1]["content"]) if replies else ""


def kernel_dataset(
    suite: KernelSuite | None = None, names: Sequence[str] | None = None, *, conversational: bool = True
) -> Any:
    """A `datasets.Dataset` with `prompt` and `task_id`, a row for each task."""
    from datasets import Dataset

    suite = suite or KernelSuite()
    rows = []
    for name in suite.tasks if names is None else names:
        system, user = suite.system_prompt(name), suite.prompt(name)
        prompt: Any = f"{system}\n{user}"
        if conversational:
            prompt = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        rows.append({"prompt": prompt, "task_id": name})
    return Dataset.from_list(rows)


@functools.lru_cache(maxsize=1)
def _default_reward() -> Reward:
    return make_kernel_reward(KernelSuite())
