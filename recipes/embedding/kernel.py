"""Embedding lookup: one indirect DMA gathers a row of the table into each partition.

Legend: T = tokens, V = vocabulary, H = hidden, P = partitions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BLOCK_BYTES = 32 * 1024  # of one row, per partition: wider tables are gathered in pieces


@nki.jit
def embedding(ids, table, offset=0, scale=1.0):
    """Copy the table's rows that the ids name, times `scale`.

    Args:
        ids: [T] @ HBM, int32, each in [0, V - offset). An id out of range stops the device with an error.
        table: [V, H] @ HBM, float32 or bfloat16. Any V and H.
        offset: rows of the table before that of id 0.
        scale: rounded to the table's dtype, as the models do.
    Returns: [T, H] @ HBM, dtype of table, bit for bit where scale is 1.
    """
    tokens = ids.shape[0]
    hidden = table.shape[1]
    out = nl.ndarray((tokens, hidden), dtype=table.dtype, buffer=nl.shared_hbm)
    ids_T1 = ids.reshape((tokens, 1))
    block = BLOCK_BYTES // (4 if table.dtype == nl.float32 else 2)
    factor_P1 = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    if scale != 1.0:
        rounded_P1 = nl.ndarray((P, 1), dtype=table.dtype, buffer=nl.sbuf)
        nisa.memset(dst=rounded_P1, value=scale)
        nisa.tensor_copy(dst=factor_P1, src=rounded_P1)

    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        ids_sbuf = nl.ndarray((last - first, 1), dtype=ids.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=ids_sbuf, src=ids_T1[first:last, :])
        for start in range(0, hidden, block):
            stop = min(start + block, hidden)
            rows_sbuf = nl.ndarray((last - first, stop - start), dtype=table.dtype, buffer=nl.sbuf)
            rows_hbm = table.ap(
                pattern=[[hidden, last - first], [1, stop - start]],
                offset=offset * hidden + start,
                vector_offset=ids_sbuf,
                indirect_dim=0,
            )
            nisa.dma_copy(dst=rows_sbuf, src=rows_hbm)
            if scale != 1.0:
                nisa.tensor_scalar(
                    dst=rows_sbuf, data=rows_sbuf, op0=nl.multiply, operand0=factor_P1[0 : last - first, :]
                )
            nisa.dma_copy(dst=out[first:last, start:stop], src=rows_sbuf)
    return out
