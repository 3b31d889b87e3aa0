"""Functions of nki.language that take several instructions, against NumPy; sizes, constants, and what is exported."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_port.simulator import ConstraintError, UnsupportedError, UnwrittenReadError, run_kernel
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

bf16 = ml_dtypes.bfloat16


def applied(function, *arrays, target="trn2"):
    """function(*tiles) of the loaded arrays, as an array."""

    def kernel(*inputs):
        result = function(*(nl.load(x) for x in inputs))
        out = nl.ndarray(result.shape, result.dtype, nl.shared_hbm)
        nl.store(out, result if result.buffer is nl.sbuf else nl.copy(result))
        return out

    return run_kernel(kernel, *arrays, target=target).outputs[0]


# ---- rounding to integers --------------------------------------------------------------------------------------

FLOATS = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.floats(-4, 4, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 0.5, -0.5, 1.0, 2.0**22, 2.0**23 - 0.5, -(2.0**22) + 0.5, 2.0**31, -(2.0**40)]),
)


@pytest.mark.parametrize("name", ["ceil", "floor", "trunc"])
@settings(max_examples=60, deadline=None)
@given(values=st.lists(FLOATS, min_size=1, max_size=20))
def test_rounding_functions_are_exact(name, values):
    """Every float32: halves, values between two integers, and those too large to have a fraction."""
    x = np.array([values], np.float32)
    np.testing.assert_array_equal(applied(getattr(nl, name), x), getattr(np, name)(x))


def test_rounding_takes_a_dtype(rng):
    """The result is rounded once more to the dtype asked for."""
    x = (rng.standard_normal((3, 7)) * 10).astype(np.float32)
    np.testing.assert_array_equal(applied(lambda t: nl.floor(t, nl.int32), x), np.floor(x).astype(np.int32))


# ---- trigonometry ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_trigonometric_functions_reduce_their_range(rng, name):
    """Angles far outside [-pi, pi] are right, and no instruction complains about them."""
    x = (rng.uniform(-1000, 1000, (16, 64))).astype(np.float32)
    x[0, :7] = [0.0, np.pi, -np.pi, np.pi / 2, 3 * np.pi / 2, 9.0, -9.0]
    if name == "tan":
        x = x[np.abs(np.cos(x.astype(np.float64))) > 0.1][None, :500]

    def kernel(array):
        out = nl.ndarray(array.shape, nl.float32, nl.shared_hbm)
        nl.store(out, getattr(nl, name)(nl.load(array)))
        return out

    run = run_kernel(kernel, x)
    expected = getattr(np, name)(x.astype(np.float64))
    np.testing.assert_allclose(run.outputs[0], expected, atol=2e-6 if name != "tan" else 2e-4)
    assert not run.warnings


def test_the_sine_of_the_engine_does_not_reduce_its_range():
    """nisa.activation(op=nl.sin) outside [-pi, pi] warns; nl.sin does not go there."""

    def kernel(array):
        tile = nl.load(array)
        nisa.activation(tile, nl.sin, tile)
        out = nl.ndarray(array.shape, nl.float32, nl.shared_hbm)
        nl.store(out, tile)
        return out

    assert run_kernel(kernel, np.full((1, 1), 9.0, np.float32)).warnings
    assert not run_kernel(kernel, np.full((1, 1), 3.0, np.float32)).warnings


# ---- logic, statistics, gathers --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, bf16])
def test_logical_not_is_xor_with_one(rng, dtype):
    """1 becomes 0 and 0 becomes 1; other values warn."""
    x = rng.integers(0, 2, (4, 9)).astype(dtype)
    np.testing.assert_array_equal(applied(nl.logical_not, x), (1 - x.astype(np.int32)).astype(dtype))

    def kernel(array):
        nl.logical_not(nl.load(array))
        return nl.zeros((1, 1), nl.float32, nl.shared_hbm)

    assert not run_kernel(kernel, x).warnings
    assert "nl.equal" in run_kernel(kernel, (x.astype(np.float32) * 2).astype(dtype)).warnings[0]


@pytest.mark.parametrize(("shape", "axis"), [((5, 12), 1), ((5, 3, 4), (1, 2)), ((5, 3, 4), 2)])
def test_variance_is_that_of_the_population(rng, shape, axis):
    """Mean of the squared distances from the mean; reduced dimensions stay with size 1."""
    x = (rng.standard_normal(shape) + 3).astype(np.float32)
    result = applied(lambda t: nl.var(t, axis), x)
    np.testing.assert_allclose(result, np.var(x, axis=axis, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_all_is_one_where_nothing_is_zero(rng, dtype):
    """The logical AND along the free dimensions."""
    x = rng.integers(0, 6, (40, 5)).astype(dtype)
    result = applied(lambda t: nl.all(t, 1), x)
    np.testing.assert_array_equal(result[:, 0] != 0, np.all(x, axis=1))


def test_gather_flattened_takes_from_its_partition(rng):
    """result[p, i] = data[p].flat[indices[p, i]], cast if a dtype is given."""
    data = rng.standard_normal((6, 4, 5)).astype(np.float32)
    indices = rng.integers(0, 20, (6, 9)).astype(np.uint32)
    expected = np.take_along_axis(data.reshape(6, 20), indices.astype(np.int64), axis=1)
    np.testing.assert_array_equal(applied(nl.gather_flattened, data, indices), expected)
    result = applied(lambda d, i: nl.gather_flattened(d, i, dtype=nl.bfloat16), data, indices)
    np.testing.assert_array_equal(result, expected.astype(bf16))
    with pytest.raises(UnsupportedError, match="axis 1"):
        applied(lambda d, i: nl.gather_flattened(d, i, axis=1), data, indices)


def test_power_takes_tiles_only(rng):
    """nl.power(tile, number) does not compile; a tile of exponents does."""
    x = rng.uniform(1, 2, (4, 6)).astype(np.float32)
    result = applied(lambda t: nl.power(t, nl.full(t.shape, 3.0, t.dtype)), x)
    np.testing.assert_allclose(result, x**3, rtol=1e-5)
    with pytest.raises(UnsupportedError, match="does not compile"):
        applied(lambda t: nl.power(t, 3.0), x)


@pytest.mark.parametrize(("name", "chosen"), [("abs_max", np.greater), ("abs_min", np.less)])
def test_comparisons_by_magnitude_keep_the_sign(rng, name, chosen):
    """The signed winner, the second operand where magnitudes are equal; tiles, numbers, or [P, 1] with a warning."""
    x = rng.integers(-3, 4, (4, 60)).astype(np.float32)
    y = rng.integers(-3, 4, (4, 60)).astype(np.float32)
    function = getattr(nl, name)
    for other in (y, y[:, :1]):
        expected = np.where(chosen(np.abs(x), np.abs(other)), x, np.broadcast_to(other, x.shape))
        np.testing.assert_array_equal(applied(function, x, other, target="trn3"), expected)
    expected = np.where(chosen(np.abs(x), 2), x, -2.0)
    np.testing.assert_array_equal(applied(lambda t: function(t, -2.0), x, target="trn3"), expected)
    with pytest.raises(ConstraintError, match="NeuronCore-v4"):
        applied(function, x, y, target="trn2")


def test_device_print_shows_written_tiles(capsys):
    """Values of SBUF or HBM are printed; PSUM and unwritten tiles are refused."""
    x = np.full((1, 2), 7.0, np.float32)

    def printing(tile):
        nl.device_print("seven", tile)
        return tile

    applied(printing, x)
    assert capsys.readouterr().out.split() == ["seven", "[[7.", "7.]]"]
    with pytest.raises(ConstraintError, match="is in PSUM"):
        applied(lambda t: printing(nl.full((1, 2), 0.0, nl.float32, nl.psum)), x)
    with pytest.raises(UnwrittenReadError):
        applied(lambda t: printing(nl.ndarray((1, 2), nl.float32)), x)


# ---- random tiles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [nl.sbuf, nl.psum, nl.shared_hbm])
def test_rand_is_uniform_and_follows_the_seed(buffer):
    """Values in [0, 1), the same for the same seed, in every memory."""

    def kernel(_):
        seed = nl.full((1, 1), 42, nl.int32)
        out = nl.ndarray((3, 128, 256), nl.float32, nl.shared_hbm)
        for position in range(3):
            if position < 2:
                nl.random_seed(seed)
            tile = nl.rand((128, 256), nl.float32, buffer)
            nisa.dma_copy(out[position], nl.copy(tile) if buffer is nl.psum else tile)
        return out

    first, again, other = run_kernel(kernel, np.zeros((1, 1), np.float32)).outputs[0]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert 0 <= first.min() < 0.001 < 0.999 < first.max() < 1
    counts = np.histogram(first, bins=16, range=(0, 1))[0]
    np.testing.assert_allclose(counts, 128 * 256 / 16, rtol=0.1)


def test_random_seed_is_a_tile():
    """A Python integer is refused, as on the device."""
    with pytest.raises(ConstraintError, match="src_seeds is 42"):
        applied(lambda t: nl.random_seed(42), np.ones((1, 1), np.float32))


def test_dropout_gives_the_dtype_asked_for(rng):
    """nl.dropout drops the given fraction and casts what is left."""
    x = rng.uniform(1, 2, (128, 256)).astype(np.float32)
    result = applied(lambda t: nl.dropout(t, 0.5, nl.bfloat16), x).astype(np.float32)
    assert abs((result == 0).mean() - 0.5) < 0.02
    kept = result != 0
    np.testing.assert_array_equal(result[kept], x.astype(bf16).astype(np.float32)[kept])


# ---- constants and sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_shared_constant_reads_a_file(tmp_path, rng, dtype):
    """An array or the path of a .npy file, read-only in shared HBM."""
    constant = rng.integers(0, 100, (4, 6)).astype(dtype)
    path = tmp_path / "constant.npy"
    np.save(path, constant)

    def kernel(_, source):
        out = nl.ndarray((4, 6), getattr(nl, np.dtype(dtype).name), nl.shared_hbm)
        nl.store(out, nl.load(nl.shared_constant(source)))
        return out

    x = np.zeros((1, 1), np.float32)
    for source in (str(path), path):
        np.testing.assert_array_equal(run_kernel(kernel, x, source=source).outputs[0], constant)


def test_shared_constant_refuses_what_is_no_plain_array(tmp_path):
    """Missing files, pickles and archives are named; nothing is executed."""
    np.save(tmp_path / "objects.npy", np.array([object()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", np.ones(3))
    for name in ("missing.npy", "objects.npy", "archive.npz"):
        with pytest.raises(ConstraintError, match=name):
            applied(
                lambda t, name=name: nl.shared_constant(str(tmp_path / name)), np.ones((1, 1), np.float32)
            )


def test_shared_identity_matrix_fills_a_tile_of_its_size():
    """A new tile, or the given one if it is [n, n] in SBUF."""
    x = np.ones((1, 1), np.float32)
    np.testing.assert_array_equal(applied(lambda t: nl.shared_identity_matrix(8, nl.bfloat16), x), np.eye(8))
    with pytest.raises(ConstraintError, match=r"must have shape \(8, 8\)"):
        applied(lambda t: nl.shared_identity_matrix(8, dst=nl.ndarray((8, 9), nl.float32)), x)


@pytest.mark.parametrize(
    ("target", "sbuf", "usable"),
    [("trn1", 192, 176 * 1024), ("trn2", 224, 208 * 1024 - 8), ("trn3", 256, None)],
)
def test_tile_sizes_of_every_target(target, sbuf, usable):
    """The members of nl.tile_size: constants, and what follows the generation."""
    seen = {}

    def kernel(x):
        size = nl.tile_size
        seen.update({name: getattr(size, name) for name in dir(size) if not name.startswith("_")})
        return nl.zeros((1, 1), nl.float32, nl.shared_hbm)

    run_kernel(kernel, np.zeros((1, 1), np.float32), target=target)
    assert seen["sbuf_size_bytes"] == 128 * sbuf * 1024
    assert seen["sbuf_fmax"] * 4 <= seen["sbuf_fmax_bytes"] == seen["total_available_sbuf_size"]
    assert usable is None or seen["sbuf_fmax_bytes"] == usable
    constants = {
        "pmax": 128,
        "psum_fmax": 512,
        "psum_bank_fmax": 512,
        "psum_bank_fmax_bytes": 2048,
        "psum_num_banks": 8,
        "gemm_stationary_fmax": 128,
        "gemm_moving_fmax": 512,
        "bn_stats_fmax": 512,
    }
    assert {name: seen[name] for name in constants} == constants


# Every public name of nki.language 0.6 (nki.api.language).
NAMES = """
bool_ int8 int16 int32 uint8 uint16 uint32 float16 float32 bfloat16 tfloat32 float8_e4m3 float8_e4m3fn float8_e5m2
float8_e5m2_x4 float8_e4m3fn_x4 float8_e8m0fnu float4_e2m1fn_x4 sbuf psum hbm private_hbm shared_hbm tile_size average
prelu bypass MemoryRegion NKIObject NkiTensor is_hbm is_on_chip is_psum is_sbuf add subtract multiply divide maximum
minimum abs_max abs_min abs square power equal not_equal less less_equal greater greater_equal bitwise_and bitwise_or
bitwise_xor invert left_shift right_shift logical_and logical_or logical_xor logical_not exp log sqrt rsqrt tanh sigmoid
relu gelu gelu_apprx_sigmoid gelu_apprx_tanh gelu_dx gelu_apprx_sigmoid_dx silu silu_dx softplus mish erf erf_dx
reciprocal copy sin cos tan arctan ceil floor trunc negative sign fmod mod sum max min mean prod var all softmax rms_norm
where dropout ones full zeros_like empty_like random_seed expand_dims broadcast_to transpose matmul no_reorder
load_transpose2d gather_flattened ds affine_range sequential_range static_range dynamic_range fori_loop while_loop
ndarray zeros load store program_id num_programs program_ndim shared_constant shared_identity_matrix device_print rand
"""


def test_every_public_name_exists():
    """What AWS's nki.language names can be named here; what is exported exists."""
    missing = [name for name in NAMES.split() if not hasattr(nl, name)]
    assert missing == []
    assert [name for name in nl.__all__ if not hasattr(nl, name)] == []
    functions = [name for name in NAMES.split() if not isinstance(getattr(nl, name), type(nl.add))]
    assert sorted(set(functions) - set(nl.__all__)) == []


