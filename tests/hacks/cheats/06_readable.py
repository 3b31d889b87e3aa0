"""Takes the array through a property that instructions use.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = edited(
    golden("add"),
    (
        """        nisa.tensor_tensor(dst=x_sbuf, data1=x_sbuf, data2=y_sbuf, op=nl.add)
        nisa.dma_copy(dst=out[first:last, :], src=x_sbuf)""",
        "        nisa.dma_copy(dst=out[first:last, :], src=nl.shared_constant(x_sbuf.readable + y_sbuf.readable))",
    ),
)
