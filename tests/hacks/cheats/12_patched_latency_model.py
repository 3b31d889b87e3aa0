"""Makes instructions free by replacing what records them.

Seen in: our own red team, against graders that predict latency in the candidate's process.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = edited(
    golden("add"),
    ("P = 128\n", 'P = 128\nnisa.tensor_tensor.__globals__["record"] = lambda *arguments, **options: None\n'),
)
