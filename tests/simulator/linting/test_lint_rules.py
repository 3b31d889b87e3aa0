"""Every rule by a pair: the kernel with the good line has no such finding, the kernel with the bad line has it there."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from neuron_port.simulator.linting import lint_source
from neuron_port.simulator.linting.catalogue import RULES
from neuron_port.simulator.linting.findings import Severity

KERNEL = """
import math
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def kernel(x, y):
    tile = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.sbuf)
    other = nl.ndarray((128, 256), dtype=nl.float32, buffer=nl.sbuf)
    counts = nl.ndarray((128, 512), dtype=nl.int32, buffer=nl.sbuf)
    packed = nl.ndarray((128, 512), dtype=nl.float8_e4m3fn_x4, buffer=nl.sbuf)
    acc = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.psum)
    out = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.shared_hbm)
    register = nisa.register_alloc(3)
    number = 3
    nisa.dma_copy(dst=tile, src=x)
    {line}
    nisa.dma_copy(dst=out, src=tile)
    return out
"""
SIGNATURE = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
{line}
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out
"""
OUTPUT = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    unwritten = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    private = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype)
    nisa.dma_copy(dst=tile, src=x)
    nisa.dma_copy(dst=private, src=x)
    nisa.dma_copy(dst=out, src=tile)
    {line}
"""
CLASSES = """
from dataclasses import dataclass
from enum import Enum
import nki
import nki.isa as nisa
import nki.language as nl

@dataclass
{line}
    size: int = 128

@nki.jit
def kernel(x):
    out = nl.ndarray((Sizes().size, 512), dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out
"""
FORI = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def kernel(x, bound):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 512), dtype=x.dtype)
    stop = nisa.register_alloc()
    nisa.register_load(stop, bound)

    def body(i):
        spare = nisa.register_alloc(0)
        nisa.dma_copy(dst=tile, src=x.ap([[512, 128], [1, 512]], scalar_offset=i))
        {line}

    nl.fori_loop(0, stop, body)
    nisa.dma_copy(dst=out, src=tile)
    return out
"""
WHILE = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def kernel(x, condition):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    register = nisa.register_alloc(1)
    {line}
        nisa.register_load(r, condition)
        {end}

    nl.while_loop(register, body)
    nisa.dma_copy(dst=out, src=x)
    return out
"""
LOOP = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    register = nisa.register_alloc(4)
    {line}
        nisa.dma_copy(dst=out, src=x)
    return out
"""
IMPORT = """
{line}
import nki.isa as nisa
import nki

@nki.jit
def kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out
"""
NESTED = """
import nki
import nki.isa as nisa
import nki.language as nl

def copy(dst, src):
    nisa.dma_copy(dst=dst, src=src)

@nki.jit
def copy_kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out

@nki.jit
def kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    copy(out, x)
    {line}
    return out
"""
HOST = """
import numpy as np
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def kernel(x, sizes):
    out = nl.ndarray(sizes, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out

def host(x):
    {line}
"""
STATE = """
import nki
import nki.isa as nisa
import nki.language as nl

SIZE = 512
SIZES = {{}}

def remember(size):
    SIZES["size"] = size

@nki.jit
def kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    {line}
    nisa.dma_copy(dst=out, src=x)
    return out
"""
NO_REORDER = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)

    def body(i):
        nisa.dma_copy(dst=out, src=x)

    def loops():
        nl.fori_loop(0, 4, body)

    {line}
        {inside}
    loops()
    return out
"""
CORES = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    core = nl.program_id(0)
    if core == 0:
        nisa.dma_copy(dst=out, src=x)
        {line}
    nisa.core_barrier(data=out, cores=(0, 1))
    return out
"""


BLOCK = KERNEL.replace("{line}\n", "{line}\n        pass\n")
DECORATOR = KERNEL.replace("    {line}\n", "").replace("@nki.jit", "{line}")


@dataclass(frozen=True)
class Pair:
    """One rule, one template, two lines for its `{line}`."""

    rule: str
    good: str
    bad: str
    template: str = KERNEL
    severity: Severity | None = None
    says: str = ""


