"""`neuron-port simulate`: any kernel file on given inputs, against a reference, within limits."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.pipeline.command import failed, run

KERNEL = """
import nki
import nki.isa as nisa
import nki.language as nl
from enum import Enum


class Mode(Enum):
    PLAIN = 0
    TWICE = 1


@nki.jit
def scale(x, factor=2.0, mode=Mode.PLAIN):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    print("tile is", tile.shape)
    times = 2 if mode == Mode.TWICE else 1
    for _ in range(times):
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=factor)
    nisa.dma_copy(dst=out, src=tile)
    return out


@nki.jit
def forever(x):
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    while True:
        nisa.dma_copy(dst=tile, src=x)


@nki.jit
def too_wide(x):
    tile = nl.ndarray((256, 8), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)


@nki.jit
def divides(x):
    return x.shape[0] // 0


@nki.jit
def increment(cache):
    tile = nl.ndarray(cache.shape, dtype=cache.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=cache)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=1.0)
    nisa.dma_copy(dst=cache, src=tile)
    return cache
"""

REFERENCE = """
import numpy as np
import torch


def doubled(x: torch.Tensor, factor: float = 2.0):
    return x * factor


def doubled_numpy(x: np.ndarray, factor=2.0):
    return x * factor


def doubled_dict(x: torch.Tensor, **others):
    return {"out": x * others["factor"] if "factor" in others else x * 2}


def no_array(x: torch.Tensor):
    return "text"


def wrong_by_two_percent(x: torch.Tensor):
    return x * 2 * 1.02


def another_shape(x: torch.Tensor):
    return x[:-1] * 2


def fails(x: torch.Tensor):
    raise ValueError("no such thing")
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test stands in a folder with a kernel file and a reference file."""
    monkeypatch.chdir(tmp_path)
    Path("kernel.py").write_text(KERNEL)
    Path("reference.py").write_text(REFERENCE)


# What it prints and writes


def test_a_run_prints_its_figures_and_writes_its_outputs() -> None:
    """Shapes, seeds, engines, traffic and memory go to stdout; the outputs are in the file, bit for bit."""
    done = run("simulate", "kernel.py:scale", "-i", "x=128x256", "-s", "factor=3.0", "-o", "out.npz")
    assert done.code == 0
    for words in (
        "normal, seed 0", "(128, 256) float32", "dma 2", "vector 1", "131,072 bytes read, 131,072 written",
        "1,024 of", "fullest at kernel.py:", "0 of 8 banks", "warnings      none",
    ):  # fmt: skip
        assert words in done.stdout, words
    assert "simulated in" in done.stderr
    assert "tile is" in done.stderr
    assert "tile is" not in done.stdout
    x = np.random.default_rng(0).standard_normal((128, 256), dtype=np.float32)
    np.testing.assert_array_equal(np.load("out.npz")["output_0"], x * np.float32(3))


def test_the_same_command_makes_the_same_inputs_and_another_seed_others() -> None:
    """Made inputs depend on the seed, and on nothing else."""
    for name, seed in (("one", 0), ("two", 0), ("three", 7)):
        assert (
            run("simulate", "kernel.py:scale", "-i", "x=8x8", "--seed", seed, "-o", f"{name}.npz").code == 0
        )
    one, two, three = (np.load(f"{name}.npz")["output_0"] for name in ("one", "two", "three"))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, three)


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("4x4:float32:zeros", np.zeros((4, 4))),
        ("4x4:float16:ones:0.5", np.full((4, 4), 0.5)),
        ("2x8:bfloat16:arange", np.arange(16).reshape(2, 8)),
    ],
)
def test_fills_are_what_they_say(spec: str, values: np.ndarray) -> None:
    """zeros, ones x NUMBER and arange, in the dtype that is asked for."""
    assert (
        run("simulate", "kernel.py:scale", "-i", f"x={spec}", "-s", "factor=1.0", "-o", "out.npz").code == 0
    )
    output = np.load("out.npz")["output_0"]
    output = output.view(ml_dtypes.bfloat16) if output.dtype.kind == "V" else output
    np.testing.assert_array_equal(output.astype(np.float64), values)


def test_inputs_come_from_files_in_every_dtype_that_numpy_can_keep() -> None:
    """An archive gives arrays by name; two raw bytes are bfloat16, and 64-bit values become 32-bit ones."""
    x = np.arange(64).reshape(8, 8)
    for dtype in (np.float64, ml_dtypes.bfloat16):
        np.savez("in.npz", x=x.astype(dtype))
        assert run("simulate", "kernel.py:scale", "-i", "in.npz", "-o", "out.npz").code == 0
        output = np.load("out.npz")["output_0"]
        output = output.view(ml_dtypes.bfloat16) if output.dtype.kind == "V" else output
        np.testing.assert_array_equal(output.astype(np.float64), 2.0 * x)


def test_a_setting_may_be_a_name_of_the_kernel_file() -> None:
    """--set mode=Mode.TWICE is the enum's member, not a word."""
    done = run("simulate", "kernel.py:scale", "-i", "x=8x8", "-s", "mode=Mode.TWICE", "--json")
    assert done.json["instructions_by_engine"]["vector"] == 2


