"""What is special to the rope recipe: layouts, traffic, memory, and its Triton source."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuron_port.recipe import Binding
from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel
from neuron_port.types import TensorSpec

SBUF_LIMIT_BYTES = (192 - 16) * 1024  # gen2, per partition, less what the compiler keeps
RECIPE = Registry()["rope"]
KERNEL = load_kernel_source(RECIPE.kernel.source, "rope", "rope/kernel.py")


def draw(batch: int, sequence: int, query_heads: int, key_heads: int, head_dim: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = [(query_heads, head_dim), (key_heads, head_dim), (head_dim,), (head_dim,)]
    return [generator.standard_normal((batch, sequence, *rest)).astype(np.float32) for rest in shapes]


def run(arrays: list[np.ndarray], target: str = "inf2") -> KernelRun:
    return run_kernel(KERNEL, *arrays, target=target)


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotation in float64, pair by pair: (x_i, x_{i + D/2}) for each i."""
    x, cos, sin = x.astype(np.float64), cos.astype(np.float64), sin.astype(np.float64)
    half = x.shape[-1] // 2
    out = np.empty_like(x)
    for i in range(half):
        j = i + half
        out[..., i] = x[..., i] * cos[..., None, i] - x[..., j] * sin[..., None, i]
        out[..., j] = x[..., j] * cos[..., None, j] + x[..., i] * sin[..., None, j]
    return out


class Call:
    """What a walker hands to `bind`."""

    module = None

    def __init__(self, *shapes: tuple[int, ...], **attributes: object) -> None:
        self.operation = "rope"
        self.inputs = tuple(TensorSpec(shape=shape, dtype="float32") for shape in shapes)
        self.attributes = attributes


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 32, 8, 128), (2, 65, 9, 3, 64), (1, 129, 5, 1, 2), (3, 7, 6, 4, 10)]
)
def test_rotates_pairs_of_halves(sizes: tuple[int, ...], target: str) -> None:
    """Queries and keys equal the pairwise rotation in float64, both halves of cos and sin independent."""
    q, k, cos, sin = draw(*sizes)
    q_out, k_out = run([q, k, cos, sin], target).outputs
    np.testing.assert_allclose(q_out, rotated(q, cos, sin), rtol=0, atol=2e-6)
    np.testing.assert_allclose(k_out, rotated(k, cos, sin), rtol=0, atol=2e-6)


def test_rotation_of_norms_is_exact_for_true_angles() -> None:
    """With cos and sin of one angle per pair, the length of every head stays what it was."""
    q, k, angle, _ = draw(1, 20, 4, 2, 8)
    angle[..., 4:] = angle[..., :4]
    q_out, _ = run([q, k, np.cos(angle), np.sin(angle)]).outputs
    np.testing.assert_allclose(np.linalg.norm(q_out, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-6)


def test_every_byte_is_moved_once() -> None:
    """A prompt's queries, keys and tables are read once, and queries and keys written once."""
    arrays = draw(1, 256, 8, 2, 64)
    finished = run(arrays)
    assert finished.hbm_read_bytes == sum(array.nbytes for array in arrays)
    assert finished.hbm_write_bytes == arrays[0].nbytes + arrays[1].nbytes


def test_decoding_spreads_heads_over_partitions() -> None:
    """A token of 32 query and 8 key heads occupies 8 partitions, in one pass of four instructions."""
    finished = run(draw(1, 1, 32, 8, 64))
    products = [item for item in finished.trace if item.opcode == "tensor_tensor"]
    assert len(products) == 4
    assert {item.operands[0][1][0] for item in products} == {8}


@pytest.mark.parametrize("sizes", [(1, 128, 128, 128, 128), (1, 4096, 32, 8, 128)])
def test_memory_stays_bounded(sizes: tuple[int, ...]) -> None:
    """SBUF suffices with room for two tiles in flight, whatever the number of heads or tokens."""
    assert 2 * run(draw(*sizes)).peak_sbuf_bytes <= SBUF_LIMIT_BYTES


def test_bind_offers_the_half_rotation_first() -> None:
    """Tables of one batch row, heads on axis 1, an even head dimension: half rotation is tried first."""
    first = RECIPE.recipe.bind(Call((2, 8, 5, 64), (2, 2, 5, 64), (1, 5, 64), (1, 5, 64)))[0]
    assert first == Binding(attributes={"pairs": "half", "tables": "halves", "heads_axis": 1})


@pytest.mark.parametrize(
    ("call", "axes"),
    [
        pytest.param(Call((2, 8, 5, 64), (2, 2, 5, 64), (1, 5, 64), (1, 5, 64)), {1}, id="axis 1"),
        pytest.param(Call((2, 5, 8, 64), (2, 5, 2, 64), (1, 5, 64), (1, 5, 64)), {2}, id="axis 2"),
        pytest.param(Call((5, 8, 64), (5, 8, 64), (5, 64), (5, 64)), {2}, id="no batch"),
        pytest.param(Call((2, 5, 5, 64), (2, 5, 5, 64), (1, 5, 64), (1, 5, 64)), {1, 2}, id="either"),
        pytest.param(
            Call((2, 5, 5, 8), (2, 5, 5, 8), (1, 5, 8), (1, 5, 8), unsqueeze_dim=2),
            {2},
            id="said by the call",
        ),
    ],
)
def test_bind_finds_the_axis_of_the_heads(call: Call, axes: set[int]) -> None:
    """Heads are on the axis that leaves the tables' tokens on the other one."""
    assert {binding.attributes["heads_axis"] for binding in RECIPE.recipe.bind(call)} == axes


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(Call((2, 8, 5, 63), (2, 2, 5, 63), (1, 5, 63), (1, 5, 63)), id="odd head dimension"),
        pytest.param(
            Call((2, 8, 5, 32), (2, 2, 5, 32), (1, 5, 64), (1, 5, 64)), id="tables wider than heads"
        ),
        pytest.param(
            Call((2, 8, 5, 64), (2, 2, 5, 64), (3, 5, 64), (3, 5, 64)), id="tables of another batch"
        ),
        pytest.param(Call((2, 8, 5, 64), (2, 2, 5, 64), (1, 5, 64), (1, 5, 32)), id="unlike tables"),
    ],
)
def test_bind_refuses(call: Call) -> None:
    """What the tables cannot turn is not bound."""
    assert RECIPE.recipe.bind(call) is None


def test_forward_speaks_the_models_convention() -> None:
    """Around the reference, `forward` equals transformers' function on transposed heads and shared tables."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 6, 5, 8, generator=generator), torch.randn(2, 3, 5, 8, generator=generator)
    cos, sin = torch.randn(2, 1, 5, 8, generator=generator).unbind(0)
    expected = llama.apply_rotary_pos_emb(q, k, cos, sin)
    for ours, theirs in zip(RECIPE.recipe.forward(RECIPE.reference, {}, {}, q, k, cos, sin), expected):
        assert torch.equal(ours, theirs)
