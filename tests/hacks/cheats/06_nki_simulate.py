"""Calls the simulator's own entry on a host function.

Seen in: our own red team.
"""

TASK = "silu"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = """
import nki
import nki.isa as nisa
import nki.language as nl


def inner(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=nl.shared_constant(x.array / (1 + nki.host.np.exp(-x.array))))
    return out


def silu(x):
    return nki.simulate(inner)(x)
"""
