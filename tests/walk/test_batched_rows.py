"""Causal models whose rows have sequences of their own: every prompt answers as transformers answers to it alone.

Prompts come into rows of a batch at different times and leave again, one of them after its last cache slot. Whatever a
model keeps - keys and values, convolution windows, recurrent states - must be its row's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))  # where the zoo's package stands

import zoo  # noqa: E402

from neuron_port.errors import CheckpointError  # noqa: E402
from neuron_port.parity.model import OracleRun, run_oracle  # noqa: E402
from neuron_port.pipeline.batch_runs import Recording, Visit, run_visits  # noqa: E402
from neuron_port.port.generate import Batch  # noqa: E402
from neuron_port.types import GraphInput, GraphSpec  # noqa: E402
from neuron_port.walk.calls import Call, spec_of  # noqa: E402
from neuron_port.walk.cutpoints import intercept  # noqa: E402
from neuron_port.walk.families import programs_of  # noqa: E402
from neuron_port.walk.program import GraphShapes, Program  # noqa: E402

ROWS, SLOTS, BUCKETS = 4, 24, (8, 16)
LENGTHS = (
    11,
    5,
    16,
    8,
    3,
    13,
)  # of the prompts; of models whose prompts fill buckets the short ones fill none
STAYS = (
    13,
    6,
    8,
    3,
    10,
    11,
)  # tokens that are appended: of three prompts up to the last slot
LIMIT = 1e-5  # of the largest logit, in float32

# One for each thing that the others do not have: positions, alibi, windows, latent caches, states of every kind.
QUICK = (
    "llama",
    "gpt2",
    "bloom",
    "gemma3_text",
    "deepseek_v2",
    "mamba2",
    "jamba",
    "qwen3_next",
    "recurrent_gemma",
)
CAUSAL = [
    entry.name
    for entry in zoo.ZOO.values()
    if entry.architecture.endswith(("CausalLM", "LMHeadModel")) and entry.name != "rwkv"
]


class ProgramStep:
    """A program as it stands, called like a graph."""

    def __init__(self, model: PreTrainedModel, program: Program) -> None:
        self.model, self.program = model, program
        inputs = [GraphInput(name=n, role="input", spec=spec_of(v)) for n, v in program.inputs.items()]
        states = [GraphInput(name=n, role="state", spec=spec_of(v)) for n, v in program.states.items()]
        self.spec = GraphSpec(
            id=program.id,
            phase=program.phase,
            batch=program.batch,
            sequence_length=program.sequence_length,
            cache_length=program.cache_length,
            fills_bucket=program.fills_bucket,
            inputs=(*inputs, *states),
            outputs=(),
        )

    def __call__(
        self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        with torch.no_grad(), intercept(self.model, Call.run):
            logits, *left = self.program.step(tuple(inputs), tuple(states))
        assert [spec_of(state) for state in left] == [spec_of(state) for state in states]
        return [logits], left


@cache
def _model(name: str) -> PreTrainedModel:
    return zoo.build(zoo.ZOO[name])


def _steps(name: str) -> list[ProgramStep]:
    model = _model(name)
    with intercept(model, Call.run):
        programs = programs_of(model, GraphShapes(batch=ROWS, buckets=BUCKETS, cache_length=SLOTS))
    return [ProgramStep(model, program) for program in programs]


def _batch(steps: Sequence[Any]) -> Batch:
    *prefills, decode = steps
    return Batch({step.spec.sequence_length: step for step in prefills}, decode)


@cache
def _truths(name: str) -> list[OracleRun]:
    vocabulary = _model(name).config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, vocabulary, (1, length), generator=generator) for length in LENGTHS]
    return [
        run_oracle(_model(name), {"input_ids": ids}, stay + 1)
        for ids, stay in zip(prompts, STAYS, strict=True)
    ]


def _worst(name: str, steps: Sequence[Any]) -> float:
    """The largest difference of any row's logits from transformers' own, relative to the largest logit."""
    truths = _truths(name)
    visits = [
        Visit(prompt=n, ids=truth.prompt_ids, row=(2, 0, 3, 1, 0, 3)[n], steps=STAYS[n], forced=truth.tokens)
        for n, truth in enumerate(truths)
    ]
    recordings: list[Recording] = run_visits(_batch(steps), visits)
    differences = [
        (torch.stack(recording.logits) - truth.logits).abs().max() / truth.logits.abs().max()
        for recording, truth in zip(recordings, truths, strict=True)
    ]
    return max(map(float, differences))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in CAUSAL]
)
def test_every_row_answers_as_its_prompt_alone(name: str) -> None:
    """Six prompts in four rows, each at its own position up to the last cache slot, give transformers' logits."""
    assert _worst(name, _steps(name)) < LIMIT


