"""How a server is to behave; what the command line's options become."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from neuron_port.errors import UsageError
from neuron_port.serving.backends import BACKENDS, BackendName


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One server. Times are in seconds.

    Raises: UsageError for values that contradict each other or cannot be.
    """

    backend: BackendName = "xla-cpu"
    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str | None = None  # what clients call the model; None: its id's last part
    keys: tuple[str, ...] = field(default=(), repr=False)
    no_key: bool = False
    max_queue: int = 256  # sequences that may wait beyond those that run
    max_body_bytes: int = 4 * 2**20
    max_connections: int = 1024
    request_seconds: float = 600.0  # of one request, from its arrival to its last token
    header_seconds: float = 10.0  # a client that takes longer to send its headers, or its body, is cut off
    send_seconds: float = 30.0  # ... or that reads nothing for so long
    stream_events: int = 1024  # pieces of text that a client may leave unread
    drain_seconds: float = 30.0
    verify: bool = True

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"Unknown backend: `{self.backend}`", hint=f"Known: {', '.join(BACKENDS)}.")
        if any(not key or not key.isascii() or key != key.strip() for key in self.keys):
            raise UsageError(
                "An API key is empty, or has other than ASCII characters", hint="Clients could not send it."
            )
        for name in ("max_queue", "max_body_bytes", "max_connections", "request_seconds", "header_seconds",
                     "send_seconds", "stream_events"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise UsageError(f"`{name}` is {getattr(self, name)}, must be above zero")
        if self.drain_seconds < 0 or not 0 <= self.port <= 65535:
            raise UsageError("`drain_seconds` must not be negative, and a port is 0 to 65535")
        if not self.keys and not self.no_key and not _is_loopback(self.host):
            raise UsageError(
                f"Listening on `{self.host}` without an API key would serve the model to the whole network",
                hint="Give --api-key or set NEURON_PORT_API_KEY; --no-key says that this is meant.",
            )

    def accepts(self, headers: Mapping[str, str]) -> bool:
        """Whether a request may come in: no key is asked for, or it brings one of them.

        Every key is compared, each in constant time, and as digests, whose lengths are equal: the answer's time tells
        nothing about them.
        """
        if not self.keys:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest, right = _digest(given.strip()), False
        for key in self.keys:
            right |= hmac.compare_digest(digest, _digest(key))
        return right and scheme.lower() == "bearer"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
