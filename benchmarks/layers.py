"""Every recipe at the sizes of real models, simulated, by torch and by NumPy: `python benchmarks/layers.py`.

Each layer's kernel runs on the simulator, its reference in torch eager, and the same arithmetic in NumPy (float32),
all in one process on one thread, in turns, so that a busy machine slows all three alike. The answers are compared
before anything is timed. Prints medians and ratios as Markdown tables; nothing is asserted on time.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from neuron_port.execution import simulated_operator, to_numpy
from neuron_port.parity.draw import Draw
from neuron_port.registry import RegisteredRecipe, Registry

TARGET = "trn2"
SEED = 0
MEASURED_SECONDS = 1.5  # for one layer in one dtype, as far as the numbers of turns allow
TURNS = (5, 51)  # at least, at most; odd, so that the median is a time that was measured
AGREEMENT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative L2; anything more is another computation
WEIGHTS = {"table", "gamma", "weight", "gate", "up", "down"}  # arguments that stay in HBM between calls
HEADER = (
    "| layer | per step | simulator fp32 | torch | NumPy | / torch | / NumPy "
    "| simulator bf16 | torch | / torch | / NumPy fp32 |"
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The sizes of a Llama, and the two steps at which its layers are timed."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    prompt_tokens: int
    cache_slots: int


MODELS = (
    Model(
        name="SmolLM2-135M", layers=30, hidden=576, intermediate=1536, query_heads=9, kv_heads=3, head_dim=64,
        vocabulary=49152, prompt_tokens=64, cache_slots=128,
    ),
    Model(
        name="Llama-3.2-1B", layers=16, hidden=2048, intermediate=8192, query_heads=32, kv_heads=8, head_dim=64,
        vocabulary=128256, prompt_tokens=128, cache_slots=1024,
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One kernel call: the recipe, the sizes that its `inputs` understands, and how often a step makes it."""

    label: str
    recipe: str
    calls: int
    sizes: Mapping[str, int]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median seconds of one layer by who computes it; NumPy computes in float32 only."""

    simulator: dict[torch.dtype, float]
    torch: dict[torch.dtype, float]
    numpy: float


def problems(model: Model, tokens: int) -> Iterator[Problem]:
    """The calls of one step on `tokens` tokens: the whole prompt, or one token of decoding."""
    hidden, query, key = model.hidden, model.query_heads * model.head_dim, model.kv_heads * model.head_dim
    heads = {"B": 1, "Q": model.query_heads, "G": model.kv_heads, "D": model.head_dim}
    scale = {"scale": model.head_dim**-0.5}
    each, twice = model.layers, 2 * model.layers

    def linear(label: str, rows: int, width: int, calls: int) -> Problem:
        sizes = {"T": rows, "K": hidden, "N": width}
        return Problem(label=label, recipe="linear", calls=calls, sizes=sizes)

    rows = {"T": tokens, "H": hidden}
    yield Problem(label="embedding", recipe="embedding", calls=1, sizes={**rows, "V": model.vocabulary})
    yield Problem(label="rms_norm", recipe="rms_norm", calls=twice + 1, sizes=rows, attributes={"eps": 1e-5})
    yield linear(f"linear {hidden} → {query} (q, o)", tokens, query, twice)
    yield linear(f"linear {hidden} → {key} (k, v)", tokens, key, twice)
    yield Problem(label="rope", recipe="rope", calls=each, sizes={**heads, "S": tokens})
    if tokens > 1:
        name, sizes = "attention", {**heads, "S": tokens}
    else:
        name, sizes = "attention_decode", {**heads, "C": model.cache_slots}
    yield Problem(label=name, recipe=name, calls=each, sizes=sizes, attributes=scale)
    yield Problem(label="residual_add", recipe="residual_add", calls=twice, sizes=rows)
    yield Problem(label="gated_mlp", recipe="gated_mlp", calls=each, sizes={**rows, "I": model.intermediate})
    yield linear(f"linear {hidden} → {model.vocabulary} (head)", 1, model.vocabulary, 1)


# The same arithmetic in NumPy. Arguments and shapes are those of the recipes' references.


def numpy_embedding(ids: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Rows of table [V, H] named by ids [T]."""
    return table[ids]


def numpy_rms_norm(x: np.ndarray, gamma: np.ndarray, eps: float) -> np.ndarray:
    """x [T, H] / sqrt(mean(x * x) + eps) * gamma [H]."""
    mean_square = np.einsum("th,th->t", x, x)[:, None] / np.float32(x.shape[1])
    return x * (1 / np.sqrt(mean_square + np.float32(eps))) * gamma