PAIRS = [
    Pair("E01", "import nki.language as nl", "import neuronxcc.nki.language as nl", IMPORT, says="0.4"),
    Pair("E03", "def kernel(x, flag=True):", "def kernel(x, *, flag=True):", SIGNATURE, says="`flag`"),
    Pair("E05", "def kernel(x, sizes=(1, 1)):", "def kernel(x, sizes=[1, 1]):", SIGNATURE, says="`sizes`"),
    Pair("E05", "return kernel(x, (128, 512))", "return kernel(x, [128, 512])", HOST, says="[128, 512]"),
    Pair("E05", "return kernel[2](x, (128, 512))", "return kernel[2](x, sizes=[128, 512])", HOST),
    Pair("E06", 'sizes = {"a": 1}', "sizes = {1: 1}", says="`1`"),
    Pair("E06", 'sizes = {"a": 1}', "sizes = {(1, 2): 1}", says="`(1, 2)`"),
    Pair("E07", "class Sizes(nl.NKIObject):", "class Sizes:", CLASSES, says="`Sizes`"),
    Pair("E07", "class Sizes(Enum):", "class Sizes(nl.NKIObject, Enum):", CLASSES, says="one base"),
    Pair("E08", "t = nl.ndarray((128, 1), nl.float32, nl.sbuf)", "t = nl.ndarray((128, 1), nl.float32, 'sbuf')"),
    Pair("E08", "t = nl.zeros((128, 1), nl.float32)", "t = nl.zeros((128, 1), nl.float32, buffer='psum')", says="psum"),
    Pair(
        "E09",
        "nisa.dma_copy(dst=tile, src=x, dge_mode=nisa.dge_mode.none)",
        "nisa.dma_copy(dst=tile, src=x, dge_mode=3)",
        says="dge_mode=3",
    ),
    Pair(
        "E09",
        "nisa.tensor_copy(dst=tile, src=acc, engine=nisa.engine.vector)",
        "nisa.tensor_copy(dst=tile, src=acc, engine='vector')",
    ),
    Pair("E10", "nisa.reciprocal(tile, tile)", "nisa.reciprocal(tile)", says="has no dst"),
    Pair("E10", "nisa.reciprocal(dst=tile, data=tile)", "tile[...] = nisa.reciprocal(tile)", says="result"),
    Pair("E10", "nisa.reciprocal(dst=tile, data=tile)", "nisa.reciprocal(tile, dst=tile)", says="first"),
    Pair("E10", "nisa.tensor_copy(dst=tile, src=acc)", "nisa.tensor_copy(dst=tile, src=acc, mask=0)", says="mask="),
    Pair("E10", "nisa.reciprocal(tile, tile)", "y = nisa.reciprocal(tile, dtype=nl.float32)", says="dtype="),
    Pair(
        "E10",
        "nisa.reciprocal(dst=tile, data=tile)",
        "nisa.reciprocal(dst=tile, data=tile, dtype=nl.float32)",
        severity="warning",
    ),
    Pair("E11", "part = tile[0:128, 0:256]", "p, f = nl.mgrid[0:128, 0:256]", says="mgrid"),
    Pair("E11", "part = tile[0:128, 0:256]", "i = nl.arange(128)", says="arange"),
    Pair("E11", "t = nl.zeros((128, 4, 2), nl.float32)", "t = nl.zeros((4, nl.par_dim(128), 2), nl.float32)"),
    Pair("E12", "return out", "return tile", OUTPUT, says="in sbuf"),
    Pair("E12", "return out", "return out, private", OUTPUT, says="private_hbm"),
    Pair("E12", "return out", "return unwritten", OUTPUT, says="nothing writes it"),
    Pair("E13", "@nki.jit", "@nki.jit(platform_target='trn2')", DECORATOR, says="platform_target"),
    Pair("E13", "@nki.jit", "@nki.jit(mode='trace')", DECORATOR, severity="warning"),
    Pair("E14", "nisa.memset(dst=counts, value=2)", "nisa.memset(dst=counts, value=2.0)", says="2.0"),
    Pair("E14", "nisa.memset(counts, 0)", "nisa.memset(counts, -1.0)", says="int32"),
    Pair("E14", "nisa.memset(dst=packed, value=0)", "nisa.memset(dst=packed, value=1)", says="_x4"),
    Pair("E15", "nisa.dma_copy(dst=out, src=tile)", "nisa.dma_copy(dst=out, src=acc[0:128, 0:512])", says="psum"),
    Pair("E15", "nisa.dma_copy(dst=tile, src=x)", "nisa.dma_copy(dst=acc, src=x)", says="psum"),
    Pair(
        "E15",
        "nisa.dma_copy(dst=out, src=counts, dge_mode=nisa.dge_mode.swdge)",
        "nisa.dma_copy(dst=out, src=counts, dge_mode=nisa.dge_mode.hwdge)",
        says="int32 to float32",
    ),
    Pair(
        "E15",
        "nisa.dma_compute(out, [tile, out], reduce_op=nl.add)",
        "nisa.dma_copy(dst=out, src=tile, dst_rmw_op=nl.add)",
        says="dst_rmw_op",
    ),
    Pair("E16", "nisa.register_move(register, register)", "nisa.register_move(register, imm=42)", says="imm"),
    Pair(
        "E16",
        "nisa.affine_select(tile, [[1, 512]], 1, tile, 0.0, offset=3)",
        "nisa.affine_select(tile, [[1, 512]], 3, 1, tile, 0.0, pred=x)",
        says="pred",
    ),
    Pair(
        "E16",
        "nisa.affine_select(tile, [[1, 512]], 1, tile, 0.0, offset=3)",
        "nisa.affine_select(tile, [[1, 512]], 3, channel_multiplier=1, on_true_tile=tile, on_false_value=0.0)",
        says="third positional",
    ),
    Pair(
        "E16",
        "nisa.sendrecv(tile, tile, 0, 1, 0, dma_engine=nisa.dma_engine.dma)",
        "nisa.sendrecv(tile, tile, 0, 1, 0, use_gpsimd_dma=True)",
        says="use_gpsimd_dma",
    ),
    Pair(
        "E16",
        "nisa.activation(dst=tile, op=nl.exp, data=tile, scale=2.0)",
        "nisa.activation(dst=tile, op=nl.exp, data=tile, scales=2.0)",
        says="scales",
    ),
    Pair("E16", "nisa.tensor_tensor(tile, tile, tile, nl.add)", "nisa.tensor_tensor(tile, tile)", says="`data2`, `op`"),
    Pair("E16", "nisa.reciprocal(tile, tile)", "nisa.reciprocal(tile, tile, None, 1)", says="4 are given"),
    Pair("E16", "nisa.reciprocal(tile, tile)", "nisa.reciprocal(tile, tile, data=tile)", says="twice"),
    Pair(
        "E16",
        "nisa.dma_compute(out, [tile, out], nl.add, scales=[1.0, 1.0])",
        "nisa.dma_compute(out, [tile, out], [1.0, 1.0], nl.add)",
        says="scales",
    ),
    Pair(
        "E16",
        "nisa.nc_matmul(acc, tile, tile, is_moving_onezero=True)",
        "nisa.nc_matmul(acc, tile, tile, is_moving_zero=True)",
        says="is_moving_onezero",
    ),
    Pair("E17", "nisa.tensor_copy(dst=tile, src=other)", "nisa.tensor_copy_dynamic_src(dst=tile, src=other)"),
    Pair("E17", "nisa.tensor_copy(dst=tile, src=other)", "nisa.tensor_copy_dynamic_dst(dst=tile, src=other)"),
    Pair("E18", "return", "return tile", FORI, says="returns a value"),
    Pair("E18", "nisa.register_move(spare, i)", "nisa.register_move(i, spare)", FORI, says="loop variable"),
    Pair("E18", "spare = i", "i = spare", FORI, says="assigns it"),
    Pair("E18", "def body(r):", "def body(r):", WHILE, says="does not return"),
    Pair("E18", "nl.fori_loop(0, 4, print, 2)", "nl.fori_loop(0, 4, print, -1)", says="step=-1"),
    Pair("E18", "if True:", "with nl.no_reorder():", NO_REORDER, says="line 14"),
    Pair("E20", "t = tile.reshape((128, 2, 256))", "t = tile.reshape((128, 2, 128))", says="65536 to 32768"),
    Pair("E20", "t = tile.reshape((128, 2, 256))", "t = tile.reshape((64, 1024))", says="partition"),
    Pair("E20", "t = tile.permute((0, 1))", "t = tile.permute((1, 0))", says="partition"),
    Pair("E20", "t = tile.ap([[512, 128], [1, 4]])", "t = tile.ap([[256, 128], [1, 4]])", says="256"),
    Pair("E21", "nisa.dma_transpose(tile, x, axes=(1, 0))", "nisa.dma_transpose(tile, x, axes=(0, 1))", says="(0, 1)"),
    Pair(
        "E21",
        "nisa.dma_transpose(nl.ndarray((256, 128), nl.float32), other)",
        "nisa.dma_transpose(nl.ndarray((128, 256), nl.float32), other)",
        says="(256, 128)",
    ),
    Pair("E23", "if number:", "if register:", BLOCK, says="`register`"),
    Pair("E23", "t = 1 if number > 2 else 0", "t = 1 if register > 2 else 0", says="`register`"),
    Pair("E23", "t = number + 1", "t = register + 1", says="computes with"),
    Pair("E23", "t = int(number)", "t = int(register)", says="int(register)"),
    Pair("E23", "t = list(range(number))", "t = list(range(register))", says="fori_loop"),
    Pair("E24", "nisa.tensor_copy(tile, acc)", "nisa.tensor_cpy(tile, acc)", says="tensor_copy"),
    Pair("E24", "t = nl.zeros((128, 1), nl.float32)", "t = nl.zeros((128, 1), nl.float64)", says="float64"),
    Pair("E24", "nisa.tensor_copy(tile, acc)", "nl.tensor_copy(tile, acc)", says="nisa.tensor_copy"),
    Pair("E24", "least = -3.4028234663852886e+38", "least = nl.fp32.min", says="nl.fp32"),
    Pair("E24", "import nki.language as nl", "from nki import language as nl; from nki.isa import a", IMPORT),
    Pair("E25", "size = 4294967295", "size = 4294967296", says="32 bits"),
    Pair("E25", "size = 1.0", "size = 1j", says="complex"),
    Pair("E26", "nisa.nc_matmul(acc, tile, tile)", "nisa.nc_matmul(tile, tile, tile)", says="must be in psum"),
    Pair("E26", "nisa.tensor_copy(tile, acc)", "nisa.tensor_copy(tile, out)", says="shared_hbm"),
    Pair("E26", "nisa.iota(tile, [[1, 512]])", "nisa.iota(acc, [[1, 512]])", says="must be in sbuf"),
    Pair("H05", "t = nl.multiply(tile, tile)", "t = nl.divide(tile, tile)", says="no division"),
    Pair("H05", "t = nl.multiply(tile, tile)", "t = nl.mod(tile, tile)", says="no modulo"),
    Pair("H05", "t = nl.power(tile, tile)", "t = nl.power(tile, 2.0)", says="exponent"),
    Pair("H05", "t = nl.rsqrt(tile)", "t = nl.rsqrt(acc)", says="PSUM"),
    Pair("H05", "nl.random_seed(nl.full((1, 1), 42, dtype=nl.int32))", "nl.random_seed(42)"),
    Pair("H06", "t = nl.add(tile, tile)", "t = nl.add(tile, other)", says="(128, 512) and (128, 256)"),
    Pair("H07", "t = nl.matmul(tile, tile, transpose_x=True)", "t = nl.matmul(tile, tile)", says="transpose_x"),
    Pair("H07", "t = nl.matmul(tile, tile, True)", "t = nl.matmul(tile, tile, transpose_x=False)"),
    Pair("H08", "nisa.dma_copy(dst=out, src=x)", "nisa.core_barrier(data=out, cores=(0, 1))", CORES, says="one core"),
    Pair("W01", "sizes = [1, 2]", "sizes = [n for n in (1, 2)]", says="list comprehension"),
    Pair("W01", "double = number * 2", "double = lambda n: n * 2", says="lambda"),
    Pair("W01", "sizes = (1, 2)", "sizes = {1, 2}", says="set"),
    Pair("W01", "sizes = (1, 2)", "sizes = set()", says="set"),
    Pair("W01", "size = number", "t = (size := number)", says="walrus"),
    Pair("W01", "assert number, 'x'", "raise ValueError('x')", says="raise"),
    Pair("W01", "nisa.reciprocal(tile, tile)", "nisa.reciprocal(*(tile, tile))", says="starred"),
    Pair("W01", "first = number", "first, *rest = (1, 2)", says="starred"),
    Pair("W01", "size = number", "global size", says="global"),
    Pair("W01", "size = number", "del number", says="del"),
    Pair("W01", "size = number", "yield number", says="yield"),
    Pair("W01", "if number:", "try:", KERNEL.replace("{line}\n", "{line}\n        pass\n    {end}\n"), says="try"),
    Pair("W01", "with nl.no_reorder():", "with open('x'):", BLOCK, says="open"),
    Pair("W01", "def kernel(x, y):", "def kernel(x, *y):", SIGNATURE, says="`*y`"),
    Pair("W02", "nl.device_print('x', tile)", "print('x')", says="device_print"),
    Pair("W03", "for i in range(4):", "for i in nl.affine_range(4):", LOOP, says="affine_range"),
    Pair("W03", "engine = nisa.engine.vector", "engine = nisa.vector_engine", says="vector_engine"),
    Pair(
        "W03",
        "size = nl.tile_size.sbuf_fmax_bytes",
        "size = nl.tile_size.total_available_sbuf_size",
        says="total_available_sbuf_size",
    ),
    Pair("W04", "t = 1 if y != None else 0", "t = 1 if y is not None else 0", says="is not"),
    Pair("W05", "t = min(number, 4)", "t = eval('number')", says="eval"),
    Pair("W06", "t = math.ceil(2.5)", "t = np.ceil(2.5)", "import numpy as np\n" + KERNEL, says="np.ceil"),
    Pair("W07", "size = SIZE", "size = SIZES['size']", STATE, says="`remember` writes its items"),
    Pair("W07", "def kernel(x, sizes=None):", "def kernel(x, sizes={}):", SIGNATURE, says="mutable"),
    Pair("W08", "for i in range(4):", "for i in nl.dynamic_range(register):", LOOP, says="fori_loop"),
    Pair("W08", "while len(x.shape) > 4:", "while register:", LOOP, says="while_loop"),
    Pair("W09", "copy(out, x)", "copy_kernel(x)", NESTED, says="`copy_kernel`"),
]  # fmt: skip


