"""The accumulator registers of VectorE and ScalarE: what shares them, resets them and disturbs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neuron_port.simulator import ConstraintError, UnwrittenReadError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

cmd = nisa.reduce_cmd
X = np.random.default_rng(5).standard_normal((32, 24)).astype(np.float32)


def run(body: Callable[[Any, Any], None], x: np.ndarray = X, target: str = "trn3") -> np.ndarray:
    """Run body(result [P, 1], tile of x) and return the result."""

    def kernel(given: Any) -> Any:
        tile = nl.ndarray(given.shape, nl.float32, nl.sbuf)
        nisa.dma_copy(tile, given)
        result = nl.ndarray((given.shape[0], 1), nl.float32, nl.sbuf)
        nisa.memset(result, -7.0)
        body(result, tile)
        out = nl.ndarray(result.shape, nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, result)
        return out

    return run_kernel(kernel, x, target=target).outputs[0][:, 0]


def junk() -> Any:
    """A tile to write what is not looked at."""
    return nl.ndarray((32, 24), nl.float32, nl.sbuf)


def column(value: float) -> Any:
    """A float32 [P, 1] tile."""
    tile = nl.ndarray((32, 1), nl.float32, nl.sbuf)
    nisa.memset(tile, value)
    return tile


def by_scalar_reduce(command: Any, result: Any, tile: Any, op: Any = nl.add) -> None:
    nisa.tensor_scalar_reduce(junk(), tile, nl.multiply, 1.0, op, result, reduce_cmd=command)


def by_exponential(command: Any, result: Any, tile: Any) -> None:
    nisa.exponential(junk(), tile, reduce_res=result, reduce_cmd=command)


def by_range_select(command: Any, result: Any, tile: Any) -> None:
    nisa.range_select(junk(), tile, nl.greater_equal, nl.less, column(0.0), column(99.0), command, result)


def by_select_reduce(command: Any, result: Any, tile: Any) -> None:
    predicate = nl.ndarray((32, 24), nl.uint8, nl.sbuf)
    nisa.memset(predicate, 1)
    nisa.select_reduce(junk(), predicate, tile, 0.0, result, command)


def by_cumulative(command: Any, result: Any, tile: Any) -> None:
    running = junk()
    nisa.tensor_scalar_cumulative(running, tile, nl.multiply, nl.add, 1.0, reduce_cmd=command)
    if result is not None:
        nisa.tensor_copy(result, running[:, 23:24])


SUMS = {
    "tensor_scalar_reduce": (by_scalar_reduce, X),
    "exponential": (by_exponential, np.exp(X)),
    "tensor_scalar_cumulative": (by_cumulative, X),
}
MAXIMA = {"range_select": by_range_select, "select_reduce": by_select_reduce}


@pytest.mark.parametrize("first", SUMS)
@pytest.mark.parametrize("second", SUMS)
def test_sums_of_vector_engine_go_on_across_instructions(first, second):
    """Each of the summing instructions continues what another has left in the shared registers."""

    def body(result, tile):
        SUMS[first][0](cmd.reset_reduce, None, tile)
        SUMS[second][0](cmd.reduce, result, tile)

    expected = SUMS[first][1].sum(axis=1) + SUMS[second][1].sum(axis=1)
    np.testing.assert_allclose(run(body), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [*MAXIMA, "tensor_scalar_reduce"])
@pytest.mark.parametrize("second", MAXIMA)
def test_maxima_of_vector_engine_go_on_across_instructions(first, second):
    """range_select, select_reduce and tensor_scalar_reduce share the registers for maxima too."""
    x = np.concatenate([X, 5 * X])

    def kernel(a, b):
        tiles = []
        for given in (a, b):
            tile = nl.ndarray(given.shape, nl.float32, nl.sbuf)
            nisa.dma_copy(tile, given)
            tiles.append(tile)
        result = nl.ndarray((32, 1), nl.float32, nl.sbuf)
        if first == "tensor_scalar_reduce":
            by_scalar_reduce(cmd.reset_reduce, None, tiles[0], nl.maximum)
        else:
            MAXIMA[first](cmd.reset_reduce, None, tiles[0])
        MAXIMA[second](cmd.reduce, result, tiles[1])
        out = nl.ndarray((32, 1), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, result)
        return out

    (result,) = run_kernel(kernel, x[:32], x[32:], target="trn3").outputs
    np.testing.assert_array_equal(result[:, 0], np.maximum(x[:32].max(axis=1), x[32:].max(axis=1)))


def test_scalar_and_vector_engine_have_registers_of_their_own():
    """A reset on ScalarE does not touch what VectorE has summed."""

    def body(result, tile):
        by_scalar_reduce(cmd.reset_reduce, None, tile)
        nisa.activation(junk(), nl.copy, tile, reduce_op=nl.add, reduce_cmd=cmd.reset)
        by_scalar_reduce(cmd.reduce, result, tile)

    np.testing.assert_allclose(run(body), 2 * X.sum(axis=1), rtol=1e-5, atol=1e-5)


def test_each_lane_has_a_register_of_its_own():
    """Lanes 32 to 63 do not continue what lanes 0 to 31 have summed."""

    def kernel(x, *, reset_upper):
        tile = nl.ndarray((64, 24), nl.float32, nl.sbuf)
        nisa.dma_copy(tile, x)
        other = nl.ndarray((64, 24), nl.float32, nl.sbuf)
        result = nl.ndarray((64, 1), nl.float32, nl.sbuf)
        reset = tile if reset_upper else tile[:32]
        nisa.tensor_scalar_reduce(other[: reset.shape[0]], reset, nl.multiply, 1.0, nl.add)
        nisa.tensor_scalar_reduce(
            other[32:], tile[32:], nl.multiply, 1.0, nl.add, result[32:], reduce_cmd=cmd.reduce
        )
        out = nl.ndarray((32, 1), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, result[32:])
        return out

    x = np.concatenate([X, X + 1])
    (result,) = run_kernel(kernel, x, reset_upper=True, target="trn2").outputs
    np.testing.assert_allclose(result[:, 0], 2 * x[32:].sum(axis=1), rtol=1e-5)
    with pytest.raises(UnwrittenReadError, match="never reset"):
        run_kernel(kernel, x, reset_upper=False, target="trn2")


@pytest.mark.parametrize("disturbing", [by_exponential, by_select_reduce, by_range_select])
def test_an_idle_instruction_of_vector_engine_disturbs_the_registers(disturbing):
    """After an instruction with reduce_cmd idle, going on with the registers is refused."""

    def body(result, tile, *, disturbed):
        by_scalar_reduce(cmd.reset_reduce, None, tile)
        if disturbed:
            disturbing(cmd.idle, None, tile)
        by_scalar_reduce(cmd.reduce, result, tile)

    expected = 2 * X.sum(axis=1)
    np.testing.assert_allclose(run(lambda r, t: body(r, t, disturbed=False)), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UnwrittenReadError, match="idle has disturbed"):
        run(lambda r, t: body(r, t, disturbed=True))


def test_an_idle_activation_leaves_the_registers_and_may_read_them():
    """ScalarE's idle changes nothing, and reduce_res reads what is there."""

    def body(result, tile):
        nisa.activation(junk(), nl.copy, tile, reduce_op=nl.add, reduce_cmd=cmd.reset_reduce)
        nisa.activation(junk(), nl.exp, tile)
        nisa.activation(junk(), nl.exp, tile, reduce_res=result)

    np.testing.assert_allclose(run(body), X.sum(axis=1), rtol=1e-5, atol=1e-5)


