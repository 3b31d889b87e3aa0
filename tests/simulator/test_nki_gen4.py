"""NeuronCore-v4 (Trn3): its sizes, and the instructions and operators that only it has."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import TARGETS, AccumulationError, CapacityError, ConstraintError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

cmd = nisa.reduce_cmd
bf16 = ml_dtypes.bfloat16


# ---- the machines ------------------------------------------------------------------------------------------


def test_every_generation_states_its_facts():
    """Names of chips lead to their generation, and the totals of a chip follow from its cores."""
    names = {"trn1": 2, "inf2": 2, "gen2": 2, "trn2": 3, "gen3": 3, "trn3": 4, "gen4": 4}
    assert {name: target.generation for name, target in TARGETS.items()} == names
    for target in TARGETS.values():
        assert target.sbuf_usable_bytes_per_partition < target.sbuf_bytes_per_partition
        assert target.hbm_bytes_per_ns_per_core_pair == 2 * target.hbm_bytes_per_ns_per_core
        assert target.has_hwdge is (target.hwdge_blocks > 0)
        assert all(value is not None for value in target.facts().values())
    assert [TARGETS[name].dma_bytes_per_ns for name in ("trn1", "trn2", "trn3")] == [272, 368, 528]
    assert TARGETS["trn3"].sbuf_bytes_per_partition * 128 == 32 * 2**20  # trainium3_arch.rst


@pytest.mark.parametrize(("kib", "fits"), [(240, False), (239, True)])
def test_sbuf_of_gen4_is_larger_and_ends(kib, fits):
    """A tile of 239 KiB per partition fits Trn3, one of 240 does not, as 16 KiB and 8 bytes are reserved."""

    def kernel(x: Any) -> Any:
        tile = nl.ndarray((2, kib * 256), nl.float32, nl.sbuf)
        nisa.memset(tile, 0.0)
        out = nl.ndarray(tile.shape, nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    if fits:
        run_kernel(kernel, np.zeros((1, 1), np.float32), target="trn3")
    else:
        with pytest.raises(CapacityError):
            run_kernel(kernel, np.zeros((1, 1), np.float32), target="trn3")


def test_a_kernel_sees_the_generation():
    """get_nc_version names the target's generation."""
    seen = []

    def kernel(x: Any) -> Any:
        seen.append(nisa.get_nc_version())
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, x)
        return out

    run_kernel(kernel, np.zeros((1, 1), np.float32), target="trn3")
    assert seen == [nisa.nc_version.gen4]


# ---- TensorE -----------------------------------------------------------------------------------------------


def product_kernel(
    dtype: Any = nl.float32, operand: Any = nl.bfloat16, times: int = 1, cleared: float | None = None
) -> Any:
    """A kernel that multiplies a and b `times` times into one PSUM tile, which a memset may have filled."""

    def kernel(a: Any, b: Any) -> Any:
        tiles = []
        for given in (a, b):
            tile = nl.ndarray(given.shape, operand, nl.sbuf)
            nisa.dma_copy(tile, given)
            tiles.append(tile)
        product = nl.ndarray((a.shape[1], b.shape[1]), dtype, nl.psum)
        if cleared is not None:
            nisa.memset(product, cleared)
        for _ in range(times):
            nisa.nc_matmul(product, *tiles)
        result = nl.ndarray(product.shape, dtype, nl.sbuf)
        nisa.tensor_copy(result, product)
        out = nl.ndarray(product.shape, dtype, nl.shared_hbm)
        nisa.dma_copy(out, result)
        return out

    return kernel


def test_gen4_accumulates_bfloat16_rounding_each_sum(rng):
    """dst of a matmul may be bfloat16: the sum is float32 and rounded at every step; refused before gen4."""
    a, b = (rng.standard_normal((64, 16)).astype(bf16) for _ in range(2))
    once = a.astype(np.float32).T @ b.astype(np.float32)
    first = once.astype(bf16)
    expected = (first.astype(np.float32) + once).astype(bf16)
    (result,) = run_kernel(product_kernel(nl.bfloat16, times=2), a, b, target="trn3").outputs
    np.testing.assert_array_equal(result.view(np.uint16), expected.view(np.uint16))
    with pytest.raises(ConstraintError, match="must be float32"):
        run_kernel(product_kernel(nl.bfloat16), a, b, target="trn2")