def test_a_mutable_input_keeps_what_the_kernel_wrote() -> None:
    """--mutable lets a kernel write its input, and the new contents are in the output file."""
    np.save("cache.npy", np.zeros((4, 4), np.float32))
    refused = run("simulate", "kernel.py:increment", "-i", "cache=cache.npy")
    assert "cache" in failed(refused, 1)
    done = run(
        "simulate", "kernel.py:increment", "-i", "cache=cache.npy", "--mutable", "cache", "-o", "out.npz"
    )
    assert done.code == 0, done.stderr
    np.testing.assert_array_equal(np.load("out.npz")["cache"], np.ones((4, 4)))


# References


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["doubled", "doubled_numpy", "doubled_dict"])
def test_a_right_kernel_agrees_with_its_reference(name: str, dtype: str) -> None:
    """torch and NumPy references pass in both dtypes, and the limit is explained in units of the dtype's noise."""
    done = run("simulate", "kernel.py:scale", "-i", f"x=128x64:{dtype}", "-r", f"reference.py:{name}")
    assert done.code == 0, done.stdout
    assert "passed: relative L2" in done.stdout
    assert "limit" in done.stdout
    assert dtype in done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_kernel_fails_with_the_limit_that_it_breaks(dtype: str) -> None:
    """Two percent off is refused in both dtypes, with exit code 1 and the broken limit."""
    done = run(
        "simulate", "kernel.py:scale", "-i", f"x=128x64:{dtype}", "-r", "reference.py:wrong_by_two_percent"
    )
    assert done.code == 1
    assert "FAILED" in done.stdout
    assert "limit" in done.stdout


def test_a_reference_may_stand_beside_its_kernel() -> None:
    """A reference in the kernel's own file is found, although that file imports nki."""
    Path("both.py").write_text(KERNEL + "\n\ndef doubled(x):\n    return x * 2\n")
    done = run("simulate", "both.py:scale", "-i", "x=16x16", "-r", "both.py:doubled")
    assert done.code == 0, done.stderr
    assert "passed: relative L2" in done.stdout


def test_a_tolerance_is_taken_as_it_is_given() -> None:
    """Two percent off passes with 3e-2 for each element, and fails with 1e-2."""
    command = ("simulate", "kernel.py:scale", "-i", "x=16x16", "-r", "reference.py:wrong_by_two_percent")
    assert run(*command, "--tolerance", "3e-2").code == 0
    refused = run(*command, "--tolerance", "1e-2,1e-6")
    assert refused.code == 1
    assert "elements are outside" in refused.stdout


def test_another_shape_fails_and_a_failing_reference_is_named() -> None:
    """Shapes are compared first; an exception of the reference is its outcome, in one sentence."""
    done = run("simulate", "kernel.py:scale", "-i", "x=16x16", "-r", "reference.py:another_shape")
    assert done.code == 1
    assert "shape" in done.stdout
    said = failed(run("simulate", "kernel.py:scale", "-i", "x=16x16", "-r", "reference.py:fails"), 1)
    assert "`fails` failed: ValueError: no such thing" in said
    said = failed(run("simulate", "kernel.py:scale", "-i", "x=16x16", "-r", "reference.py:no_array"), 1)
    assert "`no_array` returns a str" in said