def numpy_linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x [T, K] @ weight [K, N]."""
    return x @ weight


def numpy_rope(
    q: np.ndarray, k: np.ndarray, cos: np.ndarray, sin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """q [B, S, Q, D] and k [B, S, G, D] rotated by cos and sin [B, S, D]."""
    half = cos.shape[-1] // 2
    cos_heads, sin_heads = cos[:, :, None], sin[:, :, None]

    def rotate(x: np.ndarray) -> np.ndarray:
        out = x * cos_heads
        out[..., :half] -= x[..., half:] * sin_heads[..., :half]
        out[..., half:] += x[..., :half] * sin_heads[..., half:]
        return out

    return rotate(q), rotate(k)


def numpy_softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def numpy_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Causal attention of q [B, S, Q, D] over k, v [B, S, G, D]."""
    batch, tokens, query_heads, head_dim = q.shape
    grouped = q.reshape(batch, tokens, k.shape[2], -1, head_dim).transpose(0, 2, 3, 1, 4)
    scores = grouped @ k.transpose(0, 2, 3, 1)[:, :, None]
    scores *= np.float32(scale)
    scores[..., np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    mixed = numpy_softmax(scores) @ v.transpose(0, 2, 1, 3)[:, :, None]
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, query_heads, head_dim)


