"""What is special to prefill attention: causality, work, memory, stability, and its Triton source."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel
from neuron_port.types import TensorSpec

SBUF_LIMIT_BYTES = (192 - 16) * 1024  # gen2, per partition, less what the compiler keeps
RECIPE = Registry()["attention_prefill"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "attention_prefill", "attention_prefill/kernel.py")


def draw(batch: int, tokens: int, query_heads: int, kv_heads: int, head_dim: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    heads = (query_heads, kv_heads, kv_heads)
    return [generator.standard_normal((batch, tokens, count, head_dim)).astype(np.float32) for count in heads]


def run(arrays: list[np.ndarray], scale: float, target: str = "inf2") -> KernelRun:
    return run_kernel(KERNEL, *arrays, scale=scale, target=target)


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Attention in float64, one query and head at a time, over the keys that it may see and no others."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    batch, tokens, query_heads, _ = q.shape
    group = query_heads // k.shape[2]
    out = np.empty_like(q)
    for b in range(batch):
        for head in range(query_heads):
            for token in range(tokens):
                scores = scale * k[b, : token + 1, head // group] @ q[b, token, head]
                weights = np.exp(scores - scores.max())
                out[b, token, head] = weights @ v[b, : token + 1, head // group] / weights.sum()
    return out


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize(
    "sizes", [(2, 1, 4, 2, 8), (1, 20, 6, 2, 16), (1, 128, 4, 1, 24), (1, 131, 9, 3, 64), (1, 300, 2, 2, 128)]
)
def test_each_token_attends_to_itself_and_before(sizes: tuple[int, ...], target: str) -> None:
    """The output equals attention computed query by query in float64."""
    arrays = draw(*sizes)
    out = run(arrays, 0.3, target).outputs[0]
    np.testing.assert_allclose(out, attended(*arrays, 0.3), rtol=0, atol=5e-6)


def test_later_tokens_do_not_matter() -> None:
    """Whatever follows a token, even huge values, its output keeps every bit."""
    q, k, v = draw(1, 150, 4, 2, 32)
    before = run([q, k, v], 0.2).outputs[0]
    k[:, 100:], v[:, 100:] = 1e4, -1e4
    after = run([q, k, v], 0.2).outputs[0]
    np.testing.assert_array_equal(after[:, :100], before[:, :100])
    assert not np.array_equal(after[:, 100:], before[:, 100:])


def test_running_maximum_survives_a_late_giant() -> None:
    """A key far down the prompt that outweighs all before it takes over the sum without overflow."""
    q, k, v = draw(1, 1200, 1, 1, 16)
    q[:] = 1.0
    k[0, 1100] = 20.0
    out = run([q, k, v], 1.0).outputs[0]
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[0, 1100:, 0], np.broadcast_to(v[0, 1100, 0], (100, 16)), atol=1e-6)


def test_large_scores_are_stable() -> None:
    """Inputs thirty times the usual give scores in the thousands, finite outputs and the right winners."""
    q, k, v = draw(1, 140, 2, 1, 64)
    arrays = [30 * q, 30 * k, v]
    out = run(arrays, 64**-0.5).outputs[0]
    # Scores near 7000 carry an error of 7000 * 2^-24 and a few more from the sum over 64 products.
    np.testing.assert_allclose(out, attended(*arrays, 64**-0.5), rtol=0, atol=5e-3)


@pytest.mark.parametrize("tokens", [128, 300, 1100])
def test_no_work_above_the_diagonal(tokens: int) -> None:
    """TensorE multiplies the key chunks that a tile of 128 queries can see, and no others."""
    heads, head_dim = 2, 32
    finished = run(draw(1, tokens, heads, heads, head_dim), 0.2)
    visible = sum(
        (min(first + 128, tokens) - first) * min(first + 128, tokens) for first in range(0, tokens, 128)
    )
    products = sum(item.macs for item in finished.trace if item.opcode == "nc_matmul")
    assert products == 2 * heads * visible * head_dim


def test_every_byte_is_moved_once() -> None:
    """Each query, key and value is read from HBM once, whatever the number of heads that share it."""
    arrays = draw(2, 260, 8, 2, 64)
    finished = run(arrays, 0.1)
    assert finished.hbm_read_bytes == sum(array.nbytes for array in arrays)
    assert finished.hbm_write_bytes == arrays[0].nbytes


def test_short_prompts_share_partitions() -> None:
    """Sixteen tokens of eight heads in two groups run as two row blocks of 64 partitions."""
    finished = run(draw(1, 16, 8, 2, 64), 0.1)
    exponentials = [item for item in finished.trace if item.opcode == "activation"]
    assert [item.operands[0][1][0] for item in exponentials] == [64, 64]


@pytest.mark.parametrize("sizes", [(1, 160, 64, 64, 128), (1, 160, 71, 1, 64), (1, 1300, 4, 4, 128)])
def test_memory_stays_bounded(sizes: tuple[int, ...]) -> None:
    """Heads are taken in portions that fit SBUF, scores in portions that fit half of PSUM."""
    finished = run(draw(*sizes), 0.1)
    assert finished.peak_sbuf_bytes <= SBUF_LIMIT_BYTES
    assert finished.peak_psum_banks <= 4


@pytest.mark.slow
def test_memory_stays_bounded_at_8192_tokens() -> None:
    """The longest prompt that a preset offers fits in float32, and its last token attends to the first."""
    arrays = draw(1, 8192, 1, 1, 128)
    finished = run(arrays, 0.05)
    assert finished.peak_sbuf_bytes <= SBUF_LIMIT_BYTES
    q, k, v = (array[0, :, 0].astype(np.float64) for array in arrays)
    weights = np.exp(0.05 * k @ q[-1])
    np.testing.assert_allclose(finished.outputs[0][0, -1, 0], weights @ v / weights.sum(), atol=1e-6)


def test_a_prompt_beyond_memory_is_refused_by_name() -> None:
    """20,000 float32 tokens do not fit; the message says what takes how much."""
    arrays = [np.zeros((1, 20000, 1, 128), dtype=np.float32)] * 3
    with pytest.raises(Exception, match="keys and values of 20000 tokens take 160384 bytes per partition"):
        run(arrays, 0.1)


def call(*shapes: tuple[int, ...], module: object = None, **attributes: object) -> SimpleNamespace:
    """What a walker hands to `bind`."""
    inputs = tuple(TensorSpec(shape=shape, dtype="float32") for shape in shapes)
    return SimpleNamespace(operation="attention", module=module, inputs=inputs, attributes=attributes)


Q, K = (2, 8, 5, 64), (2, 2, 5, 64)


def test_bind_takes_the_calls_own_scale() -> None:
    """The scale is the call's, or 1 / sqrt(D) where the call leaves it open."""
    assert RECIPE.recipe.bind(call(Q, K, K, scaling=0.5)).attributes == {"scale": 0.5}
    assert RECIPE.recipe.bind(call(Q, K, K, dropout=0.0)).attributes == {"scale": 0.125}


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(call(Q, K, K, sliding_window=4096), id="sliding window"),
        pytest.param(
            call(Q, K, K, module=SimpleNamespace(sliding_window=4096)), id="sliding window of the module"
        ),
        pytest.param(call(Q, K, K, softcap=50.0), id="soft cap"),
        pytest.param(call(Q, K, K, module=SimpleNamespace(sinks=torch.zeros(8))), id="sinks"),
        pytest.param(call(Q, K, K, **{"tensor:s_aux": True}), id="a tensor of its own"),
        pytest.param(call(Q, K, K, (2, 1, 5, 5)), id="a mask of its own"),
        pytest.param(call(Q, K, K, is_causal=False), id="not causal"),
        pytest.param(call(Q, K, K, module=SimpleNamespace(is_causal=False)), id="module not causal"),
        pytest.param(call((2, 9, 5, 64), K, K), id="uneven groups"),
        pytest.param(call((2, 8, 5, 192), (2, 2, 5, 192), (2, 2, 5, 192)), id="head dimension"),
        pytest.param(call(Q, K, (2, 2, 5, 32)), id="narrower values"),
        pytest.param(call(Q, (2, 2, 9, 64), (2, 2, 9, 64)), id="more keys than queries"),
    ],
)
def test_bind_refuses(refused: SimpleNamespace) -> None:
    """Anything else than plain causal attention over the prompt itself is not bound."""
    assert RECIPE.recipe.bind(refused) is None


def test_forward_speaks_the_attention_interface() -> None:
    """Around the reference, `forward` equals transformers' eager attention with a causal mask."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 5, 8, generator=generator)
    k, v = torch.randn(2, 2, 3, 5, 8, generator=generator).unbind(0)
    mask = torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)[None, None]
    module = SimpleNamespace(num_key_value_groups=2, training=False)
    expected, _ = llama.eager_attention_forward(module, q, k, v, mask, scaling=0.3)
    out, weights = RECIPE.recipe.forward(
        RECIPE.reference, {}, {"scale": 0.3}, module, q, k, v, mask, scaling=0.3
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    assert weights is None
