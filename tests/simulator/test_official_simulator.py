"""The same kernels on AWS's own `nki.simulate` and here: exact where arithmetic is, close where functions are.

AWS's wheel is not public, so these comparisons are skipped where it is absent; the harness itself is tested always,
with the simulator's own face in the place of AWS's package.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import load_kernel_source, simulate
from neuron_port.simulator import nki as face

bfloat16 = ml_dtypes.bfloat16
OLDEST = (0, 3)  # nki.simulate and the syntax of these kernels (release notes of NKI 0.3)

SOURCE = """
import nki
import nki.isa as nisa
import nki.language as nl


def load(source, dtype=None):
    tile = nl.ndarray(source.shape, dtype=dtype or source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source)
    return tile


def store(tile):
    out = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tile)
    return out


def product(left, right):
    psum = nl.ndarray((left.shape[1], right.shape[1]), dtype=nl.float32, buffer=nl.psum)
    for k in range(left.shape[0] // 128):
        a, b = load(left[k * 128 : k * 128 + 128, :]), load(right[k * 128 : k * 128 + 128, :])
        nisa.nc_matmul(dst=psum, stationary=a, moving=b, accumulate=k > 0)
    result = nl.ndarray(psum.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=result, src=psum)
    return store(result)


def turned(x):
    psum = nl.ndarray((x.shape[1], x.shape[0]), dtype=x.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=psum, data=load(x))
    result = nl.ndarray(psum.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=result, src=psum)
    return store(result)


def narrowed(x):
    result = nl.ndarray(x.shape, dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_copy(dst=result, src=load(x))
    return store(result)


def counted(x):
    result = nl.ndarray(x.shape, dtype=nl.int8, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=result, data=load(x), op0=nl.multiply, operand0=100.0)
    return store(result)


def combined(x, y, column):
    a, b, c = load(x), load(y), load(column)
    result = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(dst=result, data=a, op0=nl.subtract, operand0=c, op1=nl.multiply, operand1=b)
    nisa.tensor_tensor(dst=result, data1=result, data2=a, op=nl.maximum)
    nisa.tensor_scalar(
        dst=result, data=result, op0=nl.subtract, operand0=c, reverse0=True, op1=nl.add, operand1=0.5
    )
    return store(result)


def added_words(x, y):
    result = nl.ndarray(x.shape, dtype=nl.int32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=result, data1=load(x), data2=load(y), op=nl.add)
    return store(result)


def largest(x):
    result = nl.ndarray((x.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=result, op=nl.maximum, data=load(x), axis=1, negate=True)
    return store(result)


def eight(x):
    tile = load(x)
    top = nl.ndarray((x.shape[0], 8), dtype=nl.float32, buffer=nl.sbuf)
    nisa.max8(dst=top, src=tile)
    where = nl.ndarray((x.shape[0], 8), dtype=nl.uint32, buffer=nl.sbuf)
    nisa.nc_find_index8(dst=where, data=tile, vals=top)
    return store(where)


def causal(x):
    result = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(
        dst=result,
        pattern=[[-1, x.shape[1]]],
        channel_multiplier=1,
        on_true_tile=load(x),
        on_false_value=-30000.0,
        cmp_op=nl.greater_equal,
        offset=3,
    )
    return store(result)


def numbered(x):
    result = nl.ndarray(x.shape, dtype=nl.int32, buffer=nl.sbuf)
    nisa.iota(dst=result, pattern=[[2, x.shape[1]]], offset=-5, channel_multiplier=7)
    return store(result)


def scanned(x, y):
    result = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor_scan(
        dst=result, data0=load(x), data1=load(y), initial=0.25, op0=nl.multiply, op1=nl.add
    )
    return store(result)


def shuffled(x):
    tile = load(x)
    result = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.nc_stream_shuffle(dst=result, src=tile, shuffle_mask=list(range(31, -1, -1)))
    return store(result)


def gathered(table, index):
    tile = nl.ndarray((index.shape[0], table.shape[1]), dtype=table.dtype, buffer=nl.sbuf)
    rows = table.ap(
        pattern=[[table.shape[1], index.shape[0]], [1, table.shape[1]]], vector_offset=load(index), indirect_dim=0
    )
    nisa.dma_copy(dst=tile, src=rows)
    return store(tile)


def normalized(x, gamma):
    tile, weight = load(x), load(gamma)
    work = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.sbuf)
    scale = nl.ndarray((x.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    epsilon = nl.ndarray((x.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=epsilon, value=1e-6)
    nisa.activation_reduce(dst=work, op=nl.square, data=tile, reduce_op=nl.add, reduce_res=scale)
    nisa.activation(dst=scale, op=nl.rsqrt, data=scale, bias=epsilon, scale=1.0 / x.shape[1])
    nisa.tensor_scalar(dst=work, data=tile, op0=nl.multiply, operand0=scale)
    nisa.tensor_tensor(dst=work, data1=work, data2=weight, op=nl.multiply)
    return store(work)


def activated(x):
    tile = load(x)
    out = nl.ndarray((4, x.shape[0], x.shape[1]), dtype=nl.float32, buffer=nl.shared_hbm)
    functions = (nl.exp, nl.gelu, nl.silu, nl.tanh)
    for i in range(4):
        result = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=result, op=functions[i], data=tile, scale=0.5)
        nisa.dma_copy(dst=out[i], src=result)
    return out
"""

RNG = np.random.default_rng(20261122)
X, Y = (RNG.standard_normal((128, 64)).astype(np.float32) for _ in range(2))
COLUMN = RNG.standard_normal((128, 1)).astype(np.float32)
WORDS = [RNG.integers(-(2**30), 2**30, (64, 16), dtype=np.int32) for _ in range(2)]
CLOSE = {"rtol": 2e-5, "atol": 2e-6}  # AWS evaluates functions in float32 as well, in another order
# name -> (inputs, None for equality or the tolerance)
CASES: dict[str, tuple[list[np.ndarray], dict[str, float] | None]] = {
    "product": (
        [RNG.standard_normal((256, n)).astype(np.float32) for n in (64, 96)],
        {"rtol": 1e-5, "atol": 1e-4},
    ),
    "turned": ([X.astype(bfloat16)], None),
    "narrowed": ([X], None),
    "counted": ([X], None),
    "combined": ([X, Y, COLUMN], None),
    "added_words": (WORDS, None),
    "largest": ([X], None),
    "eight": ([X], None),
    "causal": ([X], None),
    "numbered": ([X], None),
    "scanned": ([X / 4, Y], {"rtol": 1e-6, "atol": 1e-6}),
    "shuffled": ([X], None),
    "gathered": ([X, RNG.integers(0, 128, (32, 1), dtype=np.int32)], None),
    "normalized": ([X, np.broadcast_to(Y[:1], X.shape).copy()], CLOSE),
    "activated": ([X], CLOSE),
}


def official_nki() -> tuple[ModuleType | None, str]:
    """(AWS's package, "") or (None, why it cannot be used)."""
    try:
        version = importlib.metadata.version("nki")
    except importlib.metadata.PackageNotFoundError:
        return None, "AWS's `nki` is not installed; it comes with the Neuron SDK only"
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        return None, f"the installed `nki` {version} is a placeholder or older than 0.3, not AWS's simulator"
    loaded = sys.modules.get("nki")
    if loaded is not None and Path(loaded.__file__ or "").is_relative_to(Path(face.__file__).parent):
        return None, "our own simulator stands in for `nki` in this process"
    try:
        package = importlib.import_module("nki")
        importlib.import_module("nki.isa").nc_matmul  # noqa: B018 - a look is the test
    except (ImportError, AttributeError) as error:
        return None, f"the installed `nki` {version} cannot be used: {error}"
    return (package, "") if hasattr(package, "simulate") else (None, f"`nki` {version} has no `simulate`")


def simulated_by(package: ModuleType, source: str, name: str) -> Callable[..., np.ndarray]:
    """The kernel `name` of the text, on that package's own simulator."""
    filename = f"<official {name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": "official_kernels"}
    exec(compile(source, filename, "exec"), namespace)
    return package.simulate(package.jit(namespace[name]))


def assert_agreement(theirs: Callable[..., Any], ours: Callable[..., Any], name: str) -> None:
    """Run one case on both and compare."""
    inputs, tolerance = CASES[name]
    expected, got = (np.asarray(run(*[array.copy() for array in inputs])) for run in (theirs, ours))
    assert got.dtype == expected.dtype
    expected, got = (array.astype(np.float64) for array in (expected, got))
    if tolerance is None:
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_allclose(got, expected, **tolerance)


@pytest.mark.nki
@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_official_simulator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's simulator and ours give the same result for the same text and inputs."""
    package, reason = official_nki()
    if package is None:
        pytest.skip(reason)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
    theirs = simulated_by(package, SOURCE, name)
    assert_agreement(theirs, simulate(load_kernel_source(SOURCE, name), target="trn2"), name)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Our face where AWS's package would be."""
    for name in ("nki", "nki.isa", "nki.language"):
        path = name.replace("nki", "neuron_port.simulator.nki", 1)
        monkeypatch.setitem(sys.modules, name, importlib.import_module(path))
    return face


@pytest.mark.parametrize("name", CASES)
def test_the_harness_runs_every_case(stand_in: ModuleType, name: str) -> None:
    """Every kernel of the comparison runs, by the same calls that AWS's package gets."""
    assert_agreement(simulated_by(stand_in, SOURCE, name), simulate(load_kernel_source(SOURCE, name)), name)


@pytest.mark.parametrize("name", CASES)
def test_the_harness_notices_a_difference(stand_in: ModuleType, name: str) -> None:
    """A result that is off by a hundredth, or by one, is refused in every case."""
    run = simulated_by(stand_in, SOURCE, name)

    def wrong(*arrays: np.ndarray) -> np.ndarray:
        result = np.asarray(run(*arrays))
        return (result + 1 if result.dtype.kind in "iu" else result * 1.01).astype(result.dtype)

    with pytest.raises(AssertionError):
        assert_agreement(wrong, simulate(load_kernel_source(SOURCE, name)), name)


def test_a_placeholder_is_not_taken_for_the_official_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public index carries an empty `nki` 0.0.1; the reason says so."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    package, reason = official_nki()
    assert package is None
    assert "0.0.1 is a placeholder" in reason


def test_our_own_face_is_not_taken_for_the_official_package(
    stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing the simulator with itself would prove nothing."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.6.0")
    assert official_nki() == (None, "our own simulator stands in for `nki` in this process")
