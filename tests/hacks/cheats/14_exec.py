"""Executes text, which it keeps reversed.

Seen in: triton-viz; AccelOpt's string check.
"""

from tests.hacks.corpus import edited, golden

TASK = "softmax"
FOOLS = "exit status"
GUARD = "source"
CHEAT = edited(golden("softmax"), ("P = 128\n", 'P = 128\nexec(")0(tixe_.so;so tropmi"[::-1])\n'))
