"""Our simulator beside triton-viz's NKI interpreter, one run: `python benchmarks/triton_viz_speed.py [CHECKOUT]`.

Both execute the same kernel text on the same arrays: a tiled matmul, a tiled transpose and a tiled attention with
an online softmax, in the ten instructions that the interpreter knows (its "NKI Beta 2" frontend, run without
tracing clients, which is its fastest way). Our side runs with every check on. CHECKOUT is a folder with a source
tree of triton-viz; without it the installed package is used, if it has that frontend (the release 3.0 has not).
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from neuron_port.simulator import run_kernel, to_hbm
from neuron_port.simulator.blas import OneBlasThread
from neuron_port.simulator.nki import isa, language

REPEATS = 7
BACKEND = "triton_viz.core.simulation.nki_beta2"

KERNELS = '''
import nki.isa as nisa
import nki.language as nl


def matmul(left, right, out):
    """out [M, N] = left [K, M] transposed @ right [K, N], tiles of [128, 128] x [128, 512]."""
    K, M = left.shape
    N = right.shape[1]
    for m in nl.affine_range(M // 128):
        for n in nl.affine_range(N // 512):
            psum = nl.ndarray((128, 512), nl.float32, buffer=nl.psum)
            for k in nl.affine_range(K // 128):
                stationary = nl.ndarray((128, 128), dtype=left.dtype, buffer=nl.sbuf)
                moving = nl.ndarray((128, 512), dtype=right.dtype, buffer=nl.sbuf)
                nisa.dma_copy(dst=stationary, src=left[k * 128 : (k + 1) * 128, m * 128 : (m + 1) * 128])
                nisa.dma_copy(dst=moving, src=right[k * 128 : (k + 1) * 128, n * 512 : (n + 1) * 512])
                nisa.nc_matmul(dst=psum, stationary=stationary, moving=moving)
            result = nl.ndarray((128, 512), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=result, src=psum)
            nisa.dma_copy(dst=out[m * 128 : (m + 1) * 128, n * 512 : (n + 1) * 512], src=result)
    return out


def transpose(x, out):
    """out [N, M] = x [M, N] transposed, in blocks of 128."""
    M, N = x.shape
    for m in nl.affine_range(M // 128):
        for n in nl.affine_range(N // 128):
            tile = nl.ndarray((128, 128), dtype=x.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile, src=x[m * 128 : (m + 1) * 128, n * 128 : (n + 1) * 128])
            psum = nl.ndarray((128, 128), dtype=x.dtype, buffer=nl.psum)
            nisa.nc_transpose(dst=psum, data=tile)
            result = nl.ndarray((128, 128), dtype=x.dtype, buffer=nl.sbuf)
            nisa.tensor_copy(dst=result, src=psum)
            nisa.dma_copy(dst=out[n * 128 : (n + 1) * 128, m * 128 : (m + 1) * 128], src=result)
    return out


def attention(q, k, v, out):
    """out [S, D] = softmax(q k^T) v for q, k [D, S] and v [S, D], D = 128, keys in blocks of 128."""
    S, D = v.shape
    for m in nl.affine_range(S // 128):
        q_tile = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf)
        nisa.dma_copy(dst=q_tile, src=q[:, m * 128 : (m + 1) * 128])
        top = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
        context = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf)
        for n in nl.affine_range(S // 128):
            k_tile = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf)
            v_tile = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf)
            nisa.dma_copy(dst=k_tile, src=k[:, n * 128 : (n + 1) * 128])
            nisa.dma_copy(dst=v_tile, src=v[n * 128 : (n + 1) * 128, :])
            scores_psum = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=scores_psum, stationary=q_tile, moving=k_tile)
            scores = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=scores, src=scores_psum)
            block_top = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_reduce(dst=block_top, op=nl.maximum, data=scores, axis=1, keepdims=True)
            new_top = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
            if n == 0:
                nisa.tensor_copy(dst=new_top, src=block_top)
            else:
                nisa.tensor_tensor(dst=new_top, data1=top, data2=block_top, op=nl.maximum)
            minus_top = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_scalar(dst=minus_top, data=new_top, op0=nl.multiply, operand0=-1.0)
            weights = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf)
            nisa.activation(dst=weights, op=nl.exp, data=scores, bias=minus_top)
            block_total = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_reduce(dst=block_total, op=nl.add, data=weights, axis=1, keepdims=True)
            weights_psum = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_transpose(dst=weights_psum, data=weights)
            turned = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=turned, src=weights_psum)
            block_psum = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(dst=block_psum, stationary=turned, moving=v_tile)
            block = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_copy(dst=block, src=block_psum)
            if n == 0:
                nisa.tensor_copy(dst=context, src=block)
                nisa.tensor_copy(dst=total, src=block_total)
            else:
                shrink = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
                nisa.activation(dst=shrink, op=nl.exp, data=top, bias=minus_top)
                nisa.tensor_scalar(dst=context, data=context, op0=nl.multiply, operand0=shrink)
                nisa.tensor_tensor(dst=context, data1=context, data2=block, op=nl.add)
                nisa.tensor_scalar(dst=total, data=total, op0=nl.multiply, operand0=shrink)
                nisa.tensor_tensor(dst=total, data1=total, data2=block_total, op=nl.add)
            nisa.tensor_copy(dst=top, src=new_top)
        inverse = nl.ndarray((128, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.reciprocal(dst=inverse, data=total)
        nisa.tensor_scalar(dst=context, data=context, op0=nl.multiply, operand0=inverse)
        nisa.dma_copy(dst=out[m * 128 : (m + 1) * 128, :], src=context)
    return out
'''


def copied_module(name: str, original: ModuleType) -> ModuleType:
    """A module of the same contents under another name: the interpreter patches its functions into it."""
    module = ModuleType(name)
    vars(module).update({key: value for key, value in vars(original).items() if not key.startswith("__")})
    for token in ("add", "multiply", "maximum", "exp"):
        if hasattr(original, token):
            setattr(module, token, getattr(original, token))
    return module


def functions(nki_isa: ModuleType, nki_language: ModuleType) -> dict[str, Callable[..., Any]]:
    """The kernels above, bound to these modules."""
    nki = ModuleType("nki")
    nki.isa, nki.language = nki_isa, nki_language  # type: ignore[attr-defined]
    known = {"nki": nki, "nki.isa": nki_isa, "nki.language": nki_language}
    namespace: dict[str, Any] = {"__name__": "kernels"}
    before = {name: sys.modules.get(name) for name in known}
    sys.modules.update(known)
    try:
        exec(compile(KERNELS, "benchmarks/triton_viz_speed.py:KERNELS", "exec"), namespace)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return {name: namespace[name] for name in ("matmul", "transpose", "attention")}


def interpreter(checkout: str | None) -> tuple[Any, dict[str, Callable[..., Any]]]:
    """(triton-viz's interpreter, the kernels for it).

    Raises:
        ImportError, AttributeError: triton-viz, or the frontend in it, is not there or does not fit this triton.
    """
    if checkout is not None:
        sys.path.insert(0, checkout)
    stand_ins = {"nki": ModuleType("nki"), "nki.isa": copied_module("nki.isa", isa)}
    stand_ins["nki.language"] = copied_module("nki.language", language)
    sys.modules.update(stand_ins)  # it imports nki, which AWS's package would be
    backend = importlib.import_module(BACKEND)
    backend.nki_patch_lang()
    return backend, functions(stand_ins["nki.isa"], stand_ins["nki.language"])


def best_seconds(*calls: Callable[[], Any]) -> list[float]:
    """Least CPU time of each call; they take turns, and CPU time leaves out what else the machine does."""
    best = [float("inf")] * len(calls)
    for _ in range(REPEATS):
        for position, call in enumerate(calls):
            start = time.process_time()
            call()
            best[position] = min(best[position], time.process_time() - start)
    return best


def cases() -> dict[str, tuple[str, list[np.ndarray], np.ndarray]]:
    """Label -> (kernel, inputs, expected output)."""
    rng = np.random.default_rng(0)
    left, right, square = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((512, 512), (512, 2048), (1024, 1024))
    )
    q, k = (rng.standard_normal((128, 512)).astype(np.float32) / 12**0.5 for _ in range(2))
    v = rng.standard_normal((512, 128)).astype(np.float32)
    weights = np.exp(q.T @ k)
    return {
        "matmul 512 x 512 x 2048": ("matmul", [left, right], left.T @ right),
        "transpose 1024 x 1024": ("transpose", [square], square.T),
        "attention, 512 positions of 128": (
            "attention",
            [q, k, v],
            weights @ v / weights.sum(axis=1, keepdims=True),
        ),
    }


def main() -> int:
    """Measure and print; 0 also when triton-viz is missing."""
    ours = functions(isa, language)
    try:
        backend, theirs = interpreter(sys.argv[1] if len(sys.argv) > 1 else None)
    except (ImportError, AttributeError) as error:
        print(f"skipped: triton-viz with its NKI Beta 2 interpreter is not installed here ({error})")
        print("pass the folder of a source tree: python benchmarks/triton_viz_speed.py path/to/triton-viz")
        return 0
    for label, (name, inputs, expected) in cases().items():
        result = np.zeros(expected.shape, np.float32)
        interpreted = backend.NKIBeta2InterpretedFunction(theirs[name])
        handle = to_hbm(np.zeros(expected.shape, np.float32), mutable=True)

        def peer(run: Any = interpreted.run, arrays: Any = (*inputs, result)) -> None:
            with OneBlasThread():
                run(*arrays)

        def own(kernel: Any = ours[name], arrays: Any = (*inputs, handle)) -> None:
            run_kernel(kernel, *arrays)

        peer_seconds, own_seconds = best_seconds(peer, own)
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(handle.numpy(), expected, rtol=1e-3, atol=1e-3)
        times = f"triton-viz {peer_seconds * 1e3:8.1f} ms  neuron-port {own_seconds * 1e3:8.1f} ms"
        print(f"{label:34s} {times}  x {peer_seconds / own_seconds:.1f} faster")
    return 0


if __name__ == "__main__":
    sys.exit(main())
