"""Gives `nisa` another meaning after the import.

Seen in: our own red team.
"""

from tests.hacks.corpus import edited, golden

TASK = "add"
FOOLS = "constant tolerance"
GUARD = "source"
CHEAT = edited(
    golden("add"),
    (
        "P = 128\n",
        """P = 128


class Cheaper:
    def __getattr__(self, name):
        return getattr(self.held, name)

    def tensor_tensor(self, dst, data1, data2, op):
        dst.array[...] = data1.array + data2.array


cheaper = Cheaper()
cheaper.held = nisa
nisa = cheaper
""",
    ),
)
