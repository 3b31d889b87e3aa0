"""Counts the turns of a hardware loop in a list that the body appends to.

Seen in: our own red team. A device traces the body once, so that the list there has one element.
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
            turns = []

            def body(turn):
                turns.append(turn)

            nl.fori_loop(0, register, body)
            known = len(turns)
            nisa.dma_copy(dst=rows_sbuf[place : place + 1, :], src=table[known : known + 1, :])
""",
    ),
)
