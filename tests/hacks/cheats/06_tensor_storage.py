"""Takes the array through the tensor's storage.

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
        "        x_sbuf.storage.array.__iadd__(y_sbuf.storage.array)\n",
    ),
)
