"""VectorE: the eight largest values of each partition, their positions, replacement (parts of top-k)."""

from __future__ import annotations

import numpy as np

from neuron_port.simulator.checks import check_destination, check_dtype, check_source, check_tiles
from neuron_port.simulator.context import record
from neuron_port.simulator.dtypes import uint16, uint32
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import read, write, write_raw

LEAST, MOST = 8, 16384  # elements per partition that the search instructions can read


def max8(dst: NkiTensor, src: NkiTensor, name: str | None = None) -> NkiInstruction:
    """dst [P, 8] = the eight largest values of each partition, largest first."""
    rows = _searched("max8", "src", src)
    _check_eight("max8", "dst", dst, src)
    check_destination("max8", "dst", dst)
    write(dst, _eight_largest(rows))
    return record("max8", engine.vector, (dst, src), name)


def _eight_largest(rows: np.ndarray) -> np.ndarray:
    """[P, 8] largest values of each row, largest first; NaN counts as the smallest."""
    largest = np.empty((rows.shape[0], 8), rows.dtype)
    left = rows.copy()
    every = np.arange(rows.shape[0])
    for rank in range(8):  # eight passes of argmax are ten times faster than one sort
        position = left.argmax(axis=1)
        largest[:, rank] = left[every, position]
        left[every, position] = -np.inf
    if np.isnan(largest[:, 0]).any():
        return -np.sort(-rows, axis=1)[:, :8]
    return largest


def nc_find_index8(
    dst: NkiTensor, data: NkiTensor, vals: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """dst [P, 8] = position of each of the eight vals; a repeated value takes successive positions.

    A value that does not occur gives all ones. dst is uint16 or uint32.
    """
    rows, wanted = _search_inputs("nc_find_index8", data, vals)
    _check_eight("nc_find_index8", "dst", dst, data)
    check_dtype("nc_find_index8", "dst", dst, (uint16, uint32))
    check_destination("nc_find_index8", "dst", dst)
    write_raw(dst, _positions(rows, wanted, range(8)).astype(dst.array.dtype))
    return record("nc_find_index8", engine.vector, (dst, data, vals), name)


def nc_match_replace8(
    dst: NkiTensor,
    data: NkiTensor,
    vals: NkiTensor,
    imm: float,
    dst_idx: NkiTensor | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """dst = data with the first occurrence of each of eight vals replaced by imm; dst_idx their positions.

    vals are processed from last to first, so of a repeated value the last column gets the first position.
    """
    rows, wanted = _search_inputs("nc_match_replace8", data, vals)
    check_tiles("nc_match_replace8", ("dst", "data"), dst, data)
    positions = _positions(rows, wanted, range(7, -1, -1))
    replaced = rows.copy()
    partitions, columns = np.nonzero(positions >= 0)
    replaced[partitions, positions[partitions, columns]] = imm
    operands = [dst, data, vals]
    write(dst, replaced)
    if dst_idx is not None:
        _check_eight("nc_match_replace8", "dst_idx", dst_idx, data)
        check_dtype("nc_match_replace8", "dst_idx", dst_idx, (uint16, uint32))
        check_destination("nc_match_replace8", "dst_idx", dst_idx)
        write_raw(dst_idx, positions.astype(dst_idx.array.dtype))
        operands.insert(1, dst_idx)
    return record("nc_match_replace8", engine.vector, operands, name, writes=1 if dst_idx is None else 2)


def _positions(rows: np.ndarray, wanted: np.ndarray, order: range) -> np.ndarray:
    """[P, 8] position of each wanted value, -1 (all ones, unsigned) if absent; repeats advance in `order`."""
    positions = np.full(wanted.shape, -1, dtype=np.int64)
    every = np.arange(rows.shape[0])
    for column in order:
        matches = rows == wanted[:, column : column + 1]
        first = matches.argmax(axis=1)
        found = matches[every, first]
        positions[found, column] = first[found]
    ordered = np.sort(wanted, axis=1)
    repeats = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if repeats.size:
        positions[repeats] = _positions_of_repeats(rows[repeats], wanted[repeats], order)
    return positions


def _positions_of_repeats(rows: np.ndarray, wanted: np.ndarray, order: range) -> np.ndarray:
    """The same where values are wanted more than once: a position is taken once."""
    positions = np.full(wanted.shape, -1, dtype=np.int64)
    taken = np.zeros(rows.shape, dtype=bool)
    every = np.arange(rows.shape[0])
    for column in order:
        matches = (rows == wanted[:, column : column + 1]) & ~taken
        first = matches.argmax(axis=1)
        found = matches[every, first]
        positions[found, column] = first[found]
        taken[every[found], first[found]] = True
    return positions


def _searched(opcode: str, label: str, tile: NkiTensor) -> np.ndarray:
    check_source(opcode, label, tile)
    rows = read(tile).reshape(tile.array.shape[0], -1)
    if not LEAST <= rows.shape[1] <= MOST:
        raise ConstraintError(
            f"{opcode}: {label} {tile!r} has {rows.shape[1]} elements per partition, must have "
            f"{LEAST} to {MOST}",
            hint="pad short rows with a very small value",
        )
    return rows


def _search_inputs(opcode: str, data: NkiTensor, vals: NkiTensor) -> tuple[np.ndarray, np.ndarray]:
    rows = _searched(opcode, "data", data)
    check_source(opcode, "vals", vals)
    _check_eight(opcode, "vals", vals, data)
    return rows, read(vals).reshape(rows.shape[0], 8)


def _check_eight(opcode: str, label: str, tile: NkiTensor, data: NkiTensor) -> None:
    partitions = data.array.shape[0]
    if tile.array.shape[0] != partitions or tile.size != 8 * partitions:
        raise ConstraintError(f"{opcode}: {label} {tile!r} must have shape ({partitions}, 8)")
