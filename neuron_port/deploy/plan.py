"""A plan: every resource with its price, as a document that is read first and carried out unchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import neuron_port
from neuron_port.deploy.prices import HOURS_PER_MONTH
from neuron_port.errors import UsageError

SCHEMA_VERSION = 1
Kind = Literal["build", "storage", "endpoint", "nodes"]


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One thing that would be made. `usd_per_hour` None: it costs nothing by the hour; `note` says what it costs then."""

    what: str
    name: str
    detail: str
    usd_per_hour: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would be made, in order, and everything that making it needs."""

    kind: Kind
    name: str
    region: str
    account: str
    resources: tuple[Resource, ...]
    usd_at_most: float | None  # None: it costs until it is destroyed
    inputs: Mapping[str, Any] = field(default_factory=dict)  # what `apply` uses; nothing else decides

    @property
    def usd_per_hour(self) -> float:
        return sum(resource.usd_per_hour or 0.0 for resource in self.resources)

    def document(self) -> dict[str, Any]:
        """The plan as JSON, with a digest over all of it."""
        body: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION, "tool": neuron_port.__version__, "kind": self.kind,
            "name": self.name, "region": self.region, "account": self.account,
            "resources": [dict(vars(resource)) for resource in self.resources],
            "usd_per_hour": round(self.usd_per_hour, 4), "usd_at_most": self.usd_at_most,
            "inputs": dict(self.inputs),
        }  # fmt: skip
        return body | {"digest": _digest(body)}

    def text(self) -> str:
        """The plan for people: one line for each resource, then what it costs."""
        width = max(len(resource.what) for resource in self.resources)
        lines = [f"plan: {self.kind} `{self.name}` in {self.region}, account {self.account}", ""]
        for resource in self.resources:
            price = f"${resource.usd_per_hour:.4f}/h" if resource.usd_per_hour is not None else "-"
            note = f"  ({resource.note})" if resource.note else ""
            lines.append(f"  {resource.what:<{width}}  {price:>11}  {resource.name}: {resource.detail}{note}")
        lines.append("")
        if self.usd_at_most is not None:
            lines.append(f"  at most ${self.usd_at_most:.2f}; instances end themselves")
        else:
            month = self.usd_per_hour * HOURS_PER_MONTH
            lines.append(
                f"  ${self.usd_per_hour:.4f} per hour, about ${month:.0f} per month, until it is destroyed"
            )
        lines.append("  Prices are a dated snapshot of us-east-1; data transfer and requests come on top.")
        return "\n".join(lines)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises: UsageError when it is no plan, was changed by hand, or was made by another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        digest = document.pop("digest")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(
            f"`{path}` is no plan: {error}", hint="Write one with `neuron-port deploy plan ... -o FILE`."
        ) from error
    if document.get("schema_version") != SCHEMA_VERSION or document.get("tool") != neuron_port.__version__:
        raise UsageError(
            f"`{path}` was made by neuron-port {document.get('tool')}; this is {neuron_port.__version__}",
            hint="Plan again, so that what is made is what you have read.",
        )
    if _digest(document) != digest:
        raise UsageError(
            f"`{path}` was changed after it was made", hint="Plan again with the options that you want."
        )
    return Plan(
        kind=document["kind"], name=document["name"], region=document["region"], account=document["account"],
        resources=tuple(Resource(**entry) for entry in document["resources"]),
        usd_at_most=document["usd_at_most"], inputs=document["inputs"],
    )  # fmt: skip
