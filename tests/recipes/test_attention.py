"""What is special to attention over sequences: what is seen, work, memory, stability, and what `bind` accepts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel
from neuron_port.types import TensorSpec

SBUF_LIMIT_BYTES = (192 - 16) * 1024  # gen2, per partition, less what the compiler keeps
RECIPE = Registry()["attention"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "attention", "attention/kernel.py")


def draw(
    batch: int, tokens: int, query_heads: int, kv_heads: int, head_dim: int, dtype: Any = np.float32
) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    heads = (query_heads, kv_heads, kv_heads)
    return [generator.standard_normal((batch, tokens, count, head_dim)).astype(dtype) for count in heads]


def run(arrays: list[Any], scale: float, target: str = "inf2", **options: Any) -> KernelRun:
    return run_kernel(KERNEL, *arrays, scale=scale, target=target, **options)


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, sees: Any) -> np.ndarray:
    """Attention in float64, one query and head at a time, over the keys that it sees and no others."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    batch, tokens, query_heads, _ = q.shape
    group = query_heads // k.shape[2]
    out = np.empty((*q.shape[:3], v.shape[3]))
    for b in range(batch):
        for head in range(query_heads):
            for token in range(tokens):
                seen = [key for key in range(k.shape[1]) if sees(token, key)]
                scores = scale * k[b, seen, head // group] @ q[b, token, head]
                weights = np.exp(scores - scores.max())
                out[b, token, head] = weights @ v[b, seen, head // group] / weights.sum()
    return out


def causal(token: int, key: int) -> bool:
    return key <= token


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize(
    "sizes", [(2, 1, 4, 2, 8), (1, 20, 6, 2, 16), (1, 128, 4, 1, 24), (1, 131, 9, 3, 64), (1, 300, 2, 2, 128)]
)
def test_each_token_attends_to_itself_and_before(sizes: tuple[int, ...], target: str) -> None:
    """The output equals attention computed query by query in float64."""
    arrays = draw(*sizes)
    out = run(arrays, 0.3, target).outputs[0]
    # Scores up to 25 are rounded at 2^-20, outputs up to 3: a few times 1e-6.
    np.testing.assert_allclose(out, attended(*arrays, 0.3, causal), rtol=0, atol=1e-5)


RULES = {
    "everything": ({"is_causal": False}, lambda i, j: True),
    "window": ({"window_before": 37}, lambda i, j: i - 37 <= j <= i),
    "only itself": ({"window_before": 0}, lambda i, j: j == i),
    "window on both sides": (
        {"is_causal": False, "window_before": 5, "window_after": 150},
        lambda i, j: i - 5 <= j <= i + 150,
    ),
    "window ahead": ({"is_causal": False, "window_after": 3}, lambda i, j: j <= i + 3),
    "chunks of tiles": ({"chunk_size": 128}, lambda i, j: j <= i and i // 128 == j // 128),
    "chunks across tiles": ({"chunk_size": 100}, lambda i, j: j <= i and i // 100 == j // 100),
    "chunks in a window": (
        {"is_causal": False, "chunk_size": 90, "window_before": 20},
        lambda i, j: j >= i - 20 and i // 90 == j // 90,
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_hides_what_it_says(rule: str) -> None:
    """Each rule equals a softmax over exactly the keys that its formula names, and is not plain causality."""
    options, sees = RULES[rule]
    arrays = draw(1, 270, 2, 1, 16)
    out = run(arrays, 0.3, **options).outputs[0]
    np.testing.assert_allclose(out, attended(*arrays, 0.3, sees), rtol=0, atol=5e-6)
    assert not np.allclose(out, attended(*arrays, 0.3, causal), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "hidden"), [({}, slice(100, None)), ({"window_before": 10}, slice(0, 89))]
)
def test_hidden_tokens_do_not_matter(options: dict[str, int], hidden: slice) -> None:
    """Whatever values stand where a token does not look, even huge ones, its output keeps every bit."""
    q, k, v = draw(1, 150, 4, 2, 32)
    before = run([q, k, v], 0.2, **options).outputs[0]
    k[:, hidden], v[:, hidden] = 1e4, -1e4
    after = run([q, k, v], 0.2, **options).outputs[0]
    np.testing.assert_array_equal(after[:, 99], before[:, 99])
    assert not np.array_equal(after[:, 50], before[:, 50]) or "window_before" not in options
    assert not np.array_equal(after, before)


def test_a_late_giant_takes_over() -> None:
    """A key far down the prompt that outweighs all before it takes over the sum without overflow."""
    q, k, v = draw(1, 1200, 1, 1, 16)
    q[:] = 1.0
    k[0, 1100] = 20.0
    out = run([q, k, v], 1.0).outputs[0]
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[0, 1100:, 0], np.broadcast_to(v[0, 1100, 0], (100, 16)), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_large_scores_are_stable(dtype: Any) -> None:
    """Inputs thirty times the usual give scores in the thousands, finite outputs and the right winners."""
    q, k, v = draw(1, 140, 2, 1, 64, dtype)
    arrays = [30 * q, 30 * k, v]
    out = run(arrays, 64**-0.5).outputs[0].astype(np.float64)
    # Scores near 7000 carry an error of 7000 * 2^-24 and a few more from the sum over 64 products.
    allowed = 5e-3 if dtype is np.float32 else 2e-2
    np.testing.assert_allclose(out, attended(*arrays, 64**-0.5, causal), rtol=0, atol=allowed)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_sink_takes_weight_and_gives_nothing(softcap: float | None) -> None:
    """A sink shrinks each head's output by exp(sink) / (its sum + exp(sink)); a huge one leaves zero."""
    arrays = draw(1, 30, 2, 1, 16)
    sinks = np.array([1.5, 200.0], np.float32)
    plain = run(arrays, 0.3, softcap=softcap).outputs[0]
    with_sinks = run([*arrays, None, None, sinks], 0.3, softcap=softcap).outputs[0]
    scores = 0.3 * np.einsum("shd,td->sht", arrays[0][0], arrays[1][0, :, 0]).astype(np.float64)
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    scores = np.where(np.tril(np.ones((30, 30), bool))[:, None], scores, -np.inf)
    total = np.exp(scores).sum(-1)
    expected = plain[0] * (total / (total + np.exp(sinks.astype(np.float64))))[..., None]
    np.testing.assert_allclose(with_sinks[0], expected, rtol=0, atol=2e-6)
    assert np.abs(with_sinks[0, :, 1]).max() < 1e-30


def test_biases_add_up() -> None:
    """A padding bias hides keys from all, and a position bias adds to each head's scores, as in one sum of both."""
    arrays = draw(2, 140, 4, 2, 64)
    generator = np.random.default_rng(1)
    hidden = generator.random((2, 1, 1, 140)) < 0.3
    padding = np.where(hidden, np.finfo(np.float32).min, 0).astype(np.float32)
    positions = generator.standard_normal((1, 4, 140, 140)).astype(np.float32)
    apart = run([*arrays, padding, positions], 0.2, is_causal=False).outputs[0]
    together = run([*arrays, np.maximum(padding + positions, -3e38)], 0.2, is_causal=False).outputs[0]
    np.testing.assert_allclose(apart, together, rtol=0, atol=2e-6)
    arrays[2][np.broadcast_to(hidden[:, 0, 0], (2, 140))] += 1e3  # values of hidden keys
    np.testing.assert_array_equal(run([*arrays, padding, positions], 0.2, is_causal=False).outputs[0], apart)


@pytest.mark.parametrize("tokens", [128, 300, 1100])
def test_no_work_above_the_diagonal(tokens: int) -> None:
    """TensorE multiplies the chunks of keys that a tile of 128 queries sees: twice with queries, once with values."""
    heads, head_dim = 2, 32
    finished = run(draw(1, tokens, heads, heads, head_dim), 0.2)
    visible, masks, rows = 0, 0, 0
    for first in range(0, tokens, 128):
        queries, end = min(128, tokens - first), min(first + 128, tokens)
        visible += queries * end
        masks += queries * queries * queries  # identity times the mask of the diagonal chunk
        rows += 66 * queries * queries + 2 * queries * end  # -maximum as rows 0, 1, 64 and 65; times ones
    products = sum(item.macs for item in finished.trace if item.opcode == "nc_matmul")
    assert products == heads * (visible * (3 * head_dim + 1) + masks + rows)


def test_a_window_skips_what_it_hides() -> None:
    """Doubling the prompt doubles the work of a window, and more than triples that of plain causality."""

    def work(tokens: int, **options: int) -> int:
        return run(draw(1, tokens, 1, 1, 32), 0.2, **options).matmul_macs

    assert work(2048, window_before=127) < 2.1 * work(1024, window_before=127)
    assert work(2048) > 3.2 * work(1024)


def test_every_byte_is_moved_once() -> None:
    """Each query, key and value is read from HBM once, whatever the number of heads that share it."""
    arrays = draw(2, 260, 8, 2, 64)
    finished = run(arrays, 0.1)
    assert finished.hbm_read_bytes == sum(array.nbytes for array in arrays)
    assert finished.hbm_write_bytes == arrays[0].nbytes


def test_short_prompts_share_partitions() -> None:
    """Sixteen tokens of eight heads in two groups run as one wave of two blocks of 64 rows."""
    finished = run(draw(1, 16, 8, 2, 64), 0.1)
    exponentials = [item for item in finished.trace if item.opcode == "activation"]
    assert [(item.operands[0][1][0], item.operands[0].elements_per_partition) for item in exponentials] == [
        (16, 128)
    ]


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((1, 160, 64, 64, 128), {}),
        ((1, 160, 71, 1, 64), {}),
        ((1, 1300, 4, 4, 128), {}),
        ((1, 160, 16, 16, 256), {}),
        ((1, 2100, 2, 1, 256), {"softcap": 50.0}),
    ],
)
def test_memory_stays_bounded(sizes: tuple[int, ...], options: dict[str, float]) -> None:
    """Heads are taken in portions that fit SBUF twice, scores in portions that fit PSUM twice."""
    finished = run(draw(*sizes), 0.1, **options)
    assert finished.peak_sbuf_bytes <= SBUF_LIMIT_BYTES
    assert finished.peak_psum_banks <= 6


@pytest.mark.parametrize("bias", [None, (1, 2, 130, 6000)])
@pytest.mark.parametrize("head_dim", [128, 256])
def test_memory_stays_bounded_at_the_limit(head_dim: int, bias: tuple[int, ...] | None) -> None:
    """The most keys that `bind` accepts fit in float32 beside everything else."""
    keys = 8192 if bias is None else 6000 * 128 // head_dim
    generator = np.random.default_rng(0)
    q = generator.standard_normal((1, 130, 2, head_dim)).astype(np.float32)
    k, v = generator.standard_normal((2, 1, keys, 1, head_dim)).astype(np.float32)
    added = [] if bias is None else [generator.standard_normal((*bias[:3], keys)).astype(np.float32)]
    finished = run([q, k, v, *added], 0.05, is_causal=False)
    assert finished.peak_sbuf_bytes <= SBUF_LIMIT_BYTES
    scores = 0.05 * k[0, :, 0].astype(np.float64) @ q[0, -1, 1].astype(np.float64)
    weights = np.exp(scores + (added[0][0, 1, -1] if added else 0.0))
    np.testing.assert_allclose(finished.outputs[0][0, -1, 1], weights @ v[0, :, 0] / weights.sum(), atol=2e-6)


REFUSED = {
    "keys, values and biases of 20000 tokens take 161012 bytes per partition": ((1, 20000, 1, 1, 128), {}),
    "soft cap 70.0, at most 60.0": ((1, 4, 1, 1, 8), {"softcap": 70.0}),
    "scale 0.0 must be positive": ((1, 4, 1, 1, 8), {"scale": 0.0}),
    "3 query heads over 2 key heads": ((1, 4, 3, 2, 8), {}),
    "head dimensions 260 and 260, at most 256": ((1, 4, 1, 1, 260), {}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_the_kernel_is_not_made_for_is_refused_by_name(message: str) -> None:
    """The message names the thing, its value and the bound."""
    sizes, options = REFUSED[message]
    with pytest.raises(Exception, match=message):
        run(draw(*sizes), **{"scale": 0.1, **options})


def test_rules_need_as_many_keys_as_queries() -> None:
    """Causality across two sequences of different lengths has no meaning and is refused; seeing all has."""
    q, k, v = draw(1, 6, 2, 2, 8)
    with pytest.raises(Exception, match="4 queries and 6 keys"):
        run([q[:, :4], k, v], 0.1)
    assert run([q[:, :4], k, v], 0.1, is_causal=False).outputs[0].shape == (1, 4, 2, 8)


def call(*shapes: tuple[int, ...], **attributes: object) -> SimpleNamespace:
    """What a walker hands to `bind`."""
    inputs = tuple(TensorSpec(shape=shape, dtype="float32") for shape in shapes)
    return SimpleNamespace(operation="attention", module=None, inputs=inputs, attributes=attributes)


Q, K = (2, 8, 5, 64), (2, 2, 5, 64)
PLAIN = {
    "scale": 0.125, "is_causal": True, "softcap": None, "window_before": None, "window_after": None,
    "chunk_size": None,
}  # fmt: skip


def test_bind_takes_what_the_call_says() -> None:
    """Scale, rules and cap are the call's; what it leaves open is no bound, and the scale 1 / sqrt(D)."""
    assert RECIPE.recipe.bind(call(Q, K, K, dropout=0.0)).attributes == PLAIN
    said = {"is_causal": False, "window_before": 3, "window_after": 4, "softcap": 30.0}
    assert RECIPE.recipe.bind(call(Q, K, K, scaling=0.5, **said)).attributes == {
        **PLAIN,
        **said,
        "scale": 0.5,
    }


@pytest.mark.parametrize(
    "accepted",
    [
        pytest.param(call(Q, K, (2, 2, 5, 32)), id="narrower values"),
        pytest.param(call(Q, (2, 2, 9, 64), (2, 2, 9, 64), is_causal=False), id="across sequences"),
        pytest.param(call(Q, K, K, (2, 1, 5, 5), (1, 8, 1, 5), (8,)), id="biases and sinks"),
        pytest.param(call((2, 8, 5, 192), (2, 8, 5, 192), (2, 8, 5, 128)), id="heads of 192"),
    ],
)
def test_bind_accepts(accepted: SimpleNamespace) -> None:
    """Variants that the kernel computes are bound."""
    assert RECIPE.recipe.bind(accepted) is not None


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(call((2, 9, 5, 64), K, K), id="uneven groups"),
        pytest.param(call((2, 8, 5, 260), (2, 2, 5, 260), (2, 2, 5, 260)), id="head dimension"),
        pytest.param(call(Q, (2, 2, 9, 64), (2, 2, 9, 64)), id="causal across sequences"),
        pytest.param(call(Q, K, K, (2, 1, 5, 1)), id="bias without keys"),
        pytest.param(call(Q, K, K, (2, 3, 5, 5)), id="bias of other heads"),
        pytest.param(call(Q, K, K, softcap=80.0), id="soft cap beyond the range of exp"),
        pytest.param(call((1, 1, 20000, 128), *[(1, 1, 20000, 128)] * 2), id="more keys than fit"),
    ],
)
def test_bind_refuses(refused: SimpleNamespace) -> None:
    """What the kernel cannot take is not bound."""
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
    for bias, attributes in ((None, PLAIN), (mask, {**PLAIN, "is_causal": False})):
        options = {**attributes, "scale": 0.3}
        out, weights = RECIPE.recipe.forward(
            RECIPE.reference, {}, options, module, q, k, v, bias, scaling=0.3
        )
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
        assert weights is None


def test_sinks_and_cap_equal_transformers() -> None:
    """Around the reference, `forward` equals gpt-oss's attention with sinks and gemma2's with a soft cap."""
    gpt_oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    gemma2 = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 5, 8, generator=generator)
    k, v = torch.randn(2, 2, 3, 5, 8, generator=generator).unbind(0)
    sinks = torch.randn(6, generator=generator)
    mask = torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)[None, None]
    module = SimpleNamespace(num_key_value_groups=2, training=False, sinks=sinks, head_dim=8)
    with_sinks = gpt_oss.eager_attention_forward(module, q, k, v, mask, scaling=0.3)[0]
    out, _ = RECIPE.recipe.forward(
        RECIPE.reference, {}, {**PLAIN, "scale": 0.3}, module, q, k, v, None, s_aux=sinks
    )
    torch.testing.assert_close(out, with_sinks, rtol=0, atol=1e-6)
    capped = gemma2.eager_attention_forward(module, q, k, v, mask, scaling=0.3, softcap=2.0)[0]
    options = {**PLAIN, "scale": 0.3, "softcap": 2.0}
    out, _ = RECIPE.recipe.forward(RECIPE.reference, {}, options, module, q, k, v, None)
    torch.testing.assert_close(out, capped, rtol=0, atol=1e-6)
