"""The TRL adapter: rewards for plain and conversational completions, a dataset, and GRPO that learns from them."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_port.bench.scripts import scripted_replies
from neuron_port.bench.suite import load_suite
from neuron_port.environments.suite import KernelSuite
from neuron_port.environments.trl_adapter import (
    completion_text,
    kernel_dataset,
    kernel_reward,
    make_kernel_reward,
)
from neuron_port.errors import UsageError

FOUND = load_suite(["swiglu"])[0]
WRONG, RIGHT = (reply.text for reply in scripted_replies(FOUND) if reply.purpose != "plan")
ROOT = Path(__file__).parents[2]


def test_each_completion_gets_its_reward() -> None:
    """Plain texts and conversations are graded alike, whatever other columns come along."""
    conversations = [[{"role": "assistant", "content": text}] for text in (RIGHT, WRONG)]
    columns = {"trainer_state": None, "seed": [1, 2]}
    assert kernel_reward(["", ""], [RIGHT, WRONG], "swiglu", **columns) == [0.6, 0.2]
    assert kernel_reward([[], []], conversations, ["swiglu", "swiglu"], **columns) == [0.6, 0.2]


def test_as_many_ids_as_completions() -> None:
    """A list of task ids of another length is refused."""
    with pytest.raises(UsageError, match="1 task ids for 2 completions"):
        kernel_reward(["", ""], [RIGHT, WRONG], ["swiglu"])


def test_the_last_assistant_message_counts() -> None:
    """Of a conversation, the last reply is graded; a conversation without one is empty."""
    asked = {"role": "user", "content": "Again."}
    replies = [{"role": "assistant", "content": text} for text in ("first", "second")]
    assert completion_text([replies[0], asked, replies[1], asked]) == "second"
    assert completion_text([asked]) == ""


def test_the_dataset_has_prompts_and_ids() -> None:
    """Each row holds a prompt, as a conversation or as text, and the id that the reward needs."""
    pytest.importorskip("datasets", reason="datasets is not installed")
    suite = KernelSuite(tasks={FOUND.name: FOUND.task})
    (row,) = kernel_dataset(suite)
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["task_id"] == "swiglu"
    (plain,) = kernel_dataset(suite, ["swiglu"], conversational=False)
    assert "Entry point: `swiglu`" in plain["prompt"]


def test_trl_knows_the_function_by_its_name() -> None:
    """TRL logs `rewards/kernel_reward`: the made function has the name of the ready one."""
    assert make_kernel_reward(KernelSuite(tasks={})).__name__ == kernel_reward.__name__ == "kernel_reward"


CHECK = """
import runpy, sys, tempfile
example = runpy.run_path(sys.argv[1])
found, = example["load_suite"](["softmax"])
suite = example["KernelSuite"](tasks={"softmax": found.task}, seed=1)
with tempfile.TemporaryDirectory() as output:
    trainer = example["train"](suite, steps=3, group=32, output=output)
logged = [entry for entry in trainer.state.log_history if "reward" in entry]
assert len(logged) == 3, logged
means = [entry["rewards/kernel_reward/mean"] for entry in logged]
assert means == [entry["reward"] for entry in logged] == example["rewards_logged"](trainer)
given = {grade.reward for grade in suite._grades.values()}
assert len(given) > 1, given
assert min(given) <= min(means) <= max(means) <= max(given)
assert len(set(means)) > 1, means
print("rewards reached the trainer:", means)
"""


@pytest.mark.slow
def test_the_reward_reaches_the_trainer() -> None:
    """TRL's GRPO runs three steps of the example, and its log holds our rewards, which differ."""
    pytest.importorskip("trl", reason="trl is not installed")
    # A process of its own: Triton has to interpret TRL's kernel, which it decides when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(ROOT / "examples" / "grpo_tiny.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rewards reached the trainer" in done.stdout


def test_the_examples_fragments_make_the_kernels_that_they_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right sequence of fragments earns correctness; the one without the maximum does not."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # as the example sets it, and gone again afterwards
    example = runpy.run_path(str(ROOT / "examples" / "grpo_tiny.py"))
    found = load_suite(["softmax"])[0]
    suite = KernelSuite(tasks={"softmax": found.task}, seed=1)
    beginning, _, body, without_maximum, end, *_ = example["FRAGMENTS"]
    assert suite.grade("softmax", beginning + body + end).reward == 0.6
    assert 0.15 <= suite.grade("softmax", beginning + without_maximum + end).reward <= 0.3
    assert suite.grade("softmax", beginning + body).reward == 0.0
