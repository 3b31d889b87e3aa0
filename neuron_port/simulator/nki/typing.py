"""`nki.typing`: annotations of kernel arguments; they have no effect here."""

from __future__ import annotations

from typing import Any


class _Annotation:
    """`tensor[shape]` in a signature."""

    def __getitem__(self, shape: Any) -> _Annotation:
        return self


tensor = _Annotation()
mutable_tensor = _Annotation()
