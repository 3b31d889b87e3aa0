"""57 tiny architectures with random weights: the models on which coverage is measured.

entry            what an entry is; `build` and `write_checkpoint`
dense            decoders with one feed-forward network a layer
mixtures         decoders with experts
recurrent        state-space, linear-attention and hybrid decoders
encoders         text encoders
sequence_to_sequence, speech, vision, vision_language
"""

from __future__ import annotations

from collections.abc import Iterable

from . import dense, encoders, mixtures, recurrent, sequence_to_sequence, speech, vision, vision_language
from .entry import Entry, build, write_checkpoint

__all__ = ["ZOO", "Entry", "build", "choose", "write_checkpoint"]

_FAMILIES = (dense, mixtures, recurrent, encoders, sequence_to_sequence, speech, vision, vision_language)
ZOO: dict[str, Entry] = {entry.name: entry for family in _FAMILIES for entry in family.ENTRIES}


def choose(names: Iterable[str]) -> list[Entry]:
    """The entries of the given names or families, in the zoo's order; all when none is given.

    Raises KeyError for a name that is neither.
    """
    wanted = set(names)
    known = set(ZOO) | {entry.family for entry in ZOO.values()}
    if unknown := sorted(wanted - known):
        raise KeyError(f"Not in the zoo: {', '.join(unknown)}. It has: {', '.join(sorted(known))}")
    return [entry for entry in ZOO.values() if not wanted or {entry.name, entry.family} & wanted]
