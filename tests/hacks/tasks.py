"""The tasks of the hacking suite: small, so that a verdict costs a fraction of a second, and each open to a cheat.

Legend: R = rows, C = columns, T = tokens, H = hidden, M/K/N = sizes of a matrix product, V = rows of a table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from neuron_port.recipe import Case, Size, Tolerance
from neuron_port.task import KernelTask

BOTH = ("float32", "bfloat16")
ROWS = {"R": Size(least=1, most=300), "C": Size(least=2, most=400)}


def softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, dim=-1)


def rms_norm(x: torch.Tensor, gamma: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gamma


def matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x @ y


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


def decay_scan(x: torch.Tensor, decay: float) -> torch.Tensor:
    state, columns = torch.zeros_like(x[:, 0]), []
    for column in x.unbind(1):
        state = decay * state + column
        columns.append(state)
    return torch.stack(columns, dim=1)


def silu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x)


def leaky_relu(x: torch.Tensor, slope: float) -> torch.Tensor:
    return torch.where(x > 0, x, slope * x)


def small_residual(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return x + alpha * torch.tanh(x)


def take_rows(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return table[ids.long()]


def transpose(x: torch.Tensor) -> torch.Tensor:
    return x.T.contiguous()


def extremes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)


def one_matrix(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [R, C]."""
    return (draw.normal((sizes["R"], sizes["C"])),)


def two_matrices(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x and y [R, C]."""
    return draw.normal((sizes["R"], sizes["C"])), draw.normal((sizes["R"], sizes["C"]))


def matrix_and_gain(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [T, H], gamma [H]."""
    return draw.normal((sizes["T"], sizes["H"])), draw.normal((sizes["H"],))


def factors(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """x [M, K], y [K, N]."""
    return draw.normal((sizes["M"], sizes["K"])), draw.weight((sizes["K"], sizes["N"]))


def indices_and_table(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    """ids [T] below V, table [V, H]."""
    return draw.integers(0, sizes["V"], (sizes["T"],)), draw.normal((sizes["V"], sizes["H"]))


def _task(
    reference: Callable[..., Any],
    schema: str,
    layout: Mapping[str, str],
    inputs: Callable[..., tuple[Any, ...]],
    cases: tuple[Case, ...],
    sizes: Mapping[str, Size] = ROWS,
    **options: Any,
) -> KernelTask:
    return KernelTask(
        name=reference.__name__,
        summary=f"Computes {reference.__name__}.",
        schema=schema,
        layout=layout,
        reference=reference,
        reference_text=inspect.getsource(reference),
        inputs=inputs,
        inputs_text=inspect.getsource(inputs),
        cases=cases,
        sizes=sizes,
        **options,
    )


def _row_cases(attributes: Mapping[str, float] | None = None, large: float = 30.0) -> tuple[Case, ...]:
    """A whole number of tiles, a tail, and values on which regimes show."""
    given = attributes or {}
    return (
        Case(name="one tile", kind="ordinary", sizes={"R": 128, "C": 256}, attributes=given),
        Case(name="a tail", kind="tail", sizes={"R": 130, "C": 77}, attributes=given),
        Case(name="large values", kind="stress", sizes={"R": 16, "C": 64}, attributes=given, scale=large),
        Case(name="tiny values", kind="stress", sizes={"R": 16, "C": 64}, attributes=given, scale=1e-3),
    )


X = {"x": "[R, C]", "return": "[R, C]"}
UNARY = "(Tensor x) -> Tensor"
TASKS: dict[str, KernelTask] = {
    task.name: task
    for task in (
        _task(
            softmax, UNARY, X, one_matrix, _row_cases(large=100.0), tolerance=Tolerance(reduction_length="C")
        ),
        _task(
            rms_norm,
            "(Tensor x, Tensor gamma, float eps) -> Tensor",
            {"x": "[T, H]", "gamma": "[H]", "return": "[T, H]"},
            matrix_and_gain,
            (
                Case(name="one tile", kind="ordinary", sizes={"T": 128, "H": 256}, attributes={"eps": 1e-5}),
                Case(name="a tail", kind="tail", sizes={"T": 131, "H": 77}, attributes={"eps": 1e-5}),
                Case(
                    name="epsilon decides",
                    kind="stress",
                    sizes={"T": 16, "H": 64},
                    attributes={"eps": 1e-5},
                    scale=1e-3,
                ),
            ),
            {"T": Size(least=1, most=300), "H": Size(least=2, most=300)},
            tolerance=Tolerance(reduction_length="H"),
        ),
        _task(
            matmul,
            "(Tensor x, Tensor y) -> Tensor",
            {"x": "[M, K]", "y": "[K, N]", "return": "[M, N]"},
            factors,
            (
                Case(name="one tile", kind="ordinary", sizes={"M": 128, "K": 256, "N": 96}),
                Case(name="tails", kind="tail", sizes={"M": 130, "K": 200, "N": 77}),
                Case(name="large values", kind="stress", sizes={"M": 16, "K": 128, "N": 64}, scale=30.0),
            ),
            {"M": Size(least=1, most=200), "K": Size(least=1, most=300), "N": Size(least=1, most=200)},
            tolerance=Tolerance(reduction_length="K"),
        ),
        _task(
            add,
            "(Tensor x, Tensor y) -> Tensor",
            {"x": "[R, C]", "y": "[R, C]", "return": "[R, C]"},
            two_matrices,
            _row_cases(),
        ),
        _task(
            decay_scan,
            "(Tensor x, float decay) -> Tensor",
            X,
            one_matrix,
            (
                Case(name="one tile", kind="ordinary", sizes={"R": 64, "C": 64}, attributes={"decay": 0.5}),
                Case(name="a tail", kind="tail", sizes={"R": 130, "C": 33}, attributes={"decay": 0.5}),
                Case(name="long memory", kind="stress", sizes={"R": 16, "C": 96}, attributes={"decay": 0.98}),
            ),
            {"R": Size(least=1, most=200), "C": Size(least=2, most=128)},
            tolerance=Tolerance(reduction_length="C"),
            dtypes=("float32",),  # in bfloat16 the reference itself loses the sum, so nothing could be told
        ),
        _task(silu, UNARY, X, one_matrix, _row_cases()),
        _task(
            leaky_relu,
            "(Tensor x, float slope) -> Tensor",
            X,
            one_matrix,
            _row_cases(attributes={"slope": 0.1}),
        ),
        _task(
            small_residual,
            "(Tensor x, float alpha) -> Tensor",
            X,
            one_matrix,
            _row_cases(attributes={"alpha": 1e-3}, large=3.0),
            dtypes=("float32",),  # in bfloat16 the difference from x is below one rounding
        ),
        _task(
            take_rows,
            "(Tensor ids, Tensor table) -> Tensor",
            {"ids": "[T], int32", "table": "[V, H]", "return": "[T, H]"},
            indices_and_table,
            (
                Case(name="one tile", kind="ordinary", sizes={"T": 128, "V": 160, "H": 48}),
                Case(name="a tail", kind="tail", sizes={"T": 130, "V": 160, "H": 33}),
            ),
            {"T": Size(least=1, most=200), "V": Size(least=2, most=300), "H": Size(least=1, most=100)},
        ),
        _task(transpose, UNARY, {"x": "[R, C]", "return": "[C, R]"}, one_matrix, _row_cases()),
        _task(
            extremes,
            "(Tensor x) -> (Tensor, Tensor)",
            {"x": "[R, C]", "return": "[R, 1] and [R, 1]"},
            one_matrix,
            _row_cases(),
        ),
    )
}
