"""What is special to decode attention: masked slots, traffic, instruction count, and its Triton source."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel
from neuron_port.simulator.timing import predict
from neuron_port.types import TensorSpec

SBUF_LIMIT_BYTES = (192 - 16) * 1024  # gen2, per partition, less what the compiler keeps
RECIPE = Registry()["attention_decode"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "attention_decode", "attention_decode/kernel.py")


def draw(
    batch: int, query_heads: int, kv_heads: int, head_dim: int, slots: int, positions: list[int] | None = None
) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, slots, batch) if positions is None else np.array(positions)
    shapes = [
        (batch, query_heads, head_dim),
        (batch, kv_heads, head_dim, slots),
        (batch, kv_heads, slots, head_dim),
    ]
    arrays = [generator.standard_normal(shape).astype(np.float32) for shape in shapes]
    return [*arrays, drawn.astype(np.int32)]


def run(arrays: list[Any], scale: float, target: str = "inf2", **options: Any) -> KernelRun:
    return run_kernel(KERNEL, *arrays, scale=scale, target=target, **options)


def attended(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, positions: np.ndarray, scale: float
) -> np.ndarray:
    """Attention in float64, one head at a time, over slots 0..position and no others."""
    q, keys, values = (array.astype(np.float64) for array in (q, keys, values))
    batch, query_heads, _ = q.shape
    group = query_heads // keys.shape[1]
    out = np.empty_like(q)
    for b in range(batch):
        end = positions[b] + 1
        for head in range(query_heads):
            scores = scale * q[b, head] @ keys[b, head // group, :, :end]
            weights = np.exp(scores - scores.max())
            out[b, head] = weights @ values[b, head // group, :end] / weights.sum()
    return out


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 4, 1), (2, 6, 2, 16, 127), (3, 9, 3, 64, 129), (1, 128, 8, 128, 256), (7, 20, 5, 24, 640)],
)
def test_attends_up_to_the_position(sizes: tuple[int, ...], target: str) -> None:
    """The output equals attention over slots 0..position in float64, each batch row at its own position."""
    arrays = draw(*sizes)
    out = run(arrays, 0.3, target).outputs[0]
    np.testing.assert_allclose(out, attended(*arrays, 0.3), rtol=0, atol=5e-6)


@pytest.mark.parametrize("position", [0, 1, 126, 127, 128, 199])
def test_slots_beyond_the_position_do_not_matter(position: int) -> None:
    """Whatever finite values stand beyond the position, huge ones included, every bit of the output stays."""
    q, keys, values, positions = draw(1, 4, 2, 32, 200, [position])
    before = run([q, keys, values, positions], 0.2).outputs[0]
    keys[..., position + 1 :], values[:, :, position + 1 :] = 1e30, -1e30
    after = run([q, keys, values, positions], 0.2).outputs[0]
    np.testing.assert_array_equal(after, before)


def test_the_slot_at_the_position_does_matter() -> None:
    """The newest token's own slot is among those attended to."""
    q, keys, values, positions = draw(1, 4, 2, 32, 200, [150])
    before = run([q, keys, values, positions], 0.2).outputs[0]
    values[:, :, 150] += 1.0
    assert not np.array_equal(run([q, keys, values, positions], 0.2).outputs[0], before)


def test_large_scores_are_stable() -> None:
    """Inputs thirty times the usual give scores in the thousands, finite outputs and the right winners."""
    q, keys, values, positions = draw(2, 8, 2, 64, 160, [159, 3])
    arrays = [30 * q, 30 * keys, values, positions]
    # Scores near 7000 carry an error of 7000 * 2^-24 and a few more from the sum over 64 products.
    np.testing.assert_allclose(run(arrays, 0.125).outputs[0], attended(*arrays, 0.125), rtol=0, atol=5e-3)


