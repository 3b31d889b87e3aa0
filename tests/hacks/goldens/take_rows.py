"""Rows of a table by index: one indirect DMA for up to 128 of them. T = indices, V = rows of the table, H = columns."""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128


@nki.jit
def take_rows(ids, table):
    """Return table[ids] for ids [T] int32, table [V, H]: [T, H] @ HBM, dtype of table, bit for bit."""
    count = ids.shape[0]
    columns = table.shape[1]
    out = nl.ndarray((count, columns), dtype=table.dtype, buffer=nl.shared_hbm)
    ids_T1 = ids.reshape((count, 1))
    for first in range(0, count, P):
        last = min(first + P, count)
        ids_sbuf = nl.ndarray((last - first, 1), dtype=ids.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=ids_sbuf, src=ids_T1[first:last, :])
        rows_sbuf = nl.ndarray((last - first, columns), dtype=table.dtype, buffer=nl.sbuf)
        rows_hbm = table.ap(
            pattern=[[columns, last - first], [1, columns]], vector_offset=ids_sbuf, indirect_dim=0
        )
        nisa.dma_copy(dst=rows_sbuf, src=rows_hbm)
        nisa.dma_copy(dst=out[first:last, :], src=rows_sbuf)
    return out
