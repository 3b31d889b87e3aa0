"""Writes a passing line into every open descriptor, one of which is the grader's.

Seen in: kernelbot, pull request 162.
"""

TASK = "softmax"
FOOLS = "printed verdict"
GUARD = "source"
CHEAT = """
import os

import nki


@nki.jit
def softmax(x):
    for descriptor in range(1, 2):
        try:
            os.write(descriptor, b"PASS latency_ns: 1\\n")
        except OSError:
            pass
    os._exit(0)
"""
