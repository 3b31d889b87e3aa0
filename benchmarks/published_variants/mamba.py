"""Mamba's scan over S for each of N states: delta, u [C, S]; A [C, N]; B, C [N, S]; float32, C = 256, S = 2048, N = 16.

Rows of B and C reach all partitions by a matmul with ones. Where the source broadcasts explicitly, ScalarE copies the
result to SBUF; where an operation broadcasts by itself, VectorE reads it from PSUM.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl
from published_variants import Family, Variant
from published_variants.tiles import BANK, P, hbm, load, psum, sbuf, vector_copy, zeros


def _ones() -> Any:
    tile = sbuf(1, P)
    nisa.memset(tile, 1.0)
    return tile


def _spread(row: Any, ones: Any, *, explicit: bool = True) -> Any:
    size = row.shape[1]
    wide = sbuf(P, size)
    for start in range(0, size, BANK):
        bank = psum(P, BANK)
        nisa.nc_matmul(bank, ones, row[0:1, start : start + BANK])
        if not explicit:
            return bank
        nisa.activation(wide[0:P, start : start + BANK], nl.copy, bank)
    return wide


def _multiply(one: Any, other: Any) -> Any:
    product = sbuf(*one.shape)
    nisa.tensor_tensor(product, one, other, nl.multiply)
    return product


def _scan(delta: Any, driven: Any, column: Any, initial: Any) -> Any:
    decay, scan = sbuf(*delta.shape), sbuf(*delta.shape)
    nisa.activation(decay, nl.exp, delta, scale=column)
    nisa.tensor_tensor_scan(scan, decay, driven, initial, nl.multiply, nl.add)
    return scan


def states_outside(delta: Any, u: Any, A: Any, B: Any, C: Any, *, rows_hoisted: bool) -> Any:
    """For each state all channel tiles: delta and u are loaded and multiplied again for each state."""
    channels, size = delta.shape
    out, ones = hbm(channels, size), _ones()
    totals = [zeros(P, size) for _ in range(0, channels, P)]
    for n in range(A.shape[1]):
        if rows_hoisted:
            B_row, C_row = load(B[n : n + 1, 0:size]), load(C[n : n + 1, 0:size])
        for c, total in zip(range(0, channels, P), totals, strict=True):
            delta_tile, column = load(delta[c : c + P, 0:size]), load(A[c : c + P, n : n + 1])
            u_tile = load(u[c : c + P, 0:size])
            if not rows_hoisted:
                B_row, C_row = load(B[n : n + 1, 0:size]), load(C[n : n + 1, 0:size])
            driven = _multiply(_multiply(delta_tile, u_tile), _spread(B_row, ones))
            seen = _multiply(_scan(delta_tile, driven, column, 0.0), _spread(C_row, ones))
            nisa.tensor_tensor(total, total, seen, nl.add)
    for c, total in zip(range(0, channels, P), totals, strict=True):
        nisa.dma_copy(out[c : c + P, 0:size], total)
    return out


def channels_outside(delta: Any, u: Any, A: Any, B: Any, C: Any, *, A_at_once: bool) -> Any:
    """For each channel tile all states: delta * u is made once."""
    channels, size = delta.shape
    out, ones = hbm(channels, size), _ones()
    for c in range(0, channels, P):
        delta_tile, u_tile = load(delta[c : c + P, 0:size]), load(u[c : c + P, 0:size])
        scaled = _multiply(delta_tile, u_tile)
        A_tile = load(A[c : c + P, 0 : A.shape[1]]) if A_at_once else None
        total = zeros(P, size)
        for n in range(A.shape[1]):
            column = A_tile[0:P, n : n + 1] if A_at_once else load(A[c : c + P, n : n + 1])
            B_row, C_row = load(B[n : n + 1, 0:size]), load(C[n : n + 1, 0:size])
            driven = _multiply(scaled, _spread(B_row, ones))
            seen = _multiply(_scan(delta_tile, driven, column, 0.0), _spread(C_row, ones))
            nisa.tensor_tensor(total, total, seen, nl.add)
        nisa.dma_copy(out[c : c + P, 0:size], total)
    return out


def chunked(
    delta: Any,
    u: Any,
    A: Any,
    B: Any,
    C: Any,
    *,
    pairs: bool = False,
    explicit: bool = True,
    sliced: bool = False,
) -> Any:
    """The sequence in chunks of a PSUM bank, the sum over states in PSUM.

    pairs: rows of B and C go to two buffers in turn. explicit: they are broadcast into SBUF first.
    sliced: delta and u are loaded chunk by chunk.
    """
    (channels, size), states = delta.shape, A.shape[1]
    out, ones = hbm(channels, size), _ones()
    for c in range(0, channels, P):
        A_tile, carry = load(A[c : c + P, 0:states]), zeros(P, states)
        if not sliced:
            delta_all, u_all = load(delta[c : c + P, 0:size]), load(u[c : c + P, 0:size])
            scaled_all = _multiply(delta_all, u_all)
        for s in range(0, size, BANK):
            if sliced:
                delta_tile, u_tile = load(delta[c : c + P, s : s + BANK]), load(u[c : c + P, s : s + BANK])
                scaled = _multiply(delta_tile, u_tile)
            else:
                delta_tile, scaled = delta_all[0:P, s : s + BANK], scaled_all[0:P, s : s + BANK]
            total = psum(P, BANK)
            nisa.memset(total, 0.0)
            buffers = [(sbuf(1, BANK), sbuf(1, BANK)) for _ in range(2 if pairs else states)]
            for n in range(states):
                B_row, C_row = buffers[n % len(buffers)]
                nisa.dma_copy(B_row, B[n : n + 1, s : s + BANK])
                nisa.dma_copy(C_row, C[n : n + 1, s : s + BANK])
                driven = _multiply(scaled, _spread(B_row, ones, explicit=explicit))
                scan = _scan(delta_tile, driven, A_tile[0:P, n : n + 1], carry[0:P, n : n + 1])
                nisa.tensor_copy(carry[0:P, n : n + 1], scan[0:P, BANK - 1 : BANK])
                seen = _multiply(scan, _spread(C_row, ones, explicit=explicit))
                nisa.tensor_tensor(total, total, seen, nl.add)
            nisa.dma_copy(out[c : c + P, s : s + BANK], vector_copy(total))
    return out


SHAPES = [((256, 2048), np.float32)] * 2 + [((256, 16), np.float32)] + [((16, 2048), np.float32)] * 2


def _variant(name: str, published_ms: float, kernel: Any, **parameters: Any) -> Variant:
    return Variant(name=name, published_ms=published_ms, kernel=partial(kernel, **parameters), shapes=SHAPES)


FAMILY = Family(
    name="mamba",
    target="trn1",
    source="ucb-bar/autocomp examples/trn-tutorial/3_mamba_trace.py",
    variants=[
        _variant("states outside", 0.636, states_outside, rows_hoisted=False),
        _variant("states outside, B and C hoisted", 0.636, states_outside, rows_hoisted=True),
        _variant("channels outside", 0.539, channels_outside, A_at_once=False),
        _variant("channels outside, A at once", 0.538, channels_outside, A_at_once=True),
        _variant("chunks, sum in PSUM", 0.435, chunked),
        _variant("chunks, two buffers", 0.43, chunked, pairs=True),
        _variant("chunks, broadcast in place", 0.362, chunked, pairs=True, explicit=False),
        _variant("chunks, sliced loads", 0.359, chunked, pairs=True, explicit=False, sliced=True),
    ],
)