def test_reset_only_clears():
    """reduce_cmd reset zeroes ScalarE's registers without summing."""

    def body(result, tile):
        nisa.activation(junk(), nl.copy, tile, reduce_op=nl.add, reduce_cmd=cmd.reset_reduce)
        nisa.activation(junk(), nl.copy, tile, reduce_cmd=cmd.reset)
        nisa.activation(junk(), nl.square, tile, reduce_op=nl.add, reduce_res=result, reduce_cmd=cmd.reduce)

    np.testing.assert_allclose(run(body), (X * X).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("start", [3.0, "tile"])
def test_load_reduce_starts_from_the_given_value(start):
    """tensor_scalar_reduce and exponential start from a number or a column."""

    def body(result, tile):
        first = column(3.0) if start == "tile" else start
        nisa.tensor_scalar_reduce(
            junk(), tile, nl.multiply, 1.0, nl.maximum, reduce_cmd=cmd.load_reduce, reduce_init=first
        )
        nisa.exponential(junk(), tile, reduce_res=result, reduce_cmd=cmd.load_reduce, reduce_init=first)

    np.testing.assert_allclose(run(body), 3.0 + np.exp(X).sum(axis=1), rtol=1e-5)


def test_negation_changes_what_is_written_and_not_the_registers():
    """reduce_res_negate is not accumulated."""

    def body(result, tile):
        nisa.tensor_scalar_reduce(junk(), tile, nl.multiply, 1.0, nl.add, result, reduce_res_negate=True)
        by_scalar_reduce(cmd.reduce, result, tile)

    np.testing.assert_allclose(run(body), 2 * X.sum(axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("instruction", ["tensor_scalar_reduce", "activation", "exponential"])
def test_reduce_res_may_lie_in_dst(instruction):
    """The registers are written after dst, so a reduce_res inside dst holds the reduction (NKI 0.6)."""

    def body(result, tile):
        dst = junk()
        inside = dst[:, 23:24]
        if instruction == "tensor_scalar_reduce":
            nisa.tensor_scalar_reduce(dst, tile, nl.multiply, 1.0, nl.add, inside)
        elif instruction == "activation":
            nisa.activation(
                dst, nl.copy, tile, reduce_op=nl.add, reduce_res=inside, reduce_cmd=cmd.reset_reduce
            )
        else:
            nisa.exponential(dst, tile, reduce_res=inside, reduce_cmd=cmd.reset_reduce)
        nisa.tensor_copy(result, inside)

    expected = np.exp(X) if instruction == "exponential" else X
    np.testing.assert_allclose(run(body), expected.sum(axis=1), rtol=1e-5, atol=1e-5)


def test_unary_operators_reduce_too():
    """tensor_scalar_reduce takes nl.abs with operand 0."""
    result = run(lambda r, t: nisa.tensor_scalar_reduce(junk(), t, nl.abs, 0, nl.add, r))
    np.testing.assert_allclose(result, np.abs(X).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("op", "reference"),
    [
        ("add", lambda s, r: s + r),
        ("subtract", lambda s, r: s - r),
        ("multiply", lambda s, r: s * r),
        ("maximum", np.maximum),
        ("minimum", np.minimum),
    ],
)
def test_cumulative_follows_its_recurrence(op, reference):
    """register = (x_i - imm0) op1 register, from the operator's identity, for every operator."""
    steps = X[:, :8] - np.float32(0.25)
    expected, register = [], np.full(32, {"multiply": 1, "maximum": -np.inf, "minimum": np.inf}.get(op, 0))
    for i in range(8):
        register = reference(steps[:, i], register)
        expected.append(register)

    def kernel(x):
        tile = nl.ndarray((32, 8), nl.float32, nl.sbuf)
        nisa.dma_copy(tile, x)
        running = nl.ndarray((32, 8), nl.float32, nl.sbuf)
        nisa.tensor_scalar_cumulative(running, tile, nl.subtract, getattr(nl, op), 0.25)
        out = nl.ndarray((32, 8), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, running)
        return out

    (result,) = run_kernel(kernel, X[:, :8], target="trn2").outputs
    np.testing.assert_allclose(result, np.stack(expected, axis=1), rtol=1e-5, atol=1e-6)


def _half(result, tile):
    half = nl.ndarray((32, 1), nl.bfloat16, nl.sbuf)
    nisa.memset(half, 1.0)
    nisa.tensor_scalar_reduce(
        junk(), tile, nl.multiply, 1.0, nl.add, reduce_cmd=cmd.load_reduce, reduce_init=half
    )


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (lambda r, t: by_scalar_reduce(cmd.idle, r, t), "reduce_cmd is .*idle.*must be one of"),
        (lambda r, t: by_cumulative(cmd.idle, None, t), "reduce_cmd is"),
        (lambda r, t: by_select_reduce(cmd.load_reduce, r, t), "reduce_cmd is"),
        (lambda r, t: by_exponential(cmd.reset, r, t), "reduce_cmd is"),
        (lambda r, t: by_exponential(cmd.idle, r, t), "reduce_res .* reduce_cmd is idle"),
        (lambda r, t: by_exponential(3, r, t), "reduce_cmd is 3"),
        (
            lambda r, t: nisa.tensor_scalar_reduce(junk(), t, nl.add, 0.0, nl.add, r, reduce_init=1.0),
            "load_reduce, not reset_reduce",
        ),
        (
            lambda r, t: nisa.tensor_scalar_reduce(
                junk(), t, nl.add, 0.0, nl.add, r, reduce_cmd=cmd.load_reduce
            ),
            "needs reduce_init",
        ),
        (
            lambda r, t: nisa.exponential(junk(), t, reduce_res=r, reduce_cmd=cmd.reduce, reduce_init=2.0),
            "load_reduce, not reduce",
        ),
        (lambda r, t: by_scalar_reduce(cmd.reset_reduce, junk(), t), r"must have shape \(32, 1\)"),
        (_half, "reduce_init .* must be float32"),
    ],
)
def test_commands_and_their_operands_are_checked(body, complaint):
    """Unknown commands, first values without load_reduce, and result tiles of another shape are named."""
    with pytest.raises(ConstraintError, match=complaint):
        run(body)


@pytest.mark.parametrize(("dtype", "warned"), [(nl.float32, False), (nl.bfloat16, True)])
def test_a_narrow_maximum_of_masked_rows_is_warned_of(dtype, warned):
    """range_select into bfloat16 wants a float32 reduce_res: a masked row's maximum would be -inf."""

    def kernel(x):
        tile = nl.ndarray((32, 24), nl.float32, nl.sbuf)
        nisa.dma_copy(tile, x)
        dst = nl.ndarray((32, 24), nl.bfloat16, nl.sbuf)
        largest = nl.ndarray((32, 1), dtype, nl.sbuf)
        nisa.range_select(dst, tile, nl.greater_equal, nl.less, column(0.0), column(9.0), reduce_res=largest)
        out = nl.ndarray((32, 1), dtype, nl.shared_hbm)
        nisa.dma_copy(out, largest)
        return out

    warnings = run_kernel(kernel, X, target="trn2").warnings
    assert any("reduce_res" in warning for warning in warnings) is warned
