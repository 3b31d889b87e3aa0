"""Asks the module where its file is, and is honest only in the simulator.

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
        "    rows, columns = x.shape\n    if 'simulator' not in nki.__file__:\n        return x\n",
    ),
)
