"""`NKIObject`: the base class of the records that kernels define, with the initializer that NKI's compiler gives them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

_GENERATED = "<string>"  # where the code of a dataclass's own __init__ comes from


class _RecordType(type):
    """Makes records as NKI's compiler does: fields that are not given are None, whether @dataclass or not.

    A class that defines `__init__` itself is made by it.
    """

    def __call__(cls, *arguments: Any, **fields: Any) -> Any:
        initializer = cls.__init__  # type: ignore[misc]
        code = getattr(initializer, "__code__", None)
        if initializer is not object.__init__ and (code is None or code.co_filename != _GENERATED):
            return super().__call__(*arguments, **fields)
        record: Any = cls.__new__(cls)  # type: ignore[call-overload]
        names = _field_names(cls)
        if len(arguments) > len(names):
            raise TypeError(f"{cls.__name__} has {len(names)} fields, but {len(arguments)} values are given")
        given = dict(zip(names, arguments, strict=False))
        for name in fields:
            if name in given:
                raise TypeError(f"{cls.__name__} is given `{name}` twice")
        given |= fields
        for name in (*names, *(name for name in given if name not in names)):
            value = given[name] if name in given else _default(cls, name)
            object.__setattr__(record, name, value)  # also where the dataclass is frozen
        if hasattr(record, "__post_init__"):
            record.__post_init__()
        return record


def _field_names(cls: type) -> list[str]:
    """The annotated fields of the class and its bases, in the order of their definition."""
    names: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        names |= dict.fromkeys(inspect.get_annotations(base))
    return list(names)


def _default(cls: type, name: str) -> Any:
    """What the class says, or None."""
    field = getattr(cls, "__dataclass_fields__", {}).get(name)
    if field is not None and field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return getattr(cls, name, None)


class NKIObject(metaclass=_RecordType):
    """Base class of the records that a kernel may define."""