def test_gen4_adds_to_psum_that_a_memset_filled(rng):
    """Undefined on NeuronCore-v2 and v3 only: on v4 the product is added to the memset's value."""
    a, b = (rng.integers(-4, 4, (32, 8)).astype(bf16) for _ in range(2))
    expected = a.astype(np.float32).T @ b.astype(np.float32) + 2.0
    (result,) = run_kernel(product_kernel(cleared=2.0), a, b, target="trn3").outputs
    np.testing.assert_array_equal(result, expected)
    with pytest.raises(AccumulationError, match="undefined on NeuronCore-v2 and v3"):
        run_kernel(product_kernel(cleared=2.0), a, b, target="trn2")


@pytest.mark.parametrize(
    ("columns", "dtype", "fits"),
    [
        (4096, nl.float32, True),
        (4098, nl.float32, False),
        (8192, nl.bfloat16, True),
        (8194, nl.bfloat16, False),
    ],
)
def test_moving_may_span_all_of_psum(columns, dtype, fits):
    """Up to 4096 columns into float32 and 8192 into bfloat16 in one matmul, and not one more."""
    a, b = np.ones((4, 2), bf16), np.ones((4, columns), bf16)
    if fits:
        (result,) = run_kernel(product_kernel(dtype), a, b, target="trn3").outputs
        assert (result.astype(np.float32) == 4).all()
    else:
        with pytest.raises((ConstraintError, CapacityError)):
            run_kernel(product_kernel(dtype), a, b, target="trn3")


@pytest.mark.parametrize(("target", "fits"), [("trn3", True), ("trn2", False)])
def test_ocp_fp8_multiplies_from_gen4_on(rng, target, fits):
    """float8_e4m3fn is an operand of nc_matmul on Trn3 and refused on Trn2."""
    a, b = (rng.uniform(-2, 2, (32, 8)).astype(ml_dtypes.float8_e4m3fn) for _ in range(2))
    if fits:
        (result,) = run_kernel(product_kernel(operand=nl.float8_e4m3fn), a, b, target=target).outputs
        np.testing.assert_allclose(result, a.astype(np.float32).T @ b.astype(np.float32), rtol=1e-6)
    else:
        with pytest.raises(ConstraintError, match="float8_e4m3fn"):
            run_kernel(product_kernel(operand=nl.float8_e4m3fn), a, b, target=target)


# ---- operators of the ALU ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("abs_max", lambda x, y: np.where(np.abs(x) > np.abs(y), x, y)),
        ("abs_min", lambda x, y: np.where(np.abs(x) < np.abs(y), x, y)),
    ],
)
def test_the_winner_by_magnitude_keeps_its_sign(on_tiles, rng, name, reference):
    """abs_max and abs_min return the signed winner, and of equals the second operand."""
    x, y = (rng.integers(-3, 4, (8, 40)).astype(np.float32) for _ in range(2))
    op = getattr(nl, name)
    result = on_tiles(lambda d, a, b: nisa.tensor_tensor(d, a, b, op), x, y, target="trn3")
    np.testing.assert_array_equal(result, reference(x, y))
    result = on_tiles(lambda d, a, b: nisa.tensor_scalar(d, a, op, -2.0), x, y, target="trn3")
    np.testing.assert_array_equal(result, reference(x, np.float32(-2.0)))


@pytest.mark.parametrize(
    ("name", "reference"), [("square", np.square), ("relu", lambda x: np.maximum(x, np.float32(0)))]
)
def test_square_and_relu_are_first_operators(on_tiles, rng, name, reference):
    """tensor_scalar takes nl.square and nl.relu as op0, followed by a second operator."""
    x = rng.standard_normal((8, 40)).astype(np.float32)
    op = getattr(nl, name)
    result = on_tiles(
        lambda d, t: nisa.tensor_scalar(d, t, op, None, op1=nl.add, operand1=1.0), x, target="trn3"
    )
    np.testing.assert_array_equal(result, reference(x) + np.float32(1))


