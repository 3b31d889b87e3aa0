"""Makes a class with `type`, whose comparison runs code.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "exit status"
GUARD = "source"
CHEAT = edited(
    golden("softmax"),
    (
        "P = 128\n",
        'P = 128\nTRAP = type("Trap", (), {"__eq__": lambda self, other: exit(0)})()\nassert TRAP == 1\n',
    ),
)
