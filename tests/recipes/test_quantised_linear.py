"""What is special to linear_int8 and linear_fp8: bytes cross HBM, what fills them, and which layers they serve."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from neuron_port.checkpoint.quantization import Fp8Linear, Int8Linear, QuantizedLinear
from neuron_port.match.probe import RELATIVE_LIMIT, probe
from neuron_port.registry import Registry
from neuron_port.simulator import KernelRun, load_kernel_source, run_kernel
from neuron_port.walk.calls import Call

REGISTRY = Registry()
SBUF_LIMIT_BYTES = (192 - 16) * 1024
KERNELS = {
    name: load_kernel_source(REGISTRY[name].kernel.source, name, f"{name}/kernel.py")
    for name in ("linear_int8", "linear_fp8")
}


def draw(name: str, tokens: int, features: int, columns: int, dtype: Any = np.float32) -> list[np.ndarray]:
    """x [T, K], weight [K, N] as bytes, scale [N], bias [N]."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((tokens, features), dtype=np.float32).astype(dtype)
    weight = generator.integers(-127, 128, (features, columns)).astype(np.int8)
    if name == "linear_fp8":
        weight = generator.standard_normal((features, columns)).astype(ml_dtypes.float8_e4m3).view(np.uint8)
    scale = (generator.random(columns) + 0.5).astype(np.float32) * (0.01 if name == "linear_int8" else 1.0)
    return [x, weight, scale, generator.standard_normal(columns, dtype=np.float32).astype(dtype)]


def run(name: str, arrays: list[np.ndarray], target: str = "inf2", **attributes: Any) -> KernelRun:
    return run_kernel(KERNELS[name], *arrays, target=target, **attributes)


@pytest.mark.parametrize("target", ["inf2", "trn2"])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 256, 8448), id="one token, two passes"),
        pytest.param((5, 384, 640), id="few tokens"),
        pytest.param((2, 256, 2100), id="few tokens, a tail of columns"),
        pytest.param((4, 577, 256), id="few tokens, a tail of features"),
        pytest.param((130, 300, 515), id="many tokens"),
    ],
)
@pytest.mark.parametrize("name", KERNELS)
def test_equals_float64_formula(name: str, sizes: tuple[int, int, int], target: str) -> None:
    """Both kernels and every tail: (x @ weight) * scale + bias in float64."""
    x, weight, scale, bias = draw(name, *sizes)
    values = weight if name == "linear_int8" else weight.view(ml_dtypes.float8_e4m3)
    expected = x.astype(np.float64) @ values.astype(np.float64) * scale + bias
    output = run(name, [x, weight, scale, bias], target).outputs[0]
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6 * np.abs(expected).max() * 10)


@pytest.mark.parametrize("name", KERNELS)
def test_a_token_reads_half_of_the_bytes(name: str) -> None:
    """Weights cross HBM as bytes: half of what bfloat16 takes, each once."""
    arrays = draw(name, 1, 1024, 2048, ml_dtypes.bfloat16)
    read = run(name, arrays[:3]).hbm_read_bytes
    assert read == sum(array.nbytes for array in arrays[:3])
    assert arrays[1].nbytes == 1024 * 2048


def test_bfloat16_multiplies_float8_unconverted() -> None:
    """Beside bfloat16, float8 enters TensorE as it is; beside float32 it is converted, because it must be."""
    moved = {}
    for dtype in (np.float32, ml_dtypes.bfloat16):
        counts = run("linear_fp8", draw("linear_fp8", 1, 512, 512, dtype)[:3]).trace.counts_by_opcode()
        moved[dtype] = counts["activation"] + counts["tensor_copy"]
    assert moved[ml_dtypes.bfloat16] == 1  # the sums leave PSUM
    assert moved[np.float32] == 1 + 4  # and every 128 rows of weights are converted


@pytest.mark.parametrize(("target", "engines"), [("inf2", 2), ("trn2", 3)])
def test_engines_share_the_conversion(target: str, engines: int) -> None:
    """VectorE and ScalarE take turns, and GpSimdE where VectorE does not lock it out."""
    finished = run("linear_int8", draw("linear_int8", 1, 768, 512)[:3], target)
    converting = [item.engine for item in finished.trace if item.opcode in ("activation", "tensor_copy")]
    assert len(set(converting)) == engines
    assert len(converting) == 768 // 128 + 1  # and the sums leave PSUM


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", KERNELS)
def test_memory_stays_bounded(name: str, dtype: Any) -> None:
    """SBUF holds x^T, loads in flight and their conversions at the largest sizes; PSUM holds the sums."""
    for sizes in ((520, 14336, 64), (8, 256, 32064), (8, 2048, 8192)):
        finished = run(name, draw(name, *sizes, dtype))
        assert finished.peak_sbuf_bytes + 2 * 16 * 1024 <= SBUF_LIMIT_BYTES
        assert finished.peak_psum_banks <= 8


