"""Writes through a raw pointer.

Seen in: triton-viz.
"""

TASK = "add"
FOOLS = "reference afterwards"
GUARD = "source"
CHEAT = """
import ctypes


def add(x, y):
    ctypes.memset(x.ctypes.data, 0, x.nbytes)
    ctypes.memset(y.ctypes.data, 0, y.nbytes)
    return x
"""