def numpy_attention_decode(
    q: np.ndarray, k_cache: np.ndarray, v_cache: np.ndarray, positions: np.ndarray, scale: float
) -> np.ndarray:
    """Attention of q [B, Q, D] over slots 0..positions[b] of k_cache [B, G, D, C], v_cache [B, G, C, D]."""
    batch, query_heads, head_dim = q.shape
    kv_heads, slots = k_cache.shape[1], k_cache.shape[3]
    scores = q.reshape(batch, kv_heads, query_heads // kv_heads, head_dim) @ k_cache
    scores *= np.float32(scale)
    beyond = np.arange(slots) > positions[:, None, None, None]
    np.copyto(scores, -np.inf, where=beyond)
    return (numpy_softmax(scores) @ v_cache).reshape(q.shape)


def numpy_residual_add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x + y, both [T, H]."""
    return x + y


def numpy_gated_mlp(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(silu(x @ gate) * (x @ up)) @ down for x [T, H], gate and up [H, I], down [I, N]."""
    gated = x @ gate
    return (gated / (1 + np.exp(-gated)) * (x @ up)) @ down


NUMPY: Mapping[str, Callable[..., Any]] = {
    function.__name__.removeprefix("numpy_"): function
    for function in (
        numpy_embedding, numpy_rms_norm, numpy_linear, numpy_rope, numpy_attention,
        numpy_attention_decode, numpy_residual_add, numpy_gated_mlp,
    )
}  # fmt: skip


def measure(problem: Problem, found: RegisteredRecipe) -> Timing:
    """Time one layer in both dtypes, after its answers were found to agree."""
    drawn = found.recipe.inputs(problem.sizes, Draw(SEED))
    arrays = tuple(array for array in drawn if array is not None)  # optional ones stand last
    simulator: dict[torch.dtype, float] = {}
    eager: dict[torch.dtype, float] = {}
    plain = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        sides = _sides(problem, found, arrays, dtype)
        _require_agreement(problem, sides, dtype)
        seconds = median_seconds(sides)
        simulator[dtype], eager[dtype] = seconds["simulator"], seconds["torch"]
        plain = seconds.get("numpy", plain)
    return Timing(simulator=simulator, torch=eager, numpy=plain)


def _sides(
    problem: Problem, found: RegisteredRecipe, arrays: tuple[np.ndarray, ...], dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    """The call of each side. Weights are brought into the simulator's form once, as for a model."""
    tensors = [torch.from_numpy(array) for array in arrays]
    tensors = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
    operator = simulated_operator(found, TARGET)
    names = found.recipe.tensor_arguments
    operator.share_weights(tensor for name, tensor in zip(names, tensors, strict=False) if name in WEIGHTS)
    attributes = dict(problem.attributes)
    sides: dict[str, Callable[[], Any]] = {
        "simulator": lambda: operator(*tensors, **attributes),
        "torch": lambda: found.reference(*tensors, **attributes),
    }
    if dtype is torch.float32:
        sides["numpy"] = lambda: NUMPY[problem.recipe](*arrays, **attributes)
    return sides


def _require_agreement(problem: Problem, sides: Mapping[str, Callable[[], Any]], dtype: torch.dtype) -> None:
    """Stop unless all sides compute the same: the time of something else would say nothing."""
    answers = {name: _first_array(side()) for name, side in sides.items()}
    truth = answers["torch"]
    for name, answer in answers.items():
        error = np.linalg.norm(answer - truth) / np.linalg.norm(truth)
        if not error <= AGREEMENT[dtype]:
            raise SystemExit(f"{problem.label}: {name} differs from torch by {error:.2g} ({dtype})")


def _first_array(result: Any) -> np.ndarray:
    """The first output as float64."""
    first = result[0] if isinstance(result, tuple) else result
    return (to_numpy(first) if isinstance(first, torch.Tensor) else first).astype(np.float64)


def median_seconds(sides: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The median time of each side. They take turns, and each turn is measured right after one that is not."""
    started = time.perf_counter()
    for side in sides.values():
        side()
    expected_seconds = 2 * (time.perf_counter() - started)
    turns = min(max(int(MEASURED_SECONDS / expected_seconds), TURNS[0]), TURNS[1]) | 1
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            side()
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def duration(seconds: float) -> str:
    """Two or three digits, in the unit that fits."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 0.995:
            return f"{seconds * factor:.{0 if seconds * factor >= 99.5 else 1}f} {unit}"
    return f"{seconds * 1e6:.{0 if seconds * 1e6 >= 9.5 else 1}f} µs"


def row(label: str, calls: int | str, timing: Timing) -> str:
    """One line of the table: the time of each side, and the simulator's time over the others'."""
    cells = [label, str(calls)]
    for dtype in (torch.float32, torch.bfloat16):
        simulated, eager = timing.simulator[dtype], timing.torch[dtype]
        times = [simulated, eager] + ([timing.numpy] if dtype is torch.float32 else [])
        cells += [duration(seconds) for seconds in times]
        cells += [f"{simulated / eager:.1f}", f"{simulated / timing.numpy:.1f}"]
    return f"| {' | '.join(cells)} |"


def total(timings: list[tuple[int, Timing]]) -> Timing:
    """All calls of one step together."""

    def summed(side: str, dtype: torch.dtype) -> float:
        return sum(calls * getattr(timing, side)[dtype] for calls, timing in timings)

    dtypes = (torch.float32, torch.bfloat16)
    return Timing(
        simulator={dtype: summed("simulator", dtype) for dtype in dtypes},
        torch={dtype: summed("torch", dtype) for dtype in dtypes},
        numpy=sum(calls * timing.numpy for calls, timing in timings),
    )


def print_step(model: Model, tokens: int, registry: Registry) -> None:
    """Measure and print the layers of one step, each as soon as it is there."""
    step = f"prefill of {tokens} tokens" if tokens > 1 else f"decode, cache of {model.cache_slots} slots"
    print(f"\n### {model.name}, {step}\n\n{HEADER}\n|---|{'---:|' * (HEADER.count('|') - 2)}", flush=True)
    timings = []
    for problem in problems(model, tokens):
        timing = measure(problem, registry[problem.recipe])
        timings.append((problem.calls, timing))
        print(row(problem.label, problem.calls, timing), flush=True)
    print(row("**the whole step**", "", total(timings)), flush=True)


def header() -> str:
    """Machine, threads and versions, in one line."""
    blas = next((pool for pool in threadpool_info() if pool["user_api"] == "blas"), None)
    library = f"{blas['internal_api']} {blas['version']}" if blas else "BLAS unknown"
    return (
        f"{platform.machine()}, {os.cpu_count()} cores; one thread on every side (torch.set_num_threads(1), BLAS "
        f"limited to 1); Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__} "
        f"({library}); kernels for {TARGET}; medians of {TURNS[0]} to {TURNS[1]} turns"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the sizes of SmolLM2-135M only")
    arguments = parser.parse_args()
    registry = Registry()
    torch.set_num_threads(1)
    with threadpool_limits(limits=1, user_api="blas"), torch.inference_mode():
        print(header())
        for model in MODELS[:1] if arguments.quick else MODELS:
            for tokens in (model.prompt_tokens, 1):
                print_step(model, tokens, registry)
    unmeasured = sorted(set(registry) - set(NUMPY))
    if unmeasured:
        print(f"\nNot measured, no NumPy counterpart here: {', '.join(unmeasured)}")


if __name__ == "__main__":
    main()
