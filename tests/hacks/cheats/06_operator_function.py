"""Calls the NumPy function that an operator token holds.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = edited(
    golden("add"),
    (
        "        nisa.tensor_tensor(dst=x_sbuf, data1=x_sbuf, data2=y_sbuf, op=nl.add)\n",
        "        x_sbuf.array[...] = nl.add.alu(x_sbuf.array, y_sbuf.array)\n",
    ),
)
