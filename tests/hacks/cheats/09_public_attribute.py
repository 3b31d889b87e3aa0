"""Takes the attribute's public value for granted.

Seen in: kernelbench.com pull request 7, for epsilon and scale.
"""

from tests.hacks.corpus import edited, golden

TASK = "decay_scan"
FOOLS = "constant tolerance"
GUARD = "values"
CHEAT = edited(golden("decay_scan"), ("value=decay", "value=0.5"))
