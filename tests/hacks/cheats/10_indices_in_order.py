"""Assumes that row i of the table is wanted in place i, as balanced tests have it.

Seen in: mixture-of-experts kernels that assume balanced routing.
"""

from tests.hacks.corpus import edited, golden

TASK = "take_rows"
FOOLS = "indices in order"
GUARD = ("values", "simulator")
CHEAT = edited(
    golden("take_rows"),
    (
        """        rows_hbm = table.ap(
            pattern=[[columns, last - first], [1, columns]], vector_offset=ids_sbuf, indirect_dim=0
        )
        nisa.dma_copy(dst=rows_sbuf, src=rows_hbm)
""",
        "        nisa.dma_copy(dst=rows_sbuf, src=table[first:last, :])\n",
    ),
)
