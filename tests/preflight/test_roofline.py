"""The roofline: each term by hand, and beside what AWS published."""

from __future__ import annotations

import pytest

from neuron_port.instances import instance
from neuron_port.preflight.records import Work
from neuron_port.preflight.roofline import (
    CALL_SECONDS,
    all_reduce_seconds,
    decode_step,
    machine_of,
    prefill_step,
    streamed_bytes,
)


def work(**changes: float) -> Work:
    """A model of a billion bfloat16 weights without a table."""
    values = {
        "linear_flops_per_token": 2 * 10**9,
        "pair_flops": 0.0,
        "weight_bytes": 2 * 10**9,
        "expert_bytes": 0,
        "embedding_bytes": 0,
        "experts_share": 0.0,
        "hidden_bytes_per_token": 4096,
        "forward_flops": 0.0,
    }
    return Work(**{**values, **changes})  # type: ignore[arg-type]


def test_decode_of_one_sequence_is_bound_by_memory() -> None:
    """One core of Inf2 streams 2 GB at 0.62 of 410 GiB/s, and calls once."""
    step = decode_step(
        machine_of(instance("inf2.xlarge")), 1, work(), batch=1, context=1, state_bytes=0, all_reduces=0
    )
    assert step.bound_by == "memory"
    assert step.seconds == pytest.approx(2e9 / (0.62 * 410 * 2**30) + CALL_SECONDS)


def test_a_large_batch_is_bound_by_compute() -> None:
    """Ten thousand sequences at once keep TensorE busy for longer than the weights take."""
    machine = machine_of(instance("inf2.xlarge"))
    step = decode_step(machine, 1, work(), batch=10_000, context=1, state_bytes=0, all_reduces=0)
    assert step.bound_by == "compute"
    assert step.compute == pytest.approx(10_000 * 2e9 / (0.20 * 95e12))


def test_links_count_hops_and_bytes() -> None:
    """An all-reduce over 12 cores of inf2.24xlarge: 22 hops of 1.5 us, and 22/12 of the bytes over half the link."""
    machine = machine_of(instance("inf2.24xlarge"))
    assert all_reduce_seconds(machine, 12, 1e6) == pytest.approx(22 * 1.5e-6 + 22 / 12 * 1e6 / (96 * 2**30))
    assert all_reduce_seconds(machine, 1, 1e6) == 0.0


def test_a_logical_core_of_trn2_is_two() -> None:
    """trn2.3xlarge has 8 physical cores, 4 ranks at LNC 2, each with 21.6 of its 24 GiB usable."""
    machine = machine_of(instance("trn2.3xlarge"))
    assert machine.ranks == 4
    assert machine.capacity_bytes == int(0.9 * 96 * 2**30) // 4


def test_experts_that_a_batch_reaches() -> None:
    """One token reads a quarter of the experts; four tokens are expected to reach 1 - (3/4)^4 of them."""
    moe = work(weight_bytes=100, expert_bytes=80, experts_share=0.25)
    assert streamed_bytes(moe, 1) == pytest.approx(20 + 80 * 0.25)
    assert streamed_bytes(moe, 4) == pytest.approx(20 + 80 * (1 - 0.75**4))


def test_looked_up_weights_are_not_streamed() -> None:
    """A table of tokens is in memory and not read by a step."""
    assert streamed_bytes(work(weight_bytes=100, embedding_bytes=30), 1) == 70


def test_neuron_and_gpu_have_one_formula() -> None:
    """With the same efficiency, a GPU and a chip differ by their published figures only."""
    gpu = machine_of(instance("g6.xlarge"))
    step = decode_step(gpu, 1, work(), batch=1, context=1, state_bytes=0, all_reduces=0)
    assert step.seconds == pytest.approx(2e9 / (0.70 * 300e9) + CALL_SECONDS)


# aws-neuron-sdk, about-neuron/benchmarks/{inf2,trn1}/latency_data_decoder.csv (transformers-neuronx, SDK 2.18), P50 of
# one sequence: (instance, ranks, billions of weights streamed, layers, hidden, cache bytes, ms per token).
PUBLISHED = [
    ("inf2.48xlarge", 24, 68.7, 80, 8192, 256 * 327_680, 32.90),  # Llama-2-70b
    ("inf2.48xlarge", 24, 6.61, 32, 4096, 4096 * 524_288, 6.47),  # Llama-2-7b
    ("inf2.48xlarge", 24, 12.85, 40, 5120, 4096 * 819_200, 9.17),  # Llama-2-13b
    ("trn1.32xlarge", 32, 68.7, 80, 8192, 256 * 327_680, 25.18),  # Llama-2-70b
]


@pytest.mark.parametrize(
    ("name", "ranks", "billions", "layers", "hidden", "state", "published_ms"), PUBLISHED
)
def test_published_decode_latencies(
    name: str, ranks: int, billions: float, layers: int, hidden: int, state: int, published_ms: float
) -> None:
    """What AWS measured for one sequence of Llama 2 is predicted within 15 %; no constant was fitted to these."""
    model = work(
        weight_bytes=2e9 * billions, linear_flops_per_token=2e9 * billions, hidden_bytes_per_token=2 * hidden
    )
    step = decode_step(
        machine_of(instance(name)),
        ranks,
        model,
        batch=1,
        context=1,
        state_bytes=state,
        all_reduces=2 * layers,
    )
    assert step.seconds * 1e3 == pytest.approx(published_ms, rel=0.15)


def test_a_longer_prompt_takes_longer_for_each_token() -> None:
    """Attention's pairs make 4,096 tokens cost more than four times 1,024."""
    machine = machine_of(instance("trn2.3xlarge"))
    model = work(pair_flops=1e6)
    short = prefill_step(machine, 1, model, tokens=1024, all_reduces=0).compute
    assert prefill_step(machine, 1, model, tokens=4096, all_reduces=0).compute > 4 * short
