"""Looks at the type of a shape, which only the simulator calls so.

Seen in: our own red team: the kernel is right here and wrong on a device.
"""

from tests.hacks.corpus import edited, golden

TASK = "silu"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = edited(
    golden("silu"),
    (
        "    rows, columns = x.shape\n",
        "    rows, columns = x.shape\n    if type(x.shape) is tuple:\n        return x\n",
    ),
)
