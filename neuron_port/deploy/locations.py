"""`s3://bucket/prefix`: where jobs live."""

from __future__ import annotations

import re
from dataclasses import dataclass

from neuron_port.errors import UsageError

# Amazon S3 user guide, "Bucket naming rules": 3 to 63 of lower-case letters, digits, hyphens and dots.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9!_.()/-]*")


@dataclass(frozen=True, kw_only=True)
class Location:
    """A bucket and a prefix without slashes at its ends ("" is the bucket's root)."""

    bucket: str
    prefix: str

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def below(self, name: str) -> Location:
        return Location(bucket=self.bucket, prefix=self.key(name))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_location(text: str) -> Location:
    """The location that `s3://bucket/prefix` names.

    Raises: UsageError naming what is wrong with it.
    """
    if not text.startswith("s3://"):
        raise UsageError(f"Not an S3 location: `{text}`", hint="Write it as s3://bucket/prefix.")
    bucket, _, prefix = text.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise UsageError(
            f"Not a bucket's name: `{bucket}`", hint="3 to 63 lower-case letters, digits, hyphens and dots."
        )
    prefix = prefix.strip("/")
    if not _PREFIX.fullmatch(prefix) or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise UsageError(
            f"Not a prefix that every tool can handle: `{prefix}`",
            hint="Letters, digits, and ! _ . ( ) - between single slashes.",
        )
    return Location(bucket=bucket, prefix=prefix)
