"""What a build or an endpoint costs besides its instances (`neuron_port.instances`): public list prices, dated."""

from __future__ import annotations

from dataclasses import dataclass

HOURS_PER_MONTH = 730


@dataclass(frozen=True, kw_only=True)
class ListPrice:
    """A price in us-east-1, with where and when it was read, and how sure we are."""

    usd: float
    per: str
    source: str
    date: str
    confidence: str


_MEDIUM = {
    "date": "2026-08",
    "confidence": "medium: a list price from public pages, not asked of the Pricing API",
}
GP3_GIB_MONTH = ListPrice(
    usd=0.08, per="GiB-month", source="Amazon EBS pricing page, gp3, us-east-1", **_MEDIUM
)
S3_GB_MONTH = ListPrice(
    usd=0.023, per="GB-month", source="Amazon S3 pricing page, Standard, us-east-1", **_MEDIUM
)
PUBLIC_IPV4_HOUR = ListPrice(
    usd=0.005, per="hour", source="Amazon VPC pricing page, public IPv4 address", **_MEDIUM
)
EKS_CLUSTER_HOUR = ListPrice(
    usd=0.10, per="hour", source="Amazon EKS pricing page, standard support", **_MEDIUM
)


def disk_usd_per_hour(gib: int) -> float:
    return gib * GP3_GIB_MONTH.usd / HOURS_PER_MONTH