@pytest.mark.parametrize("name", ["abs_max", "abs_min", "square", "relu"])
def test_operators_of_gen4_are_refused_before(on_tiles, name):
    """The same instruction on Trn2 names the generation that it needs."""
    x = np.ones((4, 4), np.float32)
    operand = None if name in ("square", "relu") else 1.0

    def body(d, t):
        nisa.tensor_scalar(d, t, getattr(nl, name), operand)

    on_tiles(body, x, target="trn3")
    with pytest.raises(ConstraintError, match=f"nl.{name} .* NeuronCore-v4"):
        on_tiles(body, x, target="trn2")


@pytest.mark.parametrize(
    ("priority", "target", "complaint"),
    [(0, "trn3", None), (3, "trn3", None), (4, "trn3", "0 to 3"), (0, "trn2", "NeuronCore-v4")],
)
def test_dma_priorities_are_four_and_of_gen4(priority, target, complaint):
    """priority= of dma_copy goes from 0 to 3, from Trn3 on."""

    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, x, priority=priority)
        return out

    x = np.ones((4, 4), np.float32)
    if complaint is None:
        run_kernel(kernel, x, target=target)
    else:
        with pytest.raises(ConstraintError, match=complaint):
            run_kernel(kernel, x, target=target)


# ---- exponential -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
@pytest.mark.parametrize("column", [True, False])
def test_exponential_subtracts_first(on_tiles, rng, dtype, column):
    """dst = exp(src - max_value), with a number or a column, rounded once to dst's dtype."""
    x = rng.uniform(-3, 3, (8, 40)).astype(np.float32)
    largest = rng.uniform(-1, 1, (8, 1)).astype(np.float32)

    def body(d, t, m):
        nisa.exponential(d, t, max_value=m if column else 0.5)

    result = on_tiles(body, x, largest, dtype=getattr(nl, dtype), target="trn3")
    exact = np.exp(x.astype(np.float64) - (largest if column else 0.5))
    if dtype == "int32":
        np.testing.assert_array_equal(result, np.rint(exact))
    else:
        np.testing.assert_allclose(
            result.astype(np.float64), exact, rtol={"float32": 1e-6, "float16": 1e-3}.get(dtype, 8e-3)
        )


@pytest.mark.parametrize(
    ("options", "shape", "complaint"),
    [
        ({"target": "trn2"}, (8, 12), "NeuronCore-v4"),
        ({"dtype": nl.uint32}, (8, 12), "dst .* has dtype uint32"),
        ({"dtype": nl.float8_e4m3fn}, (8, 12), "dst .* has dtype float8_e4m3fn"),
        ({}, (8, 3, 2, 1, 2), "at most 4"),
    ],
)
def test_exponential_names_what_it_does_not_take(on_tiles, options, shape, complaint):
    """Generation, dtypes and rank; the same call with legal ones passes."""
    x = np.ones((8, 12), np.float32)

    def body(d, t):
        nisa.exponential(d.reshape(shape), t.reshape(shape))

    on_tiles(lambda d, t: nisa.exponential(d, t), x, target="trn3")
    with pytest.raises(ConstraintError, match=complaint):
        on_tiles(body, x, **{"target": "trn3", **options})


# ---- rand2 -------------------------------------------------------------------------------------------------


def test_rand2_fills_the_range_evenly(on_tiles):
    """Numbers lie between min and max, their mean and spread are those of the uniform distribution."""
    x = np.zeros((128, 512), np.float32)
    values = on_tiles(lambda d, t: nisa.rand2(d, -1.0, 3.0), x, target="trn3")
    assert values.min() >= -1.0
    assert values.max() <= 3.0
    assert abs(values.mean() - 1.0) < 0.02
    assert abs(values.var() - 16 / 12) < 0.02
    again = on_tiles(lambda d, t: nisa.rand2(d, -1.0, 3.0), x, target="trn3")
    np.testing.assert_array_equal(values, again)


