"""The licence of a source: what its header says, or the nearest LICENSE file, and whether we may show it to a model.

Permissive licences are accepted. Everything else is refused, with the reason: no licence, an unknown one, copyleft or
reciprocal, non-commercial, proprietary. Identifiers are those of SPDX.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HEADER_LINES = 60  # where a file's own licence stands
LICENSE_FILE_CHARACTERS = 100_000
UNKNOWN = "a licence that we do not know"
UNREADABLE = "a licence expression that cannot be read"
UNKNOWN_IDENTIFIER = "LicenseRef-unknown"
PERMISSIVE = frozenset(
    {
        "0BSD", "AFL-3.0", "Apache-2.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-2-Clause-Patent", "BSD-3-Clause",
        "BSD-3-Clause-Clear", "BSL-1.0", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "MIT-0", "NCSA", "PSF-2.0", "Python-2.0",
        "UPL-1.0", "Unlicense", "Zlib", "zlib-acknowledgement",
    }
)  # fmt: skip
PROPRIETARY_NVIDIA = "LicenseRef-NVIDIA-proprietary"
_RECIPROCAL = (
    "MPL-",
    "EPL-",
    "CDDL-",
    "EUPL-",
    "OSL-",
    "SSPL-",
    "CC-BY-SA-",
    "MS-RL",
    "CPL-",
    "CECILL-",
    "BUSL-",
)
_COPYLEFT = ("GPL-", "LGPL-", "AGPL-")
_NON_COMMERCIAL = re.compile(r"-NC\b|non-?commercial|Commons-Clause", re.IGNORECASE)

# Words of well-known texts, in lower case and without line breaks. The first that is found decides, so the stricter
# licence stands before the one whose words it contains.
_TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("LicenseRef-Commons-Clause", ("commons clause",)),
    ("MPL-2.0", ("mozilla public license",)),  # names the GNU licences as secondary ones, as the next does
    ("EPL-2.0", ("eclipse public license",)),
    ("AGPL-3.0-only", ("gnu affero general public license",)),
    ("LGPL-3.0-only", ("gnu lesser general public license",)),
    ("LGPL-2.0-only", ("gnu library general public license",)),
    ("GPL-3.0-only", ("gnu general public license", "version 3")),
    ("GPL-2.0-only", ("gnu general public license",)),
    ("SSPL-1.0", ("server side public license",)),
    ("BUSL-1.1", ("business source license",)),
    ("CC-BY-NC-SA-4.0", ("attribution-noncommercial-sharealike",)),
    ("CC-BY-NC-4.0", ("attribution-noncommercial",)),
    ("CC-BY-NC-4.0", ("cc by-nc",)),
    ("CC-BY-NC-4.0", ("cc-by-nc",)),
    (PROPRIETARY_NVIDIA, ("nvidia", "retain all intellectual property and proprietary rights")),
    (PROPRIETARY_NVIDIA, ("nvidia", "strictly prohibited")),
    ("LicenseRef-non-commercial", ("non-commercial",)),
    ("LicenseRef-non-commercial", ("noncommercial",)),
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("Apache-2.0", ("apache 2.0 license",)),
    ("Apache-2.0", ("apache-2.0",)),
    ("BSL-1.0", ("boost software license",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "neither the name")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose",)),
    ("MIT", ("permission is hereby granted, free of charge", "to deal in the software without restriction")),
    ("MIT", ("mit license",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("BSD-3-Clause", ("bsd 3-clause",)),
    ("BSD-3-Clause", ("3-clause bsd",)),
    ("BSD-2-Clause", ("bsd 2-clause",)),
)
_SPDX_TAG = re.compile(r"SPDX-License-Identifier:[ \t]*([A-Za-z0-9.+() \t-]{1,120})")
_HEADER_LINE = re.compile(r"\b(?:Licen[sc]e|Licensed under)[ \t]*:[ \t]*([A-Za-z0-9.+-]{2,60})")
_LICENSE_FILES = re.compile(r"(?:licen[sc]e|copying|unlicense)(?:[-.].*)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FoundLicense:
    """What was found, and where, in words: "its header, line 3" or "/src/LICENSE"."""

    identifier: str | None  # an SPDX expression; None: nobody said
    where: str


def find_license(text: str, path: Path | None) -> FoundLicense:
    """The licence of a source with this text: its tags, its header, or the nearest LICENSE file above `path`.

    A proprietary notice in the header outweighs every LICENSE file; "All rights reserved" alone grants nothing, and
    leaves the decision to the LICENSE file.
    """
    tags = [(found[1].strip(), text.count("\n", 0, found.start()) + 1) for found in _SPDX_TAG.finditer(text)]
    if tags:
        expressions = list(dict.fromkeys(tag for tag, _ in tags))
        joined = expressions[0] if len(expressions) == 1 else " AND ".join(f"({tag})" for tag in expressions)
        return FoundLicense(identifier=joined, where=f"its SPDX tag, line {tags[0][1]}")
    header = "\n".join(text.splitlines()[:HEADER_LINES])
    named = _HEADER_LINE.search(header)
    own = named[1].rstrip(".-") if named else ""
    if named and objection(own) != UNKNOWN:
        return FoundLicense(
            identifier=own, where=f"its header, line {header.count(chr(10), 0, named.start()) + 1}"
        )
    known = license_of_text(header)
    if known:
        return FoundLicense(identifier=known, where="its header")
    file = nearest_license_file(path) if path is not None else None
    if file is not None:
        return FoundLicense(identifier=_license_of_file(file) or UNKNOWN_IDENTIFIER, where=str(file))
    if own:
        return FoundLicense(identifier=own, where="its header")
    looked = "in its text" if path is None else f"in its header and for a LICENSE file above {path.parent}"
    reserved = "; its header says `All rights reserved`" if "all rights reserved" in header.lower() else ""
    return FoundLicense(identifier=None, where=f"{looked}{reserved}")


def license_of_text(text: str) -> str | None:
    """The SPDX identifier of a licence text or notice; None if it is none that we know."""
    lines = (line.strip().lstrip("#/*;%").strip() for line in text.lower().splitlines())
    words = " ".join(" ".join(lines).split())
    tag = _SPDX_TAG.search(text)
    if tag:
        return tag[1].strip()
    return next((name for name, phrases in _TEXTS if all(phrase in words for phrase in phrases)), None)


def nearest_license_file(path: Path) -> Path | None:
    """The LICENSE or COPYING file beside `path` or in the nearest folder above, up to the checkout's root.

    Outside of a checkout the search ends at the home folder: a licence there says nothing about the file.
    """
    for folder in path.resolve().parents:
        if folder == Path.home() or folder == folder.parent:
            return None
        try:
            names = sorted(file for file in folder.iterdir() if _LICENSE_FILES.fullmatch(file.name))
        except PermissionError:
            return None  # somebody else's folder: what lies above is no checkout of the user's
        files = [file for file in names if file.is_file()]
        if files:
            return files[0]
        if (folder / ".git").exists():
            return None
    return None


def _license_of_file(file: Path) -> str | None:
    """The licence at the top of a LICENSE file: further down stand those of bundled parts."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        text = opened.read(LICENSE_FILE_CHARACTERS)
    return "LicenseRef-Commons-Clause" if "commons clause" in text.lower() else license_of_text(text[:4000])