def test_equal_scores_give_the_mean() -> None:
    """With keys of zero every visible slot weighs the same, masked columns included in none of it."""
    q, keys, values, positions = draw(1, 2, 1, 16, 300, [233])
    out = run([q, 0 * keys, values, positions], 1.0).outputs[0]
    expected = np.broadcast_to(values[0, 0, :234].mean(axis=0), (2, 16))
    np.testing.assert_allclose(out[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", [(1, 32, 8, 128, 256), (5, 32, 8, 64, 300)])
def test_the_cache_is_read_once(sizes: tuple[int, ...]) -> None:
    """Keys and values are read from HBM once for all query heads; positions go to all 128 partitions."""
    arrays = draw(*sizes)
    finished = run(arrays, 0.1)
    q, keys, values, positions = arrays
    assert finished.hbm_read_bytes == q.nbytes + keys.nbytes + values.nbytes + 128 * positions.nbytes
    assert finished.hbm_write_bytes == q.nbytes


def test_heads_share_the_softmax() -> None:
    """One exponential serves all heads and batch rows; doubling the heads adds only matrix products."""
    small, large = (run(draw(2, 4 * kv_heads, kv_heads, 64, 256), 0.1).trace for kv_heads in (2, 4))
    assert small.counts_by_opcode()["activation"] == large.counts_by_opcode()["activation"] == 1
    batch, chunks = 2, 2
    assert len(large) - len(small) == 2 * batch * chunks * (4 - 2)


@pytest.mark.parametrize(
    "sizes", [(1, 32, 8, 128, 8192), (1, 64, 64, 128, 2048), (4, 32, 32, 64, 4096), (1, 16, 8, 256, 8192)]
)
def test_memory_stays_bounded(sizes: tuple[int, ...]) -> None:
    """The cache passes through SBUF in blocks: room remains for a second one in flight."""
    finished = run(draw(*sizes), 0.1)
    assert finished.peak_sbuf_bytes + 32 * 1024 <= SBUF_LIMIT_BYTES
    assert finished.peak_psum_banks <= 4


def test_values_come_in_long_pieces() -> None:
    """Neighbouring slots lie on one partition: a block of values is moved in pieces of kilobytes, not of one slot."""
    q, keys, values, positions = draw(1, 8, 2, 64, 4096)
    finished = run([q, keys, values, positions], 0.1, "trn2")
    timeline = predict(finished)
    loads = [item for item in timeline.scheduled if item.lane == "dma" and item.transfer_bytes > 100_000]
    assert sum(item.transfer_bytes for item in loads) == keys.nbytes + values.nbytes
    assert min(item.descriptor_bytes for item in loads) >= 2048


@pytest.mark.parametrize(
    ("options", "first"),
    [({"window_before": 10}, 140), ({"chunk_size": 64}, 128), ({"chunk_size": 49, "window_before": 1}, 149)],
)
def test_a_rule_hides_earlier_slots(options: dict[str, int], first: int) -> None:
    """At position 150 each rule lets a query see the slots from `first` on: earlier ones may hold anything."""
    q, keys, values, positions = draw(1, 4, 2, 32, 200, [150])
    before = run([q, keys, values, positions], 0.2, **options).outputs[0]
    keys[..., :first], values[:, :, :first] = 1e30, -1e30
    np.testing.assert_array_equal(run([q, keys, values, positions], 0.2, **options).outputs[0], before)
    values[:, :, first] += 1.0
    assert not np.array_equal(run([q, keys, values, positions], 0.2, **options).outputs[0], before)


def call(*shapes: tuple[int, ...], **attributes: object) -> SimpleNamespace:
    """What a walker hands to `bind`."""
    inputs = tuple(TensorSpec(shape=shape, dtype="float32") for shape in shapes)
    return SimpleNamespace(operation="attention_decode", module=None, inputs=inputs, attributes=attributes)


Q, K, V, POSITIONS = (2, 8, 1, 64), (2, 2, 64, 32), (2, 2, 32, 64), (2,)


PLAIN = {"scale": 0.125, "softcap": None, "window_before": None, "chunk_size": None}


def test_bind_takes_what_the_call_says() -> None:
    """Scale, rules and cap are the call's; what it leaves open is no bound, and the scale 1 / sqrt(D)."""
    assert RECIPE.recipe.bind(call(Q, K, V, POSITIONS)).attributes == PLAIN
    said = {"window_before": 3, "chunk_size": 8, "softcap": 30.0}
    found = RECIPE.recipe.bind(call(Q, K, V, POSITIONS, scaling=0.5, **said))
    assert found.attributes == {**PLAIN, **said, "scale": 0.5}


def test_bind_accepts_biases_sinks_and_narrow_values() -> None:
    """Additive biases over the slots, sinks, and values of another head size are bound."""
    biases = ((2, 1, 1, 32), (1, 8, 1, 32))
    assert RECIPE.recipe.bind(call(Q, K, (2, 2, 32, 48), POSITIONS, *biases, (8,))) is not None


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(call(Q, V, V, POSITIONS), id="keys not transposed"),
        pytest.param(call((2, 8, 2, 64), K, V, POSITIONS), id="two tokens"),
        pytest.param(call((2, 9, 1, 64), K, V, POSITIONS), id="uneven groups"),
        pytest.param(call((2, 130, 1, 64), K, V, POSITIONS), id="more than 128 heads"),
        pytest.param(call(Q, K, V, POSITIONS, (2, 1, 32, 32)), id="a bias of many queries"),
        pytest.param(call(Q, K, V, (1,)), id="positions of another batch"),
    ],
)
def test_bind_refuses(refused: SimpleNamespace) -> None:
    """Anything else than attention of one token over its cache is not bound."""
    assert RECIPE.recipe.bind(refused) is None


@pytest.mark.parametrize(
    "rules", [{}, {"window_before": 2}, {"chunk_size": 3}, {"softcap": 2.0}, {"sinks": True}, {"bias": True}]
)
def test_a_decode_step_equals_the_last_row_of_prefill(rules: dict[str, Any]) -> None:
    """`forward` over a cache filled with a prompt gives what prefill attention gives its last token."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 5, 8, generator=generator)
    k, v = torch.randn(2, 2, 3, 5, 8, generator=generator).unbind(0)
    bias = torch.randn(2, 1, 1, 16, generator=generator) if rules.get("bias") else None
    sinks = torch.randn(6, generator=generator) if rules.get("sinks") else None
    options = {**PLAIN, "scale": 0.3, **{name: rule for name, rule in rules.items() if name in PLAIN}}
    prefill = Registry()["attention"]
    expected, _ = prefill.recipe.forward(
        prefill.reference, {}, {"is_causal": True, **options}, None, q, k, v,
        None if bias is None else bias[..., :5], s_aux=sinks,
    )  # fmt: skip

    k_cache, v_cache = torch.full((2, 3, 8, 16), 7.0), torch.full((2, 3, 16, 8), 7.0)
    k_cache[..., :5], v_cache[:, :, :5] = k.transpose(2, 3), v
    positions = torch.tensor([4, 4], dtype=torch.int32)
    out, weights = RECIPE.recipe.forward(
        RECIPE.reference, {}, options, None, q[:, :, -1:], k_cache, v_cache, positions, bias, s_aux=sinks
    )
    torch.testing.assert_close(out, expected[:, -1:], rtol=0, atol=1e-6)
    assert weights is None