@pytest.mark.parametrize("name", KERNELS)
def test_weights_of_another_dtype_are_refused(name: str) -> None:
    """Bytes of the kernel's kind pass; weights in float32 are refused by name."""
    x, weight, scale, _ = draw(name, 2, 130, 40)
    run(name, [x, weight, scale])
    with pytest.raises(Exception, match="weight must be"):
        run(name, [x, weight.astype(np.float32), scale])


class Quantised(torch.nn.Module):
    """A linear layer whose weight is kept in `dtype`, with a scale for each output feature."""

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        bias: bool = True,
        column: bool = False,
        divisor: float = 1.0,
        power: int = 1,
    ) -> None:
        super().__init__()
        weight = torch.randint(-127, 128, (6, 8)) if dtype is torch.int8 else torch.randn(6, 8)
        self.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
        self.register_buffer("weight_scale", torch.rand((6, 1) if column else (6,)))
        self.bias = torch.nn.Parameter(torch.randn(6)) if bias else None
        self.divisor, self.power = divisor, power

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight_scale.reshape(-1) ** self.power / self.divisor
        product = x @ self.weight.to(x.dtype).t() * scale
        return product if self.bias is None else product + self.bias


def call(module: torch.nn.Module, features: int = 8) -> Call:
    x = torch.randn(2, 3, features)
    return Call(
        name="projection",
        operation="module",
        module=module,
        owner="Quantised",
        function=module,
        args=(x,),
        kwargs={},
    )


def agreeing(name: str, subject: Call) -> list[dict[str, Any]]:
    """Attributes of the bindings that the numeric probe accepts."""
    found = REGISTRY[name]
    return [
        dict(binding.attributes)
        for binding in found.recipe.bindings(subject)
        if max(probe(subject, found.recipe, found.reference, binding).values()) <= RELATIVE_LIMIT
    ]


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("divisor", [1.0, 127.0])
def test_the_probe_accepts_int8_layers(divisor: float, bias: bool, column: bool) -> None:
    """Scales of one or two axes, as they are or to be divided by 127, with and without bias."""
    layer = Quantised(torch.int8, bias=bias, column=column, divisor=divisor)
    assert agreeing("linear_int8", call(layer)) == [{"divisor": divisor}]


def test_the_probe_refuses_another_use_of_the_scale() -> None:
    """A layer that squares its scale has the right shapes, and agrees with no binding."""
    assert agreeing("linear_int8", call(Quantised(torch.int8, power=2))) == []


def test_the_probe_accepts_e5m2_layers() -> None:
    """float8_e5m2 has the same bits for torch and NeuronCores."""
    assert agreeing("linear_fp8", call(Quantised(torch.float8_e5m2))) == [{"form": "e5m2"}]


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        pytest.param("linear_fp8", call(Quantised(torch.float8_e4m3fn)), id="values up to 448"),
        pytest.param("linear_int8", call(Quantised(torch.int8), features=9), id="other features"),
        pytest.param("linear_int8", call(torch.nn.Linear(8, 6)), id="not quantised"),
    ],
)
def test_bind_refuses(name: str, subject: Call) -> None:
    """What the kernel cannot compute is not bound."""
    assert REGISTRY[name].recipe.bind(subject) is None


class ScaledInputs(Int8Linear):
    """The scale on the wrong axis: it multiplies input features, not outputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x * self.weight_scale, self.values(x.dtype))


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (Int8Linear, "linear_int8", [{"divisor": 1.0}]),
        (Fp8Linear, "linear_fp8", [{"form": "e4m3"}]),
        (ScaledInputs, "linear_int8", []),
    ],
)
def test_layers_of_a_weight_format(
    kind: type[QuantizedLinear], name: str, expected: list[dict[str, Any]]
) -> None:
    """What `convert --weight-format` puts in place of linear layers is taken; with the scale on inputs it is not."""
    layer = kind(8, 8, None)  # square, so that shapes cannot tell one axis from the other
    assert agreeing(name, call(layer)) == expected


@pytest.mark.parametrize(
    ("form", "dtype", "codes"),
    [("e4m3", ml_dtypes.float8_e4m3, 0x78), ("e5m2", ml_dtypes.float8_e5m2, 0x7C)],
)
def test_the_reference_decodes_every_code(form: str, dtype: Any, codes: int) -> None:
    """Every finite code of the chip's float8, subnormals and both zeros, means in the reference what it means there."""
    magnitudes = torch.arange(codes, dtype=torch.uint8)
    bits = torch.cat([magnitudes, magnitudes + 128])[None, :]
    values = REGISTRY["linear_fp8"].reference(torch.ones(1, 1), bits, torch.ones(2 * codes), form=form)
    np.testing.assert_array_equal(values.numpy(), bits.numpy().view(dtype).astype(np.float32))
