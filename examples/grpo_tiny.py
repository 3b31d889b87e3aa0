"""Train a tiny policy with TRL's GRPO on a kernel task, on a CPU, in a minute or two: does the reward reach the trainer?

    python examples/grpo_tiny.py

No language model is downloaded. The policy is a one-layer Llama with random weights, and its whole vocabulary is seven
fragments of a softmax kernel, right ones and wrong ones, so that what it can say is code. It says three fragments: a
beginning, a body and an end make a module; most other orders do not even parse. Every reward comes from
`kernel_reward`: the grader runs the module on the simulator, on public and on hidden cases. GRPO has to find the one
sequence in 343 that is right, past one that forgets the maximum and is right nearly everywhere.

Needs `pip install neuron-port[environments]`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import Any

# TRL computes log-probabilities with a Triton kernel. Without a GPU Triton has to interpret it, which it decides when
# it is imported, and torch may import it.
os.environ.setdefault("TRITON_INTERPRET", "1")

from neuron_port.bench.suite import load_suite
from neuron_port.environments.suite import KernelSuite
from neuron_port.environments.trl_adapter import make_kernel_reward

TASK = "softmax"
BEGINNING = """\
```python
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def softmax(x):
    tokens, width = x.shape
    out = nl.ndarray((tokens, width), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, tokens, 128):
        last = min(first + 128, tokens)
        x_sbuf = nl.ndarray((last - first, width), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        shifted = nl.ndarray((last - first, width), dtype=nl.float32, buffer=nl.sbuf)
        column = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
"""
BODY = """\
        nisa.tensor_reduce(dst=column, op=nl.maximum, data=x_sbuf, axis=1)
        nisa.tensor_scalar(dst=shifted, data=x_sbuf, op0=nl.subtract, operand0=column)
        nisa.activation_reduce(dst=shifted, op=nl.exp, data=shifted, reduce_op=nl.add, reduce_res=column)
"""
BODY_WITHOUT_MAXIMUM = """\
        nisa.activation_reduce(dst=shifted, op=nl.exp, data=x_sbuf, reduce_op=nl.add, reduce_res=column)
"""
END = """\
        nisa.reciprocal(dst=column, data=column)
        nisa.tensor_scalar(dst=x_sbuf, data=shifted, op0=nl.multiply, operand0=column)
        nisa.dma_copy(dst=out[first:last, :], src=x_sbuf)
    return out
```
"""
FRAGMENTS = (
    BEGINNING,
    BEGINNING.replace("min(first + 128, tokens)", "first + 128"),  # runs over the end of a partial tile
    BODY,
    BODY_WITHOUT_MAXIMUM,
    END,
    END.replace("        nisa.reciprocal(dst=column, data=column)\n", ""),  # multiplies by the sum
    "I would first load the tile, then normalize it.\n",
)


def make_tokenizer() -> Any:
    """A tokenizer whose words are the fragments; concatenating them gives the completion, character for character."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<softmax>", *FRAGMENTS]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>")
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", clean_up_tokenization_spaces=False
    )


def make_policy(vocabulary: int, seed: int) -> Any:
    """A Llama of about ten thousand random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def train(suite: KernelSuite, *, steps: int, group: int = 64, seed: int = 0, output: str) -> Any:
    """Run GRPO for so many steps, `group` completions in each; returns the trainer."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = make_tokenizer()
    trainer = GRPOTrainer(
        model=make_policy(len(tokenizer), seed),
        processing_class=tokenizer,
        reward_funcs=make_kernel_reward(suite),
        train_dataset=Dataset.from_list([{"prompt": "<softmax>", "task_id": TASK}] * 4),
        args=GRPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            seed=seed,
            max_steps=steps,
            learning_rate=5e-3,
            lr_scheduler_type="constant",
            per_device_train_batch_size=group,
            num_generations=group,
            max_completion_length=3,
            generation_kwargs={"suppress_tokens": [0, 1, 2]},  # it always says three fragments
            beta=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def rewards_logged(trainer: Any) -> list[float]:
    """The mean reward of each step, as the trainer logged it."""
    return [float(entry["reward"]) for entry in trainer.state.log_history if "reward" in entry]


def main() -> None:
    """Train, and print what the trainer logged."""
    parser = argparse.ArgumentParser(description="Train a tiny policy with GRPO on a kernel task.")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    suite = KernelSuite(tasks={found.name: found.task for found in load_suite([TASK])}, seed=1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as output:
        trainer = train(suite, steps=options.steps, seed=options.seed, output=output)
    rewards = rewards_logged(trainer)
    for step, reward in enumerate(rewards, start=1):
        print(f"step {step:3}   mean reward {reward:6.3f}   {'#' * round(60 * max(reward, 0.0))}")
    print(
        f"{len(rewards)} steps, {suite.graded} different completions graded, "
        f"{time.monotonic() - started:.0f} s; mean reward {rewards[0]:.3f} -> {rewards[-1]:.3f}, "
        f"a right kernel earns {suite.settings.correct:.2f}"
    )


if __name__ == "__main__":
    main()
