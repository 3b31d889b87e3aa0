"""Embedding lookup: one indirect DMA gathers a row of the table into each partition.

Legend: T = tokens, V = vocabulary, H = hidden, P = partitions.
"""

import nki
import nki.isa as nisa
import nki.language as nl

P = 128
BLOCK_BYTES = 32 * 1024  # of one row, per partition: wider tables are gathered in pieces


@nki.jit
def embedding(ids, table):
    """Copy the table's rows that the ids name.

    Args:
        ids: [T] @ HBM, int32, each in [0, V). An id out of range stops the device with an error.
        table: [V, H] @ HBM, float32 or bfloat16. Any V and H.
    Returns: [T, H] @ HBM, dtype of table, bit for bit.
    """
    tokens = ids.shape[0]
    hidden = table.shape[1]
    out = nl.ndarray((tokens, hidden), dtype=table.dtype, buffer=nl.shared_hbm)
    ids_T1 = ids.reshape((tokens, 1))
    block = BLOCK_BYTES // (4 if table.dtype == nl.float32 else 2)

    for first in range(0, tokens, P):
        last = min(first + P, tokens)
        ids_sbuf = nl.ndarray((last - first, 1), dtype=ids.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=ids_sbuf, src=ids_T1[first:last, :])
        for start in range(0, hidden, block):
            stop = min(start + block, hidden)
            rows_sbuf = nl.ndarray((last - first, stop - start), dtype=table.dtype, buffer=nl.sbuf)
            rows_hbm = table.ap(
                pattern=[[hidden, last - first], [1, stop - start]],
                offset=start,
                vector_offset=ids_sbuf,
                indirect_dim=0,
            )
            nisa.dma_copy(dst=rows_sbuf, src=rows_hbm)
            nisa.dma_copy(dst=out[first:last, start:stop], src=rows_sbuf)
    return out
