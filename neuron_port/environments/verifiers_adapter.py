"""Kernel tasks for `verifiers` (0.4, its v1 interface): a taskset whose tasks are scored by `grade`.

`verifiers` finds a taskset by the name of a module that lists it in `__all__`; `examples/verifiers/` has such a module
of one line. The kernel runs in this package's own sandbox, so any harness and runtime will do.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import verifiers.v1 as vf

from neuron_port.bench.suite import load_suite
from neuron_port.environments.grade import Grade
from neuron_port.environments.suite import KernelSuite
from neuron_port.llm.messages import Finish

__all__ = ["NeuronPortTaskset"]


class KernelData(vf.TaskData):
    """What goes over the wire: the prompt, and which task it is."""

    kernel_task: str


class KernelTaskConfig(vf.TaskConfig):
    """How completions are graded."""

    seed: int = 0
    """Seed of the hidden cases."""
    target: str = "trn2"
    """The chip whose rules hold: trn1, inf2, trn2 or trn3."""


class KernelTask(vf.Task[KernelData, vf.State, KernelTaskConfig]):
    """Write one kernel. The last reply is graded; the reward is that of `RewardSettings`."""

    @vf.metric  # type: ignore[untyped-decorator]
    async def graded(self, trace: vf.Trace) -> dict[str, float]:
        """How far the kernel came: parsed, linted, ran, public, hidden, public_fraction, hack."""
        return dict((await self.grade(trace)).metrics)

    @vf.reward  # type: ignore[untyped-decorator]
    async def kernel_reward(self, trace: vf.Trace) -> float:
        """The bounded, staged reward."""
        return (await self.grade(trace)).reward

    async def validate(self, runtime: vf.Runtime | None = None) -> bool | None:
        """Whether our own kernel of the task earns the whole reward of a right one."""
        suite = _suite(self.config.seed, self.config.target)
        (found,) = load_suite([self.data.kernel_task])
        reward = (await asyncio.to_thread(suite.grade, found.name, found.golden)).reward
        return reward == suite.settings.correct

    async def grade(self, trace: vf.Trace) -> Grade:
        """The grade of the trace's last reply; computed once for equal replies."""
        cut = bool(trace.calls) and trace.calls[-1].finish_reason == "length"
        finish: Finish = "length" if cut else "stop"
        suite = _suite(self.config.seed, self.config.target)
        return await asyncio.to_thread(suite.grade, self.data.kernel_task, trace.last_reply, finish=finish)


class NeuronPortConfig(vf.TasksetConfig):
    """Which tasks."""

    tasks: tuple[str, ...] = ()
    """Names of tasks; none: the whole development suite."""
    task: KernelTaskConfig = KernelTaskConfig()


class NeuronPortTaskset(vf.Taskset[KernelTask, NeuronPortConfig]):
    """The development suite, one task for each kernel."""

    def load(self) -> Iterable[KernelTask]:
        """Yield the tasks in the order of their names, or as the configuration lists them."""
        suite = _suite(self.config.task.seed, self.config.task.target)
        for name in self.config.tasks or suite.tasks:
            data = KernelData(
                id=name,
                name=name,
                description=suite.task(name).summary,
                system_prompt=suite.system_prompt(name),
                prompt=suite.prompt(name),
                kernel_task=name,
            )
            yield KernelTask(data, self.config.task)


def load_environment(
    *, id: str = "neuron_port_kernels", agent: Mapping[str, Any] | None = None, **fields: Any
) -> vf.Env:
    """The single-agent environment over the suite.

    Args:
        id: the module that exports the taskset, as in `examples/verifiers/`.
        agent: what plays it, in the terms of `vf.AgentConfig`: harness, runtime, client ...
        fields: those of `NeuronPortConfig`: tasks, task.
    """
    config: dict[str, Any] = {"taskset": {"id": id, **fields}}
    if agent is not None:
        config["agent"] = dict(agent)
    return vf.load_environment(vf.resolve_env_config(config))


@functools.lru_cache(maxsize=8)
def _suite(seed: int, target: str) -> KernelSuite:
    """Shared by all tasks of one configuration, so that equal replies are graded once."""
    return KernelSuite(seed=seed, target=target)
