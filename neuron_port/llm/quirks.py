"""Which parameters an endpoint rejects for a model: learnt from its own complaints, and remembered on disk.

Models behind one protocol differ: some take no temperature, some name the token limit differently, some have no system
role, some servers cannot stream. What a rejection named is left out, renamed or folded, and the request goes again at
once. Only a set that has then worked is remembered, so a misread complaint costs one request and no more.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from neuron_port.errors import StorageError
from neuron_port.lockfile import hold

# In the order in which a complaint is read: a longer name stands before the one that it contains.
PARAMETERS = ("max_completion_tokens", "max_tokens", "stream_options", "stream", "temperature", "system")
LIMITS = ("max_completion_tokens", "max_tokens")
WORDS = {
    "system": r"system|developer instruction",  # "system role not supported"; Google's word for Gemma
    "stream": r"stream(?:ing)?(?!_)",
}
# "max_tokens is too large": about the value, and another name for it would not help.
VALUE_COMPLAINT = re.compile(
    r"too (?:large|high|big)|at most|maximum (?:value|of)|exceed|less than", re.IGNORECASE
)


def rejected_parameter(complaint: str, parameter: str | None, sent: Iterable[str]) -> str | None:
    """Which of the sent parameters a complaint is about; None: none of them, or a value and not the parameter.

    Args:
        complaint: the endpoint's sentence.
        parameter: its `param` field, where it has one.
        sent: the parameters that the request had, of PARAMETERS.
    """
    present = [name for name in PARAMETERS if name in set(sent)]
    exact = [name for name in present if name == parameter]
    named = exact or [name for name in present if _mentions(complaint, name)]
    if not named or (named[0] in LIMITS and VALUE_COMPLAINT.search(complaint)):
        return None
    return named[0]


def _mentions(complaint: str, name: str) -> bool:
    pattern = WORDS.get(name, re.escape(name))
    return re.search(rf"(?<![A-Za-z_])(?:{pattern})(?![A-Za-z_])", complaint, re.IGNORECASE) is not None


class ModelQuirks:
    """What one model rejects: read from the memory once, added to as it is learnt. Thread-safe.

    Raises StorageError when the memory is damaged. Not being able to write it is only said: what was learnt came with a
    reply that has been paid for, and the reply counts more.
    """

    def __init__(
        self, memory: QuirkMemory, endpoint: str, model: str, say: Callable[[str], None] | None
    ) -> None:
        self._memory = memory
        self._endpoint = endpoint
        self._model = model
        self._say = say
        self._lock = threading.Lock()
        self._rejected = memory.rejected(endpoint, model)

    @property
    def rejected(self) -> frozenset[str]:
        with self._lock:
            return self._rejected

    def learn(self, rejected: frozenset[str]) -> None:
        """These, which have just worked, are what the model rejects."""
        with self._lock:
            if rejected == self._rejected:
                return
            self._rejected = rejected
        try:
            self._memory.remember(self._endpoint, self._model, rejected)
        except StorageError as error:
            self.tell(f"What `{self._model}` rejects is not remembered: {error.message}")

    def tell(self, sentence: str) -> None:
        if self._say is not None:
            self._say(sentence)


class QuirkMemory:
    """Rejected parameters by endpoint and model, in one small JSON file that several processes may share."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "llm" / "quirks.json"

    def rejected(self, endpoint: str, model: str) -> frozenset[str]:
        return frozenset(self._read().get(_entry(endpoint, model), ()))

    def remember(self, endpoint: str, model: str, rejected: frozenset[str]) -> None:
        """Replace what is known of one model; others' entries stay. StorageError when it cannot be written."""
        try:
            with hold(self.path.with_suffix(".lock")):
                known = self._read()
                known[_entry(endpoint, model)] = sorted(rejected)
                aside = self.path.with_suffix(f".{os.getpid()}.partial")
                with aside.open("w") as file:
                    json.dump(known, file, indent=1, sort_keys=True)
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(self.path)
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be written: {error.strerror}.",
                hint="Free some space, or point NEURON_PORT_HOME at a folder of your own.",
            ) from error

    def _read(self) -> dict[str, list[str]]:
        try:
            known = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be read: {error.strerror}.",
                hint="Point NEURON_PORT_HOME at a folder of your own.",
            ) from error
        except ValueError:
            known = None
        if not isinstance(known, dict) or not all(isinstance(names, list) for names in known.values()):
            raise StorageError(
                f"{self.path} is damaged: it should hold lists of parameters by endpoint and model.",
                hint="Delete it; what it knew is learnt again, for one rejected request each.",
            )
        return known


def _entry(endpoint: str, model: str) -> str:
    return f"{endpoint} {model}"