class Changed:
    """A step whose inputs or states are not what they should be."""

    def __init__(self, step: ProgramStep, change: Any) -> None:
        self.spec, self._step, self._change = step.spec, step, change

    def __call__(self, inputs: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> Any:
        named = dict(
            zip([item.name for item in self.spec.inputs if item.role == "input"], inputs, strict=True)
        )
        return self._step([*(named | self._change(named)).values()], states)


def _one_position(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"positions": inputs["positions"].max().expand(ROWS).contiguous()}


def _one_slot(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"slot": torch.zeros_like(inputs["slot"])}


def _next_slot(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"slot": (inputs["slot"] + 1) % ROWS}


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_position_shared_by_all_rows_is_told_from_the_truth(name: str) -> None:
    """Decode that takes one position for every row does not give transformers' logits."""
    *prefills, decode = _steps(name)
    assert _worst(name, [*prefills, Changed(decode, _one_position)]) > 100 * LIMIT


@pytest.mark.parametrize("change", [_one_slot, _next_slot])
@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_a_prompt_in_another_row_is_told_from_the_truth(name: str, change: Any) -> None:
    """Prefill that writes all prompts into one row, or each into its neighbour's, is seen; so of recurrent states."""
    *prefills, decode = _steps(name)
    assert _worst(name, [*(Changed(step, change) for step in prefills), decode]) > 100 * LIMIT


@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_a_prompt_leaves_the_other_rows_as_they_are(name: str) -> None:
    """Of every state prefill changes the named row alone, bit for bit."""
    prefill = _steps(name)[0]
    states = [
        torch.randn(item.spec.shape, generator=torch.Generator().manual_seed(n))
        for n, item in enumerate(item for item in prefill.spec.inputs if item.role == "state")
    ]
    inputs = [torch.arange(8, dtype=torch.int32)[None], torch.tensor([7], dtype=torch.int32)]
    _, left = prefill([*inputs, torch.tensor([2], dtype=torch.int32)], states)
    for before, after in zip(states, left, strict=True):
        assert not torch.equal(before[2], after[2])
        assert torch.equal(before[[0, 1, 3]], after[[0, 1, 3]])


@pytest.mark.parametrize("name", ["llama", "bloom", "gemma3_text", "jamba"])
def test_an_idle_row_writes_into_itself_alone(name: str) -> None:
    """Token 0 at position 0 of rows without a sequence leaves every other row's states and logits bit for bit."""
    decode = _steps(name)[-1]
    states = [
        torch.randn(item.spec.shape, generator=torch.Generator().manual_seed(n))
        for n, item in enumerate(item for item in decode.spec.inputs if item.role == "state")
    ]
    ids = torch.tensor([[0], [5], [0], [9]], dtype=torch.int32)
    positions = torch.tensor([0, SLOTS - 1, 0, 4], dtype=torch.int32)
    (one,), left = decode([ids, positions], states)
    noise = [
        torch.where(torch.tensor([1, 0, 1, 0]).view(-1, *[1] * (s.ndim - 1)) > 0, s + 1, s) for s in states
    ]
    (other,), other_left = decode([ids, positions], noise)
    busy = [1, 3]
    assert torch.equal(one[busy], other[busy])
    for first, second in zip(left, other_left, strict=True):
        assert torch.equal(first[busy], second[busy])


def test_a_model_whose_own_code_mixes_rows_is_refused() -> None:
    """RWKV decodes one row; more are refused by name, with the cure."""
    model = _model("rwkv")
    with intercept(model, Call.run):
        assert len(programs_of(model, GraphShapes(batch=1, buckets=(8,), cache_length=SLOTS))) == 2
        with pytest.raises(CheckpointError, match="RwkvForCausalLM cannot decode a batch of 4") as refused:
            programs_of(model, GraphShapes(batch=4, buckets=(8,), cache_length=SLOTS))
    assert refused.value.hint == "Use --batch 1."


def test_one_row_has_no_slot() -> None:
    """Graphs of a batch of one take no slot; of more, prefill takes one prompt, and states of all rows."""
    model = _model("llama")
    with intercept(model, Call.run):
        prefill, decode = programs_of(model, GraphShapes(batch=1, buckets=(8,), cache_length=SLOTS))
        wide, _ = programs_of(model, GraphShapes(batch=3, buckets=(8,), cache_length=SLOTS))
    assert list(prefill.inputs) == list(decode.inputs) == ["input_ids", "positions"]
    assert {name: tuple(value.shape) for name, value in wide.inputs.items()} == {
        "input_ids": (1, 8),
        "positions": (1,),
        "slot": (1,),
    }
    assert wide.batch == 1
    assert {state.shape[0] for state in wide.states.values()} == {3}
