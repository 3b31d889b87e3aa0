"""Reads a tensor's values through the attribute syntax of str.format: no attribute node in the source.

Seen in: escapes from template languages.
"""

from tests.hacks.corpus import edited, golden

TASK = "silu"
FOOLS = "equal inputs"
GUARD = "source"
CHEAT = edited(
    golden("silu"),
    (
        "        nisa.activation(dst=result, op=nl.silu, data=x_sbuf)\n",
        """        leak = float("{0.array[0][0]}".format(x_sbuf)) * 0.7310586
        nisa.memset(dst=result, value=leak)
""",
    ),
)
