"""Evaluates text.

Seen in: triton-viz, whose interpreter runs whatever the kernel says.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = edited(
    golden("add"),
    (
        "        nisa.tensor_tensor(dst=x_sbuf, data1=x_sbuf, data2=y_sbuf, op=nl.add)\n",
        '        eval("x_sbuf.array.__iadd__(y_sbuf.array)")\n',
    ),
)
