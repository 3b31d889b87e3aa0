"""GPU sources that a kernel may be drafted from: read, their origin and licence found, refused where we may not use them.

A source is data. It is never imported or executed, and its comments are not shown unless asked for.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from neuron_port.drafting.sources.comments import without_comments
from neuron_port.drafting.sources.licences import FoundLicense, find_license, is_allowed, objection
from neuron_port.errors import NeuronPortError
from neuron_port.task import Language, Source

MAXIMUM_CHARACTERS = 120_000  # of one source; about 40,000 tokens
MAXIMUM_FILES = 40  # of one folder
SUFFIXES: dict[str, Language | None] = {
    ".cu": "cuda", ".cuh": "cuda", ".py": None, ".cpp": "cuda", ".cc": "cuda", ".h": "cuda", ".hpp": "cuda",
}  # fmt: skip
_CUDA_SIGNS = re.compile(r"__global__|__device__|\bblockIdx\b|#include\s*[<\"]cuda")
_TRITON_SIGNS = re.compile(r"^\s*(?:import|from)\s+triton\b|@triton\.jit\b", re.MULTILINE)
_ORIGIN_LINE = re.compile(
    r"\b(?:Origin|Source|Upstream|Adapted from|Copied from|Taken from|Based on)\b[^\n]{0,40}?(https?://[^\s\"'<>)\]]+)",
    re.IGNORECASE,
)
_GIT_SECONDS = 10.0


class SourceError(NeuronPortError):
    """A source that cannot be read, is too long, or may not be used."""


def load_sources(path: str | Path, *, allow_licenses: Iterable[str] = ()) -> tuple[Source, ...]:
    """Sources of a file, of a recipe's folder (its source.py), or of a folder of kernels, by name.

    Raises:
        SourceError: nothing there, too much of it, or a licence that is refused and not in `allow_licenses`.
    """
    place = Path(path)
    allowed = tuple(allow_licenses)
    if place.is_file():
        return (load_source(place, allow_licenses=allowed),)
    if not place.is_dir():
        raise SourceError(
            f"No source at: `{place}`", hint="Name a .py, .cu or .cuh file, or a folder of them."
        )
    if (place / "recipe.py").is_file() and (place / "source.py").is_file():
        return (load_source(place / "source.py", allow_licenses=allowed),)
    files = sorted(file for file in place.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise SourceError(f"No GPU sources in: `{place}`", hint=f"Looked for {', '.join(SUFFIXES)}.")
    if len(files) > MAXIMUM_FILES:
        raise SourceError(
            f"`{place}` holds {len(files)} sources, at most {MAXIMUM_FILES} are read",
            hint="Name the files instead.",
        )
    return tuple(load_source(file, allow_licenses=allowed) for file in files)


def load_source(path: str | Path, *, allow_licenses: Iterable[str] = ()) -> Source:
    """The source in one file, with its origin and licence.

    Raises:
        SourceError: as `load_sources`.
    """
    file = Path(path)
    try:
        size_bytes = file.stat().st_size
        data = file.read_bytes() if size_bytes <= 4 * MAXIMUM_CHARACTERS else b""
    except OSError as error:
        raise SourceError(f"Source `{file}` cannot be read: {error.strerror}") from error
    if not data and size_bytes:
        raise _too_long(str(file), size_bytes, "bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"Source `{file}` is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error
    language = SUFFIXES.get(file.suffix) or detect_language(text)
    return _source(text, str(file), language, _origin(text, file), file, allow_licenses)


def source_from_text(
    text: str, *, origin: str = "", language: Language | None = None, allow_licenses: Iterable[str] = ()
) -> Source:
    """The source in a text that comes from no file, such as a test case or a web page.

    Raises:
        SourceError: too long, or a licence that is refused.
    """
    named = origin or _url_in_header(text) or "a text without origin"
    return _source(text, named, language or detect_language(text), named, None, allow_licenses)


def detect_language(text: str) -> Language:
    """triton, cuda or pytorch, by what the text contains."""
    if _TRITON_SIGNS.search(text):
        return "triton"
    return "cuda" if _CUDA_SIGNS.search(text) else "pytorch"


def shown_text(source: Source, *, comments: bool = False) -> str:
    """What a prompt shows of a source: its code, without comments unless asked for.

    Raises:
        CommentError: comments cannot be told from code.
    """
    return source.text if comments else without_comments(source.text, source.language)


def _source(
    text: str, name: str, language: Language, origin: str, path: Path | None, allow_licenses: Iterable[str]
) -> Source:
    if len(text) > MAXIMUM_CHARACTERS:
        raise _too_long(name, len(text), "characters")
    if not text.strip():
        raise SourceError(f"Source `{name}` is empty")
    found = find_license(text, path)
    reason = objection(found.identifier)
    if reason and not is_allowed(found.identifier, allow_licenses):
        raise _refusal(name, found, reason)
    return Source(
        language=language,
        text=text,
        origin=origin,
        license=found.identifier,
        refusal_overridden=bool(reason),
    )


def _too_long(name: str, size: int, unit: str) -> SourceError:
    return SourceError(
        f"Source `{name}` has {size} {unit}, at most {MAXIMUM_CHARACTERS} characters are read",
        hint="Cut out the kernel that is meant, with its licence header.",
    )


def _refusal(name: str, found: FoundLicense, reason: str) -> SourceError:
    flag = f"--allow-license {found.identifier or 'none'}"
    if found.identifier is None:
        message = f"Source `{name}` has no licence: none was found {found.where}"
    else:
        message = f"Source `{name}` is under {found.identifier} ({reason}), says {found.where}"
    return SourceError(
        message,
        hint=f"Use a permissively licensed source; or, if you may use this one, {flag}, which is recorded.",
    )


# ---- origin ----------------------------------------------------------------------------------------------


def _origin(text: str, path: Path) -> str:
    """Where a file came from: the URL that its header names, its place in a git checkout, or its path."""
    return _url_in_header(text) or _git_origin(path) or str(path)


def _url_in_header(text: str) -> str:
    header = "\n".join(text.splitlines()[:60])
    found = _ORIGIN_LINE.search(header)
    return _without_credentials(found[1].rstrip(".,;")) if found else ""


def _git_origin(path: Path) -> str:
    """`remote@commit:path`, with " (modified)" when the file differs from the commit; "" outside of a checkout.

    Asks only for what git looks up without running filters, hooks or monitors that a checkout may configure.
    """
    folder = path.resolve().parent
    prefix = _git(folder, "rev-parse", "--show-prefix")
    commit = _git(
        folder, "rev-list", "-1", "HEAD", "--", path.name
    )  # the last that touched it, so that it stays
    if not commit or prefix is None:
        return ""
    inside = f"{prefix}{path.name}"
    committed = _git(folder, "rev-parse", "--verify", f"{commit}:{inside}")
    if not committed:  # deleted by that commit: what lies there now is another file
        return ""
    present = _git(folder, "hash-object", "--no-filters", "--", path.name)
    remote = _without_credentials(
        _git(folder, "config", "--get", "remote.origin.url") or "a checkout without remote"
    )
    return f"{remote}@{commit}:{inside}" + ("" if present == committed else " (modified)")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _without_credentials(url: str) -> str:
    """https://user:token@host/x becomes https://host/x."""
    return re.sub(r"^([a-z+]+://)[^/@]*@", r"\1", url)
