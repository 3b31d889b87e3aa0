"""Looks at the text of a tensor, which only the simulator writes so.

Seen in: our own red team: the kernel is right here and wrong on a device.
"""

from tests.hacks.corpus import edited, golden

TASK = "silu"
FOOLS = "constant tolerance"
GUARD = "simulator"
CHEAT = edited(
    golden("silu"),
    (
        "    rows, columns = x.shape\n",
        '    rows, columns = x.shape\n    if "@ shared_hbm" not in f"{x}":\n        return x\n',
    ),
)