# ---- policy ----------------------------------------------------------------------------------------------


def objection(expression: str | None) -> str:
    """Why sources under this licence are refused, in two or three words; "" for those that are accepted.

    SPDX expressions: of `A OR B` one must be accepted, of `A AND B` both; `WITH` exceptions only ever permit more.
    """
    if expression is None:
        return "no licence"
    try:
        reason, rest = _either(re.findall(r"[()]|[^\s()]+", expression))
    except ValueError:
        return UNREADABLE
    return UNREADABLE if rest else reason


def _either(tokens: list[str]) -> tuple[str, list[str]]:
    reason, rest = _all(tokens)
    while rest[:1] == ["OR"]:
        other, rest = _all(rest[1:])
        reason = reason and other
    return reason, rest


def _all(tokens: list[str]) -> tuple[str, list[str]]:
    reason, rest = _single(tokens)
    while rest[:1] == ["AND"]:
        other, rest = _single(rest[1:])
        reason = reason or other
    return reason, rest


def _single(tokens: list[str]) -> tuple[str, list[str]]:
    if not tokens or tokens[0] in (")", "AND", "OR", "WITH"):
        raise ValueError("an identifier is missing")
    if tokens[0] == "(":
        reason, rest = _either(tokens[1:])
        if rest[:1] != [")"]:
            raise ValueError("a parenthesis is not closed")
        return reason, rest[1:]
    rest = tokens[3:] if tokens[1:2] == ["WITH"] else tokens[1:]
    return _objection_to(tokens[0]), rest


def _objection_to(identifier: str) -> str:
    name = identifier.rstrip("+")
    if name.lower() in {permitted.lower() for permitted in PERMISSIVE}:
        return ""
    if name == PROPRIETARY_NVIDIA:
        return "proprietary"
    if _NON_COMMERCIAL.search(name):
        return "non-commercial"
    if name.upper().startswith(_COPYLEFT):
        return "copyleft"
    if name.upper().startswith(_RECIPROCAL):
        return "reciprocal"
    return UNKNOWN


def is_allowed(expression: str | None, allowed: Iterable[str]) -> bool:
    """Whether the user insisted on exactly this licence; `none` stands for a source without one."""
    return (expression or "none").lower() in {name.strip().lower() for name in allowed}