def test_rand2_takes_a_range_for_each_partition(on_tiles):
    """min and max may be columns."""
    least = np.arange(8, dtype=np.float32)[:, None]

    def body(d, low, high):
        nisa.rand2(d, low, high)

    values = on_tiles(body, least, least + 1, shape=(8, 64), target="trn3")
    assert ((values >= least) & (values <= least + 1)).all()
    with pytest.raises(ConstraintError, match="not below"):
        on_tiles(body, least, least, shape=(8, 64), target="trn3")
    with pytest.raises(ConstraintError, match="NeuronCore-v4"):
        on_tiles(body, least, least + 1, shape=(8, 64), target="trn2")


# ---- activate2 ---------------------------------------------------------------------------------------------

STEPS = {
    ("multiply", "add"): lambda x, a, b: x * a + b,
    ("multiply", "subtract"): lambda x, a, b: x * a - b,
    ("multiply", "bypass"): lambda x, a, b: x * a,
    ("add", "bypass"): lambda x, a, b: x + a,
    ("subtract", "bypass"): lambda x, a, b: x - a,
    ("bypass", "bypass"): lambda x, a, b: x,
}


@pytest.mark.parametrize(("first", "second"), STEPS)
@pytest.mark.parametrize("columns", [True, False])
def test_activate2_applies_two_steps_before_the_function(on_tiles, rng, first, second, columns):
    """Every pair of steps that ScalarE has, with numbers and with columns."""
    x = rng.standard_normal((8, 40)).astype(np.float32)
    a, b = (rng.standard_normal((8, 1)).astype(np.float32) for _ in range(2))

    def body(d, t, s, u):
        imm0, imm1 = (s, u) if columns else (0.5, -0.25)
        nisa.activate2(d, nl.tanh, t, imm0, imm1, getattr(nl, first), getattr(nl, second))

    result = on_tiles(body, x, a, b, target="trn3")
    inside = STEPS[first, second](x, *((a, b) if columns else (np.float32(0.5), np.float32(-0.25))))
    np.testing.assert_allclose(result, np.tanh(inside), rtol=1e-5, atol=1e-6)


def test_activate2_reverses_its_steps(on_tiles, rng):
    """reverse0 gives imm0 - data, reverse1 imm1 - result."""
    x = rng.standard_normal((8, 40)).astype(np.float32)

    def first(d, t):
        nisa.activate2(d, nl.copy, t, 2.0, 0.0, nl.subtract, nl.bypass, reverse0=True)

    def second(d, t):
        nisa.activate2(d, nl.copy, t, 2.0, 5.0, nl.multiply, nl.subtract, reverse1=True)

    np.testing.assert_array_equal(on_tiles(first, x, target="trn3"), np.float32(2) - x)
    np.testing.assert_array_equal(on_tiles(second, x, target="trn3"), np.float32(5) - x * np.float32(2))


def test_activate2_knows_prelu(on_tiles, rng):
    """prelu scales negative values by relu_param, a number or a column; nisa.activation cannot pass it."""
    x = rng.standard_normal((8, 40)).astype(np.float32)
    slope = rng.uniform(0, 1, (8, 1)).astype(np.float32)

    def column(d, t, s):
        nisa.activate2(d, nl.prelu, t, 0.0, 0.0, nl.bypass, nl.bypass, relu_param=s)

    def number(d, t, s):
        nisa.activate2(d, nl.prelu, t, 0.0, 0.0, nl.bypass, nl.bypass, relu_param=0.25)

    np.testing.assert_array_equal(on_tiles(column, x, slope, target="trn3"), np.where(x < 0, x * slope, x))
    expected = np.where(x < 0, x * np.float32(0.25), x)
    np.testing.assert_array_equal(on_tiles(number, x, slope, target="trn3"), expected)
    with pytest.raises(ConstraintError, match="prelu needs the slope"):
        on_tiles(lambda d, t: nisa.activation(d, nl.prelu, t), x, target="trn3")


