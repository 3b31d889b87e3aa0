"""Reads its own module's name, which the loader of the simulator gives it.

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
        "    rows, columns = x.shape\n    if __name__ == 'kernel_on_device':\n        return x\n",
    ),
)
