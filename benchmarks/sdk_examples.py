"""The NKI examples of AWS's documentation on our simulator: `python benchmarks/sdk_examples.py PATH_OF_AWS_NEURON_SDK`.

Loads every kernel of `nki/examples` unmodified, at the shapes that its own script uses, and compares with a formula in
NumPy. Examples that the documentation shows as broken, or that need a framework on a device, are named with the reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from neuron_port.simulator import SimulatorError, load_kernel
from neuron_port.simulator.nki import simulate

RNG = np.random.default_rng(0)
BF16 = ml_dtypes.bfloat16


@dataclass(frozen=True, kw_only=True)
class Example:
    """One kernel, its inputs, what it should return, and the tolerance relative to the largest value."""

    file: str
    kernel: str
    inputs: tuple[Any, ...]
    expected: Callable[..., Any]
    relative: float = 0.0
    refused: str = ""  # the words of the error, where the documentation shows a mistake


def _normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def _average_pool(image: np.ndarray, size: int) -> np.ndarray:
    channels, height, width = image.shape
    blocks = image.reshape(channels, height // size, size, width // size, size)
    return blocks.astype(np.float32).mean(axis=(2, 4))


def _max_pool(image: np.ndarray, size: int) -> np.ndarray:
    channels, height, width = image.shape
    blocks = image.reshape(channels, height // size, size, width // size, size)
    return blocks.astype(np.float32).max(axis=(2, 4))


def _product(left_transposed: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left_transposed.astype(np.float32).T @ right.astype(np.float32)


def _mamba(
    delta: np.ndarray, u: np.ndarray, decay: np.ndarray, b_in: np.ndarray, c_out: np.ndarray
) -> np.ndarray:
    """[batch, channels, time]: state = exp(delta A) state + delta B u, y = C . state."""
    state = np.zeros((*delta.shape[:2], decay.shape[1]))
    result = np.empty(delta.shape)
    for moment in range(delta.shape[2]):
        step = delta[:, :, moment, None]
        state = np.exp(step * decay) * state + step * b_in[:, None, :, moment] * u[:, :, moment, None]
        result[:, :, moment] = (c_out[:, None, :, moment] * state).sum(axis=-1)
    return result


def _examples() -> list[Example]:
    """In this order, because they share one stream of random numbers."""
    return [*_products(), *_scans(), *_additions(), *_layouts()]


def _products() -> list[Example]:
    """The matrix products of the tutorial."""
    left, right = _normal(1024, 4096, dtype=BF16), _normal(1024, 2048, dtype=BF16)
    matmul = "matrix_multiplication/matrix_multiplication_nki_kernels.py"
    return [
        *(
            Example(
                file=matmul,
                kernel=f"nki_matmul_{name}_",
                inputs=(left, right),
                expected=_product,
                relative=4e-3,
            )
            for name in ("tiled", "hoist_load", "block_free_dimension", "fully_optimized")
        ),
        Example(
            file=matmul,
            kernel="nki_matmul_basic_",
            inputs=(left[:128, :64].copy(), right[:128, :512].copy()),
            expected=_product,
            relative=4e-3,
        ),
    ]


def _scans() -> list[Example]:
    """The three versions of Mamba."""
    mamba_inputs = (
        np.abs(_normal(1, 256, 512)),
        _normal(1, 256, 512),
        -np.abs(_normal(256, 16)),
        _normal(1, 16, 512),
        _normal(1, 16, 512),
    )
    return [
        *(
            Example(
                file="fused_mamba/mamba_nki_kernels.py",
                kernel=f"mamba_v{version}",
                inputs=mamba_inputs,
                expected=_mamba,
                relative=1e-5,
            )
            for version in (1, 2, 3)
        ),
    ]


def _additions() -> list[Example]:
    """What guides begin with."""
    a, b = _normal(256, 1024, dtype=BF16), _normal(256, 1024, dtype=BF16)
    return [
        Example(
            file="tensor_addition/tensor_addition_nki_kernels.py",
            kernel="nki_tensor_add",
            inputs=(a, b),
            expected=lambda a, b: a.astype(np.float32) + b.astype(np.float32),
            relative=4e-3,
        ),
        *(
            Example(
                file=f"{file}.py",
                kernel="nki_tensor_add_kernel",
                inputs=(_normal(4, 3), _normal(4, 3)),
                expected=lambda a, b: a + b,
            )
            for file in ("getting_started_torch", "getting_started_jax", "getting_started_baremetal")
        ),
        Example(
            file="simulate/nki_simulate_example.py",
            kernel="add_kernel",
            inputs=(_normal(128, 512), _normal(128, 512)),
            expected=lambda a, b: a + b,
        ),
    ]


def _layouts() -> list[Example]:
    """Transposition, pooling, indexing and layout."""
    image, wide = _normal(2, 6, 6, dtype=BF16), _normal(256, 512)
    integers = np.arange(60, dtype=np.int8).reshape(5, 12)
    return [
        Example(
            file="transpose2d/transpose2d_nki_kernels.py",
            kernel="tensor_transpose2D_kernel_",
            inputs=(integers, (3, 4)),
            expected=lambda x, shape: x.reshape(5, *shape).transpose(0, 2, 1).reshape(5, -1),
        ),
        Example(
            file="average_pool2d/average_pool2d_nki_kernels.py",
            kernel="tensor_avgpool_kernel",
            inputs=(image, 2),
            expected=_average_pool,
            relative=4e-3,
        ),
        Example(
            file="index-case-1.py",
            kernel="tensor_split_kernel_",
            inputs=(_normal(4, 5, dtype=BF16),),
            expected=lambda x: (x[:, 0::2], x[:, 1::2]),
        ),
        Example(
            file="index-case-3.py",
            kernel="tensor_maxpool_kernel_",
            inputs=(_normal(128, 9, 6, dtype=BF16), 3),
            expected=_max_pool,
        ),
        Example(
            file="layout-pass.py",
            kernel="tensor_exp_kernel_",
            inputs=(_normal(128, 512),),
            expected=np.exp,
            relative=1e-6,
        ),
        Example(
            file="layout-violation.py",
            kernel="tensor_exp_kernel_",
            inputs=(wide,),
            expected=np.exp,
            refused="256",
        ),
    ]


# Left out, each with the reason.
LEFT_OUT = {
    "layout-dynamic-loop.py": "the kernel uses a variable `k` that it does not define",
    "layout-loop.py": "imports nki_jit from torch_neuronx, the interface of earlier versions",
}


def run(example: Example, folder: Path) -> tuple[bool, str]:
    """(whether the kernel does what it should, one line about it)."""
    kernel = load_kernel(folder / example.file, example.kernel, imports="any")
    inputs = tuple(x.copy() if isinstance(x, np.ndarray) else x for x in example.inputs)
    started = time.perf_counter()
    try:
        outputs = simulate(kernel)(*inputs)
    except SimulatorError as error:
        told = str(error).splitlines()[0].rpartition("/")[2]
        return bool(example.refused) and example.refused in told, f"refused: {told}"
    seconds = time.perf_counter() - started
    if example.refused:
        return False, "runs, although the documentation shows it as a mistake"
    expected = example.expected(*example.inputs)
    pairs = zip(outputs, expected) if isinstance(expected, tuple) else [(outputs, expected)]
    error = 0.0
    for output, golden in pairs:
        golden = np.asarray(golden, np.float64)
        assert output.shape == golden.shape, f"{output.shape} instead of {golden.shape}"
        error = max(error, float(np.abs(output.astype(np.float64) - golden).max() / np.abs(golden).max()))
    return error <= example.relative, f"{seconds * 1e3:9.1f} ms, error {error:.1e} of the largest value"


def main() -> None:
    """Run every example and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="path of a checkout of aws-neuron/aws-neuron-sdk")
    checkout = parser.parse_args().checkout
    folder = checkout / "nki/examples"
    if not folder.is_dir():
        sys.exit(f"`{checkout}` is no checkout of aws-neuron-sdk: it has no folder `nki/examples`")
    good = 0
    examples = _examples()
    for example in examples:
        right, said = run(example, folder)
        good += right
        print(f"{'ok  ' if right else 'FAIL'} {example.file:56} {example.kernel:34} {said}", flush=True)
    for file, reason in LEFT_OUT.items():
        print(f"-    {file:56} {reason}")
    print(f"{good} of {len(examples)} kernels behave as documented")
    sys.exit(good != len(examples))


if __name__ == "__main__":
    main()
