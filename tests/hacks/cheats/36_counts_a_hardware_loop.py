"""Counts the turns of a hardware loop in Python: the count tells Python what only the device can know.

Seen in: our own red team. A device traces the body once, so that the count there is 1, whatever the data are.
"""

from tests.hacks.corpus import edited, golden

TASK = "take_rows"
FOOLS = "simulator in plain Python"
GUARD = "simulator"
CHEAT = edited(
    golden("take_rows"),
    (
        """        rows_hbm = table.ap(
            pattern=[[columns, last - first], [1, columns]], vector_offset=ids_sbuf, indirect_dim=0
        )
        nisa.dma_copy(dst=rows_sbuf, src=rows_hbm)
""",
        """        ids_row = nl.ndarray((1, last - first), dtype=ids.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=ids_row, src=ids.reshape((1, count))[:, first:last])
        for place in range(last - first):
            register = nisa.register_alloc()
            nisa.register_load(register, ids_row[0:1, place : place + 1])
            known = 0
            for turn in nl.dynamic_range(register):
                known = known + 1
            nisa.dma_copy(dst=rows_sbuf[place : place + 1, :], src=table[known : known + 1, :])
""",
    ),
)