def fill(pair: Pair, line: str, bad: bool) -> tuple[str, int]:
    """The source with `line` in its place, and the number of that line."""
    ends = {
        WHILE: "pass" if bad else "return r",
        NO_REORDER: "loops()",
    }
    end = ends.get(pair.template, "finally:\n        pass" if bad else "")
    source = pair.template.replace("{end}", end).replace("{inside}", end).replace("{{}}", "{}")
    number = source[: source.index("{line}")].count("\n") + 1
    return source.replace("{line}", line), number


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.rule} {pair.bad}")
def test_the_good_line_is_accepted(pair: Pair) -> None:
    """The kernel with the good line has no finding of the rule, and no error at all."""
    source, _ = fill(pair, pair.good, bad=False)
    findings = lint_source(source)
    assert not [finding for finding in findings if finding.rule == pair.rule], findings
    assert not [finding for finding in findings if finding.severity == "error"], findings


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.rule} {pair.bad}")
def test_the_bad_line_is_refused_by_name(pair: Pair) -> None:
    """The kernel with the bad line has the rule's finding at that line, with its severity, words, cure and source."""
    source, line = fill(pair, pair.bad, bad=True)
    found = [finding for finding in lint_source(source, "kernel.py") if finding.rule == pair.rule]
    assert {finding.line for finding in found} == {line}, lint_source(source)
    finding = next(finding for finding in found if pair.says in finding.message + finding.cure)
    assert finding.path == "kernel.py"
    assert finding.column > 0
    assert finding.severity == (pair.severity or RULES[pair.rule].severity)
    assert finding.cure
    assert finding.source == RULES[pair.rule].source


def test_every_rule_has_a_pair() -> None:
    """No rule of the catalogue is untested; E00 has tests of its own."""
    assert {pair.rule for pair in PAIRS} | {"E00"} == set(RULES)
