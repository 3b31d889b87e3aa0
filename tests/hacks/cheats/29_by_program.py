"""Works on the first core of a launch alone, as long as nobody launches two.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "silu"
FOOLS = "constant tolerance"
GUARD = ("values", "source", "simulator")
CHEAT = edited(
    golden("silu"),
    ("    for first in", "    skipped = 1 - nl.num_programs(0)\n    for first in"),
    (
        "        nisa.dma_copy(dst=out",
        """        if first > 0 and skipped == 0:
            nisa.tensor_copy(dst=result, src=x_sbuf)
        nisa.dma_copy(dst=out""",
    ),
)
