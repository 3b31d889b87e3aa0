"""The errors that a user can fix: one clear sentence, and the cure in `hint`.

Everything raised on purpose between stages derives from `NeuronPortError`; the command line catches it once,
prints it without a traceback and exits with `exit_code`. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations


class NeuronPortError(Exception):
    """One sentence that names the thing and its value; `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UsageError(NeuronPortError):
    """An option or an argument that cannot be used as given."""

    exit_code = 2


class CheckpointError(NeuronPortError):
    """The model cannot be found, reached or read."""


class RecipeError(NeuronPortError):
    """A recipe folder is broken, unknown or registered twice."""


class ParityError(NeuronPortError):
    """A kernel, a graph or the whole ported model disagrees with its reference."""


class LoweringError(NeuronPortError):
    """A graph uses something that the HLO emitter does not know."""


class StorageError(NeuronPortError):
    """The store or the bundle cannot be written: the disk is full, or a lock is held."""
