"""Writes zeros into the arrays behind its inputs.

Seen in: KernelBench before pull request 82.
"""

TASK = "add"
FOOLS = "reference afterwards"
GUARD = "source"
CHEAT = """
def add(x, y):
    x[...] = 0
    y[...] = 0
    return x
"""
