"""The verifiers adapter, with the real package: loading, scoring, and a rollout against a model on loopback."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

vf = pytest.importorskip("verifiers.v1", reason="verifiers is not installed", exc_type=ImportError)

from neuron_port.bench.scripts import scripted_replies  # noqa: E402
from neuron_port.bench.suite import load_suite  # noqa: E402
from neuron_port.environments.verifiers_adapter import KernelTask, load_environment  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples" / "verifiers"
FOUND = load_suite(["swiglu"])[0]
WRONG, RIGHT = (reply.text for reply in scripted_replies(FOUND) if reply.purpose != "plan")

HARNESS = '''
import httpx
import verifiers.v1 as vf


class PostHarness(vf.Harness[vf.HarnessConfig]):
    """Asks the model once, over HTTP, from this process."""

    APPENDS_SYSTEM_PROMPT, EXECUTES_CODE, NEEDS_CONTAINER = True, False, False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data, tool_interception_url=None):
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(
                f"{endpoint}/chat/completions",
                json={"model": ctx.model, "messages": messages},
                headers={"Authorization": f"Bearer {secret}"},
            )
        return vf.ProgramResult(exit_code=0 if answer.is_success else 1, stdout="", stderr=answer.text)


__all__ = ["PostHarness"]
'''


@pytest.fixture(autouse=True)
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The taskset of `examples/verifiers` and a harness that needs no download, as modules that verifiers finds."""
    (tmp_path / "post_harness.py").write_text(HARNESS)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("post_harness", "neuron_port_kernels"):
        sys.modules.pop(name, None)


def kernel_task() -> KernelTask:
    config = vf.taskset_config_type("neuron_port_kernels")(id="neuron_port_kernels", tasks=("swiglu",))
    (task,) = vf.load_taskset(config)
    return task


def trace_of(task: KernelTask, reply: str) -> Any:
    """A finished trace with one question and one reply."""
    nodes = [
        vf.MessageNode(message=vf.UserMessage(content=task.data.prompt)),
        vf.MessageNode(message=vf.AssistantMessage(content=reply), parent=0, sampled=True),
    ]
    return vf.Trace(
        task=vf.TraceTask(type="KernelTask", data=task.data),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=nodes,
    )


def test_the_taskset_is_found_by_its_name() -> None:
    """verifiers loads the taskset by id, with a task for each kernel, prompts and identities."""
    config = vf.taskset_config_type("neuron_port_kernels")(id="neuron_port_kernels")
    tasks = list(vf.load_taskset(config))
    assert [task.data.kernel_task for task in tasks] == [found.name for found in load_suite()]
    assert len({task.key for task in tasks}) == len(tasks)
    assert all("Entry point" in task.data.prompt_text for task in tasks)


@pytest.mark.parametrize(("reply", "reward"), [(RIGHT, 0.6), ("no code", 0.0)], ids=["right", "prose"])
def test_scoring_gives_our_reward(reply: str, reward: float) -> None:
    """Task.score records the reward and the metrics of the last reply."""
    task = kernel_task()
    trace = trace_of(task, reply)
    asyncio.run(task.score(trace))
    assert trace.reward == reward
    assert trace.metrics["hidden"] == float(reward == 0.6)


def test_the_ground_truth_is_checked_without_a_model() -> None:
    """validate() grades our own kernel and finds it right."""
    assert asyncio.run(kernel_task().validate()) is True


class ScriptedModel(BaseHTTPRequestHandler):
    """Answers every chat completion with the server's reply."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "scripted",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": self.server.reply},
                    }
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.mark.parametrize(("reply", "reward"), [(RIGHT, 0.6), (WRONG, 0.2)], ids=["right", "256 partitions"])
def test_a_rollout_ends_with_our_reward(reply: str, reward: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """verifiers' own environment asks a model over HTTP, and its trace carries the reward of the reply."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedModel)
    server.reply = reply
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SCRIPTED_KEY", "none")
    try:
        environment = load_environment(
            tasks=("swiglu",),
            agent={"harness": {"id": "post_harness"}, "runtime": {"type": "subprocess"}},
        )
        context = vf.ModelContext(
            client=vf.EvalClientConfig(
                base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key_var="SCRIPTED_KEY"
            ),
            model="scripted",
            sampling=vf.SamplingConfig(),
        )

        async def roll_out() -> Any:
            (task,) = environment.taskset
            async with environment.serving():
                return await environment.run_episode(task, context)

        episode = asyncio.run(roll_out())
    finally:
        server.shutdown()
        server.server_close()
    assert episode.ok, [error.message for trace in episode.traces for error in trace.errors]
    assert episode.traces[0].reward == reward
