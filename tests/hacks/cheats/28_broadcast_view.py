"""Returns a view that repeats one row without storing it.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "rms_norm"
FOOLS = "equal inputs"
GUARD = ("values", "simulator", "source")
CHEAT = edited(
    golden("rms_norm"),
    ("out = nl.ndarray((tokens, hidden)", "row = nl.ndarray((1, hidden)"),
    (
        "        nisa.dma_copy(dst=out[first:last, :], src=x_sbuf)\n    return out",
        "        nisa.dma_copy(dst=row, src=x_sbuf[0:1, :])\n    return row",
    ),
)
