"""One AWS session and one way to call a service, so that every failure passes through `errors.translated`.

Credentials, profile and AWS_ENDPOINT_URL are honoured as boto3 honours them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import botocore.config

from neuron_port.deploy.errors import translated

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60
ATTEMPTS = 4  # of one call: botocore waits between them, and repeats only what is safe to repeat


class Aws:
    """A session in one region. Clients are made once; tests may hook events into them."""

    def __init__(self, region: str | None = None) -> None:
        with translated("set up AWS"):
            self._session = boto3.session.Session(region_name=region)
            self._clients: dict[str, Any] = {}
            self.region: str = self.client("ec2").meta.region_name

    def client(self, service: str) -> Any:
        """The boto3 client of a service."""
        if service not in self._clients:
            settings = botocore.config.Config(
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                connect_timeout=CONNECT_TIMEOUT_SECONDS, read_timeout=READ_TIMEOUT_SECONDS,
            )  # fmt: skip
            with translated(f"set up AWS ({service})"):
                self._clients[service] = self._session.client(service, config=settings)
        return self._clients[service]

    def call(self, service: str, operation: str, doing: str, **parameters: Any) -> dict[str, Any]:
        """The answer of one call.

        Raises: AwsError "Cannot <doing>: ...".
        """
        client = self.client(service)
        with translated(doing):
            return dict(getattr(client, operation)(**parameters))

    def pages(self, service: str, operation: str, doing: str, **parameters: Any) -> list[dict[str, Any]]:
        """All pages of a listing call."""
        client = self.client(service)
        with translated(doing):
            return list(client.get_paginator(operation).paginate(**parameters))

    def chunks(self, body: Any, doing: str) -> Iterator[bytes]:
        """The pieces of a streaming answer."""
        with translated(doing):
            yield from body.iter_chunks(1 << 20)

    def account(self) -> str:
        """The account's number."""
        return str(self.call("sts", "get_caller_identity", "ask AWS who we are")["Account"])

    def owner(self) -> str:
        """Who we are, as AWS names us: the tail of the caller's ARN."""
        answer = self.call("sts", "get_caller_identity", "ask AWS who we are")
        return str(answer["Arn"]).rpartition(":")[2]
