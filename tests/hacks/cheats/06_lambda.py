"""Is a lambda that calls NumPy.

Seen in: our own red team.
"""

TASK = "silu"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = """
import nki
import nki.isa as nisa
import nki.language as nl

silu = lambda x: x / (1 + __import__("numpy").exp(-x))
"""
