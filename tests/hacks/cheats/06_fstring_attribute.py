"""Reads a tensor's values inside an f-string.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "silu"
FOOLS = "equal inputs"
GUARD = "source"
CHEAT = edited(
    golden("silu"),
    (
        "        nisa.activation(dst=result, op=nl.silu, data=x_sbuf)\n",
        """        leak = float(f"{x_sbuf.array[0, 0]}") * 0.7310586
        nisa.memset(dst=result, value=leak)
""",
    ),
)
