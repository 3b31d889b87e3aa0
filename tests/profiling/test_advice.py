"""Every rule of the advice speaks of the kernel that needs it, and is silent when the one thing is changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from neuron_port.profiling.advice import RULES
from tests.profiling.kernels import line_of, normal, profile_of

BF16 = ml_dtypes.bfloat16


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A kernel in which `bad` stands for the blank, and the same with `good`: the rule sees only the first."""

    rule: str
    kernel: str
    bad: str
    good: str
    arrays: tuple[np.ndarray, ...]
    line: str  # text of the line that the advice is about, in the bad kernel
    target: str = "trn2"


STORE = """
        nisa.dma_copy(dst=out, src=y)
        return out
"""

PAIRS = [
    Pair(
        rule="dma-small",
        kernel="""
    def k(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
        for i in range(0, 4096, STEP):
            nisa.dma_copy(dst=y[:, i:i + STEP], src=x[:, i:i + STEP])  # load
    """
        + STORE,
        bad="128",
        good="1024",
        arrays=(normal(128, 4096),),
        line="# load",
    ),
    Pair(
        rule="dma-short-runs",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 32, 64), dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray((P, 32, 64), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=y, src=STEP)  # load
    """
        + STORE,
        bad="x.reshape((P, 64, 32)).permute((0, 2, 1))",
        good="x.reshape((P, 32, 64))",
        arrays=(normal(128, 2048),),
        line="# load",
    ),
    Pair(
        rule="dma-few-engines",
        kernel="""
    def k(x):
        out = nl.ndarray((STEP, 262144 // STEP), dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray((STEP, 262144 // STEP), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=y, src=x.reshape((STEP, 262144 // STEP)))  # load
    """
        + STORE,
        bad="8",
        good="128",
        arrays=(normal(262144),),
        line="# load",
    ),
    Pair(
        rule="dma-repeated",
        kernel="""
    def k(x, w):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        w_sbuf = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=w_sbuf, src=w)
        for i in range(8):
            y = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=y, src=x[i * P:(i + 1) * P, :])
            if STEP:
                w_sbuf = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)
                nisa.dma_copy(dst=w_sbuf, src=w)  # again
            nisa.tensor_tensor(dst=y, data1=y, data2=w_sbuf, op=nl.add)
            nisa.dma_copy(dst=out[i * P:(i + 1) * P, :], src=y)
        return out
    """,
        bad="True",
        good="False",
        arrays=(normal(1024, 2048), normal(128, 2048)),
        line="# again",
    ),
    Pair(
        rule="first-load-exposed",
        kernel="""
    def k(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
        for i in range(0, 8192, STEP):
            nisa.dma_copy(dst=y[:, i:i + STEP], src=x[:, i:i + STEP])  # load
            nisa.activation(dst=y[:, i:i + STEP], op=nl.exp, data=y[:, i:i + STEP])
            nisa.dma_copy(dst=out[:, i:i + STEP], src=y[:, i:i + STEP])
        return out
    """,
        bad="8192",
        good="1024",
        arrays=(normal(128, 8192),),
        line="# load",
    ),
    Pair(
        rule="last-store-exposed",
        kernel="""
    def k(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
        for i in range(0, 8192, STEP):
            nisa.dma_copy(dst=y[:, i:i + STEP], src=x[:, i:i + STEP])
            nisa.activation(dst=y[:, i:i + STEP], op=nl.exp, data=y[:, i:i + STEP])
            nisa.dma_copy(dst=out[:, i:i + STEP], src=y[:, i:i + STEP])  # store
        return out
    """,
        bad="8192",
        good="1024",
        arrays=(normal(128, 8192),),
        line="# store",
    ),
    Pair(
        rule="tensor-cold",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.shared_hbm)
        a = nl.ndarray((P, 512), dtype=x.dtype, buffer=nl.sbuf)
        y = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=a, src=x)
        for i in range(20):
            acc = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.psum)
            for j in range(STEP):
                nisa.nc_matmul(dst=acc, stationary=a[:, 0:128], moving=a, accumulate=j > 0)  # product
            nisa.tensor_scalar(dst=a, data=acc, op0=nl.multiply, operand0=0.001)
        nisa.tensor_copy(dst=y, src=acc)
    """
        + STORE,
        bad="1",
        good="16",
        arrays=(normal(128, 512, dtype=BF16),),
        line="# product",
    ),
    Pair(
        rule="matmul-narrow-moving",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.shared_hbm)
        a = nl.ndarray((P, 512), dtype=x.dtype, buffer=nl.sbuf)
        y = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=a, src=x)
        for j in range(20):
            acc = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.psum)
            for i in range(0, 512, STEP):
                nisa.nc_matmul(dst=acc[:, i:i + STEP], stationary=a[:, 0:128], moving=a[:, i:i + STEP])  # product
        nisa.tensor_copy(dst=y, src=acc)
    """
        + STORE,
        bad="16",
        good="128",
        arrays=(normal(128, 512, dtype=BF16),),
        line="# product",
    ),
    Pair(
        rule="matmul-short-contraction",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.shared_hbm)
        a = nl.ndarray((P, 512), dtype=x.dtype, buffer=nl.sbuf)
        y = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=a, src=x)
        for i in range(40):
            acc = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=acc, stationary=a[0:STEP, 0:128], moving=a[0:STEP, :])  # product
        nisa.tensor_copy(dst=y, src=acc)
    """
        + STORE,
        bad="32",
        good="128",
        arrays=(normal(128, 512, dtype=BF16),),
        line="# product",
    ),
    Pair(
        rule="matmul-float32",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.shared_hbm)
        a = nl.ndarray((P, 512), dtype=STEP, buffer=nl.sbuf)
        y = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=a, src=x)
        acc = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.psum)
        for i in range(40):
            nisa.nc_matmul(dst=acc, stationary=a[:, 0:128], moving=a, accumulate=i > 0)  # product
        nisa.tensor_copy(dst=y, src=acc)
    """
        + STORE,
        bad="nl.float32",
        good="x.dtype",
        arrays=(normal(128, 512, dtype=BF16),),
        line="# product",
    ),
    Pair(
        rule="transpose-repeated",
        kernel="""
    def k(x):
        out = nl.ndarray((P, P), dtype=x.dtype, buffer=nl.shared_hbm)
        a = nl.ndarray((P, 1024), dtype=x.dtype, buffer=nl.sbuf)
        y = nl.ndarray((P, P), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=a, src=x)
        nisa.activation(dst=a, op=nl.exp, data=a)
        for i in range(40):
            t = nl.ndarray((P, P), dtype=x.dtype, buffer=nl.psum)
            nisa.nc_transpose(dst=t, data=a[:, STEP:STEP + P], engine=nisa.engine.tensor)  # transpose
        nisa.tensor_copy(dst=y, src=t)
    """
        + STORE,
        bad="0",
        good="i",
        arrays=(normal(128, 1024, dtype=BF16),),
        line="# transpose",
    ),
    Pair(
        rule="transpose-by-dma",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.shared_hbm)
        a = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)
        y = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=a, src=x)
        if STEP:
            nisa.activation(dst=a, op=nl.exp, data=a)
        for i in range(16):
            t = nl.ndarray((P, P), dtype=x.dtype, buffer=nl.psum)
            nisa.nc_transpose(dst=t, data=a[:, i * P:i * P + P], engine=nisa.engine.tensor)  # transpose
            nisa.tensor_copy(dst=y[:, i * P:i * P + P], src=t)
    """
        + STORE,
        bad="False",
        good="True",
        arrays=(normal(128, 2048, dtype=BF16),),
        line="# transpose",
    ),
    Pair(
        rule="transpose-of-product",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.shared_hbm)
        a = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)
        y = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=a, src=x)
        for i in range(0, 2048, P):
            acc = nl.ndarray((P, P), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=acc, stationary=a[:, i:i + P], moving=a[:, 0:P])
            b = nl.ndarray((P, P), dtype=x.dtype, buffer=nl.sbuf)
            t = nl.ndarray((P, P), dtype=x.dtype, buffer=nl.psum)
            if STEP:
                nisa.tensor_copy(dst=b, src=acc)
            else:
                nisa.activation(dst=b, op=nl.exp, data=acc)
            nisa.nc_transpose(dst=t, data=b, engine=nisa.engine.tensor)  # transpose
            nisa.activation(dst=y[:, i:i + P], op=nl.copy, data=t)
    """
        + STORE,
        bad="True",
        good="False",
        arrays=(normal(128, 2048, dtype=BF16),),
        line="# transpose",
    ),
    Pair(
        rule="tables-switched",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 4096), dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray((P, 4096), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=y, src=x)
        for i in range(8):
            nisa.activation(dst=y[:, i * 512:i * 512 + 512], op=nl.exp, data=y[:, i * 512:i * 512 + 512])
            nisa.activation(dst=y[:, i * 512:i * 512 + 512], op=STEP, data=y[:, i * 512:i * 512 + 512])  # second
    """
        + STORE,
        bad="nl.gelu",
        good="nl.log",
        arrays=(normal(128, 4096),),
        line="# second",
    ),
    Pair(
        rule="vector-bound",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 4096), dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray((P, 4096), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=y, src=x)
        for i in range(16):
            c = y[:, i * 256:i * 256 + 256]
            for j in range(16):
                nisa.tensor_scalar(dst=c, data=c, op0=nl.multiply, operand0=0.5, engine=STEP)  # half
    """
        + STORE,
        bad="nisa.engine.vector",
        good="nisa.engine.vector if i % 2 else nisa.engine.scalar",
        arrays=(normal(128, 4096),),
        line="# half",
    ),
    Pair(
        rule="tiny-instructions",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 256), dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray((P, 256), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=y, src=x)
        for i in range(0, 256, STEP):
            nisa.reciprocal(dst=y[:, i:i + STEP], data=y[:, i:i + STEP])  # each
    """
        + STORE,
        bad="4",
        good="128",
        arrays=(normal(128, 256),),
        line="# each",
    ),
    Pair(
        rule="partitions-idle",
        kernel="""
    def k(x):
        out = nl.ndarray((STEP, 8192 // STEP), dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray((STEP, 8192 // STEP), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=y, src=x.reshape((STEP, 8192 // STEP)))
        nisa.activation(dst=y, op=nl.exp, data=y)  # exp
    """
        + STORE,
        bad="1",
        good="128",
        arrays=(normal(8192),),
        line="# exp",
    ),
    Pair(
        rule="one-buffer",
        kernel="""
    def k(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        y = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)  # tile
        for i in range(8):
            if STEP:
                y = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=y, src=x[i * P:(i + 1) * P, :])
            nisa.activation(dst=y, op=nl.exp, data=y)
            nisa.dma_copy(dst=out[i * P:(i + 1) * P, :], src=y)
        return out
    """,
        bad="False",
        good="True",
        arrays=(normal(1024, 2048),),
        line="# tile",
    ),
    Pair(
        rule="memory-full",
        kernel="""
    def k(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        for i in range(0, 184320, STEP):
            y = nl.ndarray((8, STEP), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=y, src=x[:, i:i + STEP])  # load
            nisa.activation(dst=y, op=nl.exp, data=y)
            nisa.dma_copy(dst=out[:, i:i + STEP], src=y)
        return out
    """,
        bad="30720",
        good="3072",
        arrays=(normal(8, 184320),),
        line="# load",
    ),
    Pair(
        rule="psum-copied-first",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.shared_hbm)
        a = nl.ndarray((P, 512), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=a, src=x)
        for i in range(8):
            acc = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=acc, stationary=a[:, 0:128], moving=a)
            b = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.sbuf)
            y = nl.ndarray((P, 512), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=b, src=acc)  # copy
            nisa.tensor_scalar(dst=y, data=STEP, op0=nl.multiply, operand0=0.5)
    """
        + STORE,
        bad="b",
        good="acc",
        arrays=(normal(128, 512, dtype=BF16),),
        line="# copy",
    ),
    Pair(
        rule="psum-small-copies",
        kernel="""
    def k(x):
        out = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.shared_hbm)
        a = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)
        y = nl.ndarray((P, 2048), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=a, src=x)
        for i in range(0, 2048, STEP):
            acc = nl.ndarray((P, STEP), dtype=nl.float32, buffer=nl.psum)
            for j in range(0, STEP, 64):
                nisa.nc_matmul(dst=acc[:, j:j + 64], stationary=a[:, 0:128], moving=a[:, i + j:i + j + 64])
            nisa.tensor_copy(dst=y[:, i:i + STEP], src=acc)  # copy
    """
        + STORE,
        bad="64",
        good="512",
        arrays=(normal(128, 2048, dtype=BF16),),
        line="# copy",
    ),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.rule)
def test_a_rule_names_the_line_and_is_silent_once_it_is_changed(pair: Pair) -> None:
    """Each rule finds the kernel that breaks it, at its line, with a gain within the device time; not the better one."""
    bad = profile_of(pair.kernel.replace("STEP", pair.bad), *pair.arrays, target=pair.target)
    good = profile_of(pair.kernel.replace("STEP", pair.good), *pair.arrays, target=pair.target)
    found = {advice.location: advice for advice in bad.advice if advice.rule == pair.rule}
    location = f"kernel.py:{line_of(bad, pair.line)}"
    assert location in found, [(advice.rule, advice.location) for advice in bad.advice]
    assert 0 < found[location].gain_ns < bad.timeline.device_ns
    assert pair.rule not in {advice.rule for advice in good.advice}


def test_every_rule_has_a_pair() -> None:
    """No rule is without a kernel that it speaks of and one that it does not."""
    assert len({pair.rule for pair in PAIRS}) == len(PAIRS) == len(RULES)


def test_every_rule_is_documented() -> None:
    """The table of docs/profiling.md has the rules that there are, and no others."""
    document = (Path(__file__).parents[2] / "docs" / "profiling.md").read_text()
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", document, re.MULTILINE)) == {pair.rule for pair in PAIRS}