# ---- records ---------------------------------------------------------------------------------------------------


class Plain(nl.NKIObject):
    rows: int
    columns: int = 7

    def __post_init__(self):
        self.size = (self.rows or 0) * self.columns


@dataclasses.dataclass
class Decorated(nl.NKIObject):
    rows: int
    names: list = dataclasses.field(default_factory=list)
    columns: int = 7


@dataclasses.dataclass(frozen=True)
class Frozen(nl.NKIObject):
    rows: int
    depth: int = 3


class Handmade(nl.NKIObject):
    rows: int = 1

    def __init__(self, rows):
        self.rows = rows + 1


def test_records_take_their_fields_as_the_compiler_gives_them():
    """By position or name; what is missing has its default or is None, what is unknown becomes a field."""
    assert (Plain(2).rows, Plain(2).columns, Plain(2, columns=3).size, Plain().rows) == (2, 7, 6, None)
    record = Decorated(columns=5, extra="kept")
    assert (record.rows, record.names, record.columns, record.extra) == (None, [], 5, "kept")
    assert Decorated(1).names is not Decorated(1).names
    assert dataclasses.replace(Frozen(4, depth=9), rows=5) == Frozen(5, depth=9)
    assert Handmade(1).rows == 2
    with pytest.raises(TypeError):
        Handmade()
    with pytest.raises(TypeError, match="given `rows` twice"):
        Decorated(1, rows=2)
    with pytest.raises(TypeError, match="3 values are given"):
        Plain(1, 2, 3)
