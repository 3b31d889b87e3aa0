"""What is special to absorbed latent attention: it equals the expanded form, and reads the cache once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel

SBUF_LIMIT_BYTES = (192 - 16) * 1024  # gen2, per partition, less what the compiler keeps
RECIPE = Registry()["mla_decode"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "mla_decode", "mla_decode/kernel.py")


def draw(batch: int, heads: int, slots: int, latent_dim: int = 160, **sizes: int) -> list[np.ndarray]:
    """The kernel's tensors, with N 24, P 10, E 20 unless sizes say otherwise."""
    nope_dim, rope_dim, value_dim = sizes.get("N", 24), sizes.get("P", 10), sizes.get("E", 20)
    generator = np.random.default_rng(0)
    shapes = [
        (batch, heads, nope_dim), (batch, heads, rope_dim), (batch, slots, latent_dim), (batch, slots, rope_dim),
        (nope_dim, heads, latent_dim), (latent_dim, heads, value_dim),
    ]  # fmt: skip
    tensors = [generator.standard_normal(shape).astype(np.float32) for shape in shapes]
    tensors[4] /= np.float32(np.sqrt(nope_dim))
    return [*tensors, generator.integers(0, slots, batch).astype(np.int32)]


def run(tensors: list[Any], target: str = "inf2") -> KernelRun:
    return run_kernel(KERNEL, *tensors, scale=0.2, target=target)


def expanded(tensors: list[np.ndarray]) -> np.ndarray:
    """Attention in float64 over every head's own keys and values, made from the latents, one head at a time."""
    q_nope, q_rope, latents, rope_keys, key_up, value_up = (
        tensor.astype(np.float64) for tensor in tensors[:6]
    )
    batch, heads, _ = q_nope.shape
    out = np.empty((batch, heads, value_up.shape[2]))
    for b in range(batch):
        end = tensors[6][b] + 1
        for head in range(heads):
            keys = np.concatenate([latents[b, :end] @ key_up[:, head].T, rope_keys[b, :end]], axis=1)
            scores = 0.2 * keys @ np.concatenate([q_nope[b, head], q_rope[b, head]])
            weights = np.exp(scores - scores.max())
            out[b, head] = weights / weights.sum() @ (latents[b, :end] @ value_up[:, head])
    return out


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 130), (2, 16, 577), (1, 128, 140)])
def test_equals_attention_over_expanded_keys_and_values(sizes: tuple[int, ...], target: str) -> None:
    """Nothing is lost by never making a head's keys and values."""
    tensors = draw(*sizes)
    expected = expanded(tensors)
    np.testing.assert_allclose(
        run(tensors, target).outputs[0], expected, rtol=0, atol=4e-6 * abs(expected).max()
    )


@pytest.mark.parametrize("position", [0, 127, 128, 300])
def test_slots_beyond_the_position_do_not_matter(position: int) -> None:
    """Whatever finite values stand beyond the position, every bit of the output stays; at the position it does not."""
    tensors = draw(1, 4, 400)
    tensors[6][:] = position
    before = run(tensors).outputs[0]
    tensors[2][:, position + 1 :], tensors[3][:, position + 1 :] = 1e9, -1e9
    np.testing.assert_array_equal(run(tensors).outputs[0], before)
    tensors[2][:, position] += 1.0
    assert not np.array_equal(run(tensors).outputs[0], before)


def test_every_byte_is_read_once() -> None:
    """Caches and up-projections are read once for all heads; positions go to all 128 partitions."""
    tensors = draw(2, 16, 700)
    finished = run(tensors)
    assert finished.hbm_read_bytes == sum(tensor.nbytes for tensor in tensors[:6]) + 128 * tensors[6].nbytes
    assert finished.hbm_write_bytes == finished.outputs[0].nbytes


def test_memory_stays_bounded() -> None:
    """As many float32 slots as are accepted fit with all heads of DeepSeek-V3; one more chunk is refused by name."""
    finished = run(draw(1, 128, 5120, 512, N=128, P=64, E=128))
    assert finished.peak_sbuf_bytes <= SBUF_LIMIT_BYTES
    assert finished.peak_psum_banks <= 6
    with pytest.raises(Exception, match="latents of 5121 slots take 83968 bytes per partition"):
        run(draw(1, 1, 5121, 512))


def test_no_call_is_bound() -> None:
    """No cut point offers what this recipe needs, and it does not pretend: any call is left to others."""
    assert RECIPE.recipe.bindings(object()) == ()