# What is refused


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("kernel.py",), 2, "`kernel.py` is not FILE:FUNCTION"),
        (("nowhere.py:scale",), 2, "File not found: `nowhere.py`"),
        (("kernel.py:scala",), 1, "no kernel `scala`"),
        (("kernel.py:scale",), 2, "needs a value for `x`"),
        (("kernel.py:scale", "-i", "y=8x8"), 2, "has no argument `y`"),
        (("kernel.py:scale", "-i", "x=8x8", "-s", "facter=1"), 2, "Did you mean `factor`?"),
        (("kernel.py:scale", "-i", "x=8x8:float12"), 2, "`float12`"),
        (("kernel.py:scale", "-i", "x=8x8:float32:normall"), 2, "Did you mean `normal`?"),
        (("kernel.py:scale", "-i", "x=8x8:int32"), 2, "random int32 values need a range"),
        (("kernel.py:scale", "-i", "x=gone.npy"), 2, "Input file not found: `gone.npy`"),
        (("kernel.py:scale", "-i", "x"), 2, "names no argument"),
        (("kernel.py:scale", "-i", "x=8x8", "-i", "x=8x8"), 2, "`x` is given 2 times"),
        (("kernel.py:scale", "-i", "x=8x8", "-s", "mode=Mode.THRICE"), 2, "knows no `Mode.THRICE`"),
        (("kernel.py:scale", "-i", "x=8x8", "--mutable", "y"), 2, "--mutable y"),
        (("kernel.py:scale", "-i", "x=8x8", "--target", "trn9"), 1, "Unknown target: `trn9`"),
        (("kernel.py:scale", "-i", "x=8x8", "--tolerance", "1e-2"), 2, "there is no --reference"),
        (
            ("kernel.py:scale", "-i", "x=8x8", "-r", "reference.py:doubles"),
            2,
            "defines no function `doubles`",
        ),
        (
            ("kernel.py:scale", "-i", "x=8x8", "-r", "reference.py:doubled", "--tolerance", "a"),
            2,
            "Tolerance `a`",
        ),
    ],
)
def test_a_call_that_cannot_be_is_refused_in_one_sentence(
    arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    """Every mistake on the command line is named with its value, before the kernel runs."""
    assert sentence in failed(run("simulate", *arguments, "--quiet"), code)


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [("too_wide", "tile = nl.ndarray((256, 8)", "128"), ("divides", "x.shape[0] // 0", "ZeroDivisionError")],
)
def test_a_kernel_that_fails_is_named_with_its_line(name: str, line: str, words: str) -> None:
    """What the simulator refuses and what the kernel itself raises look alike: file, line, reason, no traceback."""
    number = next(n for n, text in enumerate(KERNEL.splitlines(), 1) if line in text)
    said = failed(run("simulate", f"kernel.py:{name}", "-i", "x=256x8"), 1)
    assert f"kernel.py:{number}" in said or f"kernel.py:{number + 1}" in said
    assert words in said


def test_the_traceback_is_there_on_request() -> None:
    """--traceback shows how the kernel came to its line, and the sentence all the same."""
    done = run("simulate", "kernel.py:divides", "-i", "x=8x8", "--traceback")
    assert done.code == 1
    assert "Traceback" in done.stderr
    assert len(done.errors) == 1


@pytest.mark.parametrize(
    ("limit", "words"),
    [(("--instruction-limit", "1000"), "1000 instructions"), (("--time-limit", "0.3"), "seconds")],
)
def test_a_kernel_without_end_is_ended(limit: tuple[str, str], words: str) -> None:
    """An endless loop ends at the limit on instructions or on time, with a sentence that names it."""
    assert words in failed(run("simulate", "kernel.py:forever", "-i", "x=8x8", *limit), 1)


def test_a_kernel_of_a_package_runs_with_its_imports(tmp_path: Path) -> None:
    """Relative imports and third-party modules of a kernel file work, in a process of its own."""
    package = tmp_path / "library" / "kernels"
    package.mkdir(parents=True)
    (tmp_path / "library" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (tmp_path / "library" / "sizes.py").write_text("import numpy as np\nFACTOR = float(np.float32(3.0))\n")
    imported = KERNEL.replace("import nki\n", "import nki\nfrom ..sizes import FACTOR\n", 1)
    (package / "scale.py").write_text(imported.replace("factor=2.0", "factor=FACTOR"))
    command = [sys.executable, "-m", "neuron_port.cli", "simulate", f"{package / 'scale.py'}:scale"]
    done = subprocess.run(
        [*command, "-i", "x=8x8:float32:ones", "-o", "out.npz"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load("out.npz")["output_0"], np.full((8, 8), 3.0))


def test_interruption_ends_cleanly(tmp_path: Path) -> None:
    """Ctrl-C while a kernel runs: exit code 130, one sentence, no traceback, no file."""
    command = [
        sys.executable,
        "-m",
        "neuron_port.cli",
        "simulate",
        "kernel.py:forever",
        "-i",
        "x=8x8",
        "-o",
        "out.npz",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    assert "simulating" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Interrupted while `forever` ran" in stderr
    assert "Traceback" not in stderr
    assert not Path("out.npz").exists()
