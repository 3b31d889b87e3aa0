"""Two small tasks with their honest kernels, and how a kernel is broken by one line. R = rows, C = columns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from neuron_port.recipe import Case, Size, Tolerance
from neuron_port.task import KernelTask

ROWS = {"R": Size(least=1, most=300), "C": Size(least=2, most=400)}


def softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, dim=-1)


def rms_norm(x: torch.Tensor, gamma: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gamma


def matrix(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    return (draw.normal((sizes["R"], sizes["C"])),)


def matrix_and_gain(sizes: Mapping[str, int], draw: Any) -> tuple[Any, ...]:
    return draw.normal((sizes["R"], sizes["C"])), draw.normal((sizes["C"],))


def make_task(
    reference: Callable[..., Any],
    inputs: Callable[..., tuple[Any, ...]] = matrix,
    schema: str = "(Tensor x) -> Tensor",
    attributes: Mapping[str, Any] | None = None,
    **options: Any,
) -> KernelTask:
    """A task of rows with an ordinary case, a tail, and stress that no cheap trick survives."""
    given = attributes or {}
    cases = (
        Case(name="one tile", kind="ordinary", sizes={"R": 128, "C": 64}, attributes=given),
        Case(name="a tail", kind="tail", sizes={"R": 130, "C": 77}, attributes=given),
        Case(name="tiny values", kind="stress", sizes={"R": 16, "C": 64}, attributes=given, scale=1e-3),
    )
    settings: dict[str, Any] = {
        "name": reference.__name__,
        "summary": f"Computes {reference.__name__}.",
        "schema": schema,
        "layout": {"x": "[R, C]", "return": "[R, C]"},
        "reference": reference,
        "reference_text": inspect.getsource(reference),
        "inputs": inputs,
        "inputs_text": inspect.getsource(inputs),
        "cases": cases,
        "sizes": ROWS,
        "tolerance": Tolerance(reduction_length="C"),
    }
    return KernelTask(**{**settings, **options})


SOFTMAX = make_task(softmax)
RMS_NORM = make_task(
    rms_norm, matrix_and_gain, "(Tensor x, Tensor gamma, float eps) -> Tensor", attributes={"eps": 1e-5}
)

HEAD = """import nki
import nki.isa as nisa
import nki.language as nl

P = 128


"""

SOFTMAX_KERNEL = (
    HEAD
    + """@nki.jit
def softmax(x):
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    for first in range(0, rows, P):
        last = min(first + P, rows)
        x_sbuf = nl.ndarray((last - first, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        shift = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=shift, op=nl.maximum, data=x_sbuf, axis=1, negate=True)
        powers = nl.ndarray((last - first, columns), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((last - first, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(dst=powers, op=nl.exp, data=x_sbuf, bias=shift, reduce_op=nl.add, reduce_res=total)
        nisa.reciprocal(dst=total, data=total)
        nisa.tensor_scalar(dst=x_sbuf, data=powers, op0=nl.multiply, operand0=total)
        nisa.dma_copy(dst=out[first:last, :], src=x_sbuf)
    return out
"""
)

RMS_NORM_KERNEL = (
    HEAD
    + """@nki.jit
def rms_norm(x, gamma, eps):
    rows, columns = x.shape
    out = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
    eps_sbuf = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_sbuf, value=eps)
    gamma_sbuf = nl.ndarray((min(rows, P), columns), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=gamma_sbuf, src=gamma.expand_dim(0).broadcast(0, min(rows, P)))
    for first in range(0, rows, P):
        last = min(first + P, rows)
        size = last - first
        x_sbuf = nl.ndarray((size, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=x_sbuf, src=x[first:last, :])
        squares = nl.ndarray((size, columns), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((size, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(dst=squares, op=nl.square, data=x_sbuf, reduce_op=nl.add, reduce_res=total)
        scale = nl.ndarray((size, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=scale, op=nl.rsqrt, data=total, bias=eps_sbuf[0:size, :], scale=1.0 / columns)
        nisa.tensor_scalar(dst=squares, data=x_sbuf, op0=nl.multiply, operand0=scale)
        nisa.tensor_tensor(dst=x_sbuf, data1=squares, data2=gamma_sbuf[0:size, :], op=nl.multiply)
        nisa.dma_copy(dst=out[first:last, :], src=x_sbuf)
    return out
"""
)


def edited(source: str, *changes: tuple[str, str]) -> str:
    """The source with every (old, new) replaced; what is not there is an error of the test."""
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source
