"""HLO run as torch operations equals HLO run by XLA, for every form that the emitter writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from neuron_port.build.finishing.hlo import HloError
from neuron_port.build.finishing.torch_graph import TorchGraph
from neuron_port.lower.module import Computation, Instruction, Module, Shape

pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")
torch.manual_seed(0)
F, G = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
I = torch.randint(0, 3, (2, 4), dtype=torch.int32)  # noqa: E741
TABLE = torch.randn(3, 6)
IMAGE, KERNEL = torch.randn(2, 4, 9, 9), torch.randn(6, 2, 3, 3)
POSITION = torch.tensor([2], dtype=torch.int32)

CASES: dict[str, tuple[Callable[..., object], tuple[torch.Tensor, ...]]] = {
    "arithmetic": (lambda a, b: (a * b + a / (b.abs() + 1) - b, torch.maximum(a, b), torch.minimum(a, b)), (F, G)),
    "functions": (
        lambda a: (a.exp(), a.abs().log1p(), a.tanh(), torch.sigmoid(a), torch.erf(a), a.sin(), a.cos(), -a, a.floor()),
        (F,),
    ),
    "roots": (lambda a: (a.abs().sqrt(), torch.rsqrt(a.abs() + 1), a.abs() ** 1.7, a.sign(), a.ceil(), a.round()), (F,)),
    "integers": (lambda a: (a // 2, a % 2, a << 1, a >> 1, a & 1, a | 4, ~a), (I - 1,)),
    "booleans": (lambda a, b: ((a > 0) & (b > 0), (a > 0) | (b <= 0), ~(a > 0), (a > b).any(-1), (a < b).all(0)), (F, G)),
    "products": (lambda a, b: (a @ b.transpose(1, 2), a[0] @ b[0].T, torch.einsum("ijk,ijk->ij", a, b)), (F, G)),
    "reductions": (lambda a: (a.sum(1), a.amax((0, 2)), a.amin(-1, keepdim=True), a.mean(), a.prod(1)), (F,)),
    "softmax": (lambda a: torch.softmax(a, -1), (F,)),
    "shapes": (lambda a: (a.permute(2, 0, 1).reshape(15, 4), a[:, 1:3, ::2], torch.flip(a, [1])), (F,)),
    "repeating": (lambda a: a.unsqueeze(1).expand(3, 2, 4, 5) + 0, (F,)),
    "joining": (lambda a, b: (torch.cat([a, b], 1), torch.nn.functional.pad(a, (1, 2, 0, 3), value=7.0)), (F, G)),
    "cutting": (lambda a: torch.nn.functional.pad(a, (-1, 2)), (F,)),
    "rows of a table": (lambda t, i: torch.nn.functional.embedding(i, t), (TABLE, I)),
    "elements by index": (lambda a, i: torch.gather(a[0, :2], 1, i.long()), (F, I)),
    "choice": (lambda a, b: torch.where(a > 0, a, b), (F, G)),
    "counting": (lambda a: (torch.arange(5) + a, torch.ones(4, 4).tril() * a[0, :, :4]), (F,)),
    "convolution": (lambda x, k: torch.nn.functional.conv2d(x, k, stride=2, padding=1, groups=2), (IMAGE, KERNEL)),
    "dilated convolution": (lambda x, k: torch.nn.functional.conv2d(x[:, :2], k, dilation=2), (IMAGE, KERNEL)),
    "one axis convolved": (
        lambda x, k: torch.nn.functional.conv1d(x[:, :, 0], k[:, :, 0], padding=2, groups=2), (IMAGE, KERNEL),
    ),
    "conversion": (lambda a: (a.to(torch.bfloat16), (a * 3).to(torch.int32), (a > 0).to(torch.float32)), (F,)),
    "a cache's slot": (
        lambda c, n, p: torch.ops.neuron_port.kv_write(c, n, p, 2),
        (torch.randn(1, 2, 6, 4), torch.randn(1, 2, 1, 4), POSITION),
    ),
    "a cache's slot, transposed": (
        lambda c, n, p: torch.ops.neuron_port.kv_write(c, n, p, 3),
        (torch.randn(1, 2, 4, 6), torch.randn(1, 2, 4, 1), POSITION),
    ),
    "a row of a batch": (
        lambda s, r, p: torch.ops.neuron_port.row_write(s, r, p),
        (torch.randn(4, 2, 6), torch.randn(1, 2, 3), POSITION),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_torch_computes_what_xla_computes(name: str, lower: Callable[..., Any]) -> None:
    """The same bytes give the same shapes, dtypes and values in both."""
    import neuron_port.walk.cache  # noqa: F401  (defines the operators that write caches)

    function, inputs = CASES[name]
    graph = lower(function, inputs)
    found = TorchGraph(graph.hlo)(*inputs)
    for got, expected in zip(found, graph.run(*inputs), strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, check_stride=False)


def test_an_operation_without_a_torch_form_is_named() -> None:
    """A graph that cannot be run as torch operations is refused when it is read, by the opcode."""
    array = Shape("float32", (2,))
    x = Instruction(1, "parameter", array, (), {"parameter_number": 0})
    strange = Instruction(2, "fft", array, (1,))
    module = Module("strange", (Computation(3, "main", 2, (x, strange), ("x",)),), 3)
    with pytest.raises(HloError, match="no torch form for HLO's fft"):
        TorchGraph(module.to_bytes())
