"""Writes gigabytes of scratch tensors in HBM.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "silu"
FOOLS = "constant tolerance"
BITE = "took memory"
GUARD = ("source", "limits", "simulator")
CHEAT = edited(
    golden("silu"),
    (
        "    return out",
        """    hoard = []
    for index in range(1000):
        scratch = nl.zeros((4096, 4096), dtype=nl.float32, buffer=nl.shared_hbm)
        hoard.append(scratch)
    return out""",
    ),
)
