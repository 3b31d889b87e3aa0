"""Finds NumPy in the globals of an NKI function.

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
        '        nisa.tensor_copy.__globals__["np"].add(x_sbuf.array, y_sbuf.array, out=x_sbuf.array)\n',
    ),
)