REDUCTIONS = {
    "add": lambda v: v.sum(axis=1),
    "maximum": lambda v: v.max(axis=1),
    "minimum": lambda v: v.min(axis=1),
    "abs_max": lambda v: v[np.arange(v.shape[0]), np.abs(v).argmax(axis=1)],
    "abs_min": lambda v: v[np.arange(v.shape[0]), np.abs(v).argmin(axis=1)],
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_activate2_reduces_in_five_ways(on_tiles, rng, name):
    """The results of two instructions are reduced into one register for each partition."""
    x, y = (rng.standard_normal((8, 40)).astype(np.float32) for _ in range(2))

    def body(d, a, b):
        out = nl.ndarray((8, 40), nl.bfloat16, nl.sbuf)
        steps = (0.0, 0.0, nl.bypass, nl.bypass)
        op = getattr(nl, name)
        nisa.activate2(out, nl.copy, a, *steps, reduce_op=op, reduce_cmd=cmd.reset_reduce)
        nisa.activate2(out, nl.copy, b, *steps, reduce_op=op, reduce_cmd=cmd.reduce, reduce_res=d)

    result = on_tiles(body, x, y, shape=(8, 1), target="trn3")
    expected = REDUCTIONS[name](np.concatenate([x, y], axis=1).astype(np.float64))
    np.testing.assert_allclose(result[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_activation_and_activate2_share_registers(on_tiles, rng):
    """A sum begun by activation is continued by activate2."""
    x = rng.standard_normal((8, 40)).astype(np.float32)

    def body(d, t):
        out = nl.ndarray((8, 40), nl.float32, nl.sbuf)
        nisa.activation(out, nl.exp, t, reduce_op=nl.add, reduce_cmd=cmd.reset_reduce)
        nisa.activate2(
            out,
            nl.copy,
            t,
            0.0,
            0.0,
            nl.bypass,
            nl.bypass,
            reduce_op=nl.add,
            reduce_res=d,
            reduce_cmd=cmd.reduce,
        )

    expected = (np.exp(x) + x).sum(axis=1)
    np.testing.assert_allclose(on_tiles(body, x, shape=(8, 1), target="trn3")[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"target": "trn2"}, "NeuronCore-v4"),
        ({"op0": nl.add, "op1": nl.multiply}, "no pair that ScalarE has"),
        ({"op0": nl.bypass, "op1": nl.add}, "no pair that ScalarE has"),
        ({"op1": nl.bypass, "reverse1": True}, "reverse1"),
        ({"op": nl.add}, "no activation function"),
        ({"reduce_op": nl.multiply, "reduce_cmd": cmd.reset_reduce}, "reduce_op nl.multiply must be"),
        ({"reduce_cmd": cmd.reduce}, "needs reduce_op"),
        ({"reduce_cmd": cmd.load_reduce, "reduce_op": nl.add}, "reduce_cmd is"),
        ({"imm0": "bfloat16", "imm1": "float32"}, "same dtype"),
    ],
)
def test_activate2_names_what_it_does_not_take(on_tiles, options, complaint):
    """Pairs of steps, functions, reductions and dtypes are checked; the legal call passes."""

    def body(d, t, *, op=nl.exp, imm0=1.0, imm1=0.0, op0=nl.multiply, op1=nl.add, **rest):
        imms = []
        for imm in (imm0, imm1):
            if isinstance(imm, str):
                tile = nl.ndarray((8, 1), getattr(nl, imm), nl.sbuf)
                nisa.memset(tile, 1.0)
                imms.append(tile)
            else:
                imms.append(imm)
        nisa.activate2(d, op, t, *imms, op0, op1, **rest)

    x = np.ones((8, 12), np.float32)
    on_tiles(body, x, target="trn3")
    target = options.pop("target", "trn3")
    with pytest.raises(ConstraintError, match=complaint):
        on_tiles(lambda d, t: body(d, t, **options), x, target=target)
