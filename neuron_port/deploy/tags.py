"""What marks everything that we create, and finding it again by that mark: also after a crash of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

JOB = "neuron-port:job"
KIND = "neuron-port:kind"  # build, endpoint, storage, eks
PHASE = "neuron-port:phase"
OWNER = "neuron-port:owner"
CREATED = "neuron-port:created"
DEADLINE = "neuron-port:deadline"
PRICE = "neuron-port:usd-per-hour"
REMOTE = "neuron-port:remote"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What the tags of one resource say. `deadline` is None for what is meant to stay (an endpoint)."""

    job: str
    kind: str
    owner: str
    created: datetime
    deadline: datetime | None

    def tags(self, **more: str) -> dict[str, str]:
        """Tag name -> value; `more` may add phase, price and remote."""
        names = {"phase": PHASE, "price": PRICE, "remote": REMOTE}
        fixed = {"Name": f"neuron-port {self.job}", JOB: self.job, KIND: self.kind, OWNER: self.owner,
                 CREATED: stamp(self.created)}  # fmt: skip
        if self.deadline is not None:
            fixed[DEADLINE] = stamp(self.deadline)
        return fixed | {names[name]: value for name, value in more.items()}


def stamp(moment: datetime) -> str:
    """UTC to the second: 2026-11-23T04:03:10Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """The form that EC2 and CloudFormation take."""
    return [{"Key": name, "Value": value} for name, value in tags.items()]


def tag_map(tags: list[dict[str, str]] | None) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags or []}
