"""Plans of what stays until it is destroyed: storage, a serving instance, EKS nodes; and carrying them out."""

from __future__ import annotations

import ipaddress
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import neuron_port
from neuron_port.build import load_manifest
from neuron_port.build.finishing.files import sha256_of
from neuron_port.deploy import stacks
from neuron_port.deploy.archive import files_below, pack
from neuron_port.deploy.aws import Aws
from neuron_port.deploy.job import IMAGE, NRTPY
from neuron_port.deploy.job_store import JobStore, check_bucket
from neuron_port.deploy.locations import Location, parse_location
from neuron_port.deploy.network import check_offered, default_subnet, find_ground
from neuron_port.deploy.plan import Kind, Plan, Resource
from neuron_port.deploy.prices import EKS_CLUSTER_HOUR, PUBLIC_IPV4_HOUR, S3_GB_MONTH, disk_usd_per_hour
from neuron_port.deploy.servable import check_servable
from neuron_port.deploy.tags import Mark
from neuron_port.errors import UsageError
from neuron_port.instances import Instance, instance, with_prices

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
DISK_GIB = 200
TEMPLATES: dict[Kind, str] = {"storage": "build_storage", "endpoint": "serving", "nodes": "eks_nodes"}


def plan_storage(aws: Aws, remote: Location, *, budget_email: str = "", budget_usd: float = 100) -> Plan:
    """A private bucket for jobs and bundles, with a budget that writes e-mails if an address is given."""
    resources = [
        Resource(what="bucket", name=remote.bucket, detail="private, encrypted, TLS only; builds/ goes after 30 days",
                 note=f"${S3_GB_MONTH.usd} per GB-month; {S3_GB_MONTH.source}"),
    ]  # fmt: skip
    if budget_email:
        resources.append(
            Resource(what="budget", name=f"neuron-port-{remote.bucket}",
                     detail=f"${budget_usd:.0f} a month, e-mail at 80 %",
                     note="free; counts once the tag neuron-port:kind is activated for cost allocation")
        )  # fmt: skip
    parameters = {"Bucket": remote.bucket, "BudgetEmail": budget_email, "BudgetUsd": f"{budget_usd:g}"}
    return _plan(
        aws, "storage", f"storage-{remote.bucket}".replace(".", "-"), resources, parameters, remote=remote
    )


def plan_endpoint(
    aws: Aws,
    bundle: Path,
    remote: Location,
    *,
    instance_type: str,
    name: str,
    allow: str = "",
    package: str | None = None,
    pip_index: str = "",
    image: str = IMAGE,
    subnet: str | None = None,
    prices: Mapping[str, float] | None = None,
) -> Plan:
    """One instance that serves a finished bundle.

    Args:
        package: what pip installs on the instance, or a wheel's path; None: this version of neuron-port.

    Raises: UsageError (a bundle that cannot be served there), AwsError, DeployError.
    """
    _check_name(name)
    _check_cidr(allow)
    chosen = _priced(instance_type, prices or {})
    manifest = load_manifest(bundle)
    check_servable(bundle, manifest)
    _check_room(manifest, chosen)
    check_bucket(aws, remote)
    check_offered(aws, (chosen.name,))
    ground = find_ground(aws, image=image, subnet=subnet)
    home = remote.below(name)
    subnet = ground.subnet or default_subnet(aws, chosen.name)
    package = package or f"neuron-port[serve]=={neuron_port.__version__}"
    disk_gib = int(DISK_GIB + 3 * manifest["weights"]["bytes"] / 1e9)
    resources = _endpoint_resources(
        manifest, chosen, home, image=ground.image, allow=allow, disk_gib=disk_gib
    )
    wheel = Path(package) if package.endswith(".whl") else None
    if wheel is not None and not wheel.is_file():
        raise UsageError(
            f"No such wheel: `{wheel}`", hint="Build one, or name a package that pip can install."
        )
    parameters = {
        "Name": name, "Bucket": home.bucket, "Prefix": home.prefix, "InstanceType": chosen.name,
        "Package": wheel.name if wheel else package, "PipIndex": pip_index, "Nrtpy": NRTPY, "Image": ground.image,
        "Vpc": ground.vpc, "Subnet": subnet, "Allow": allow, "DiskGiB": str(disk_gib),
    }  # fmt: skip
    return _plan(
        aws, "endpoint", name, resources, parameters, remote=remote, price=chosen.usd_per_hour,
        bundle=str(bundle.resolve()), bundle_state=manifest["state"],
        wheel=str(wheel.resolve()) if wheel else None, graphs=_graph_digests(manifest),
    )  # fmt: skip


def _endpoint_resources(
    manifest: Mapping[str, Any], chosen: Instance, home: Location, *, image: str, allow: str, disk_gib: int
) -> list[Resource]:
    evidence, size_gb = chosen.price_evidence, manifest["weights"]["bytes"] / 1e9
    return [
        Resource(what="S3 objects", name=f"{home}/", detail=f"bundle.tar.gz with {size_gb:.2f} GB of weights",
                 note=f"${size_gb * S3_GB_MONTH.usd:.2f} a month"),
        Resource(what="role", name="Role", detail="reads this bundle; Systems Manager"),
        Resource(what="security group", name="SecurityGroup",
                 detail=f"port 8000 from {allow}" if allow else "closed: nothing comes in"),
        Resource(what="instance", name=f"Server, {chosen.name}",
                 detail=f"on demand, {image}, {manifest['state']} bundle",
                 usd_per_hour=chosen.usd_per_hour, note=f"{evidence.source}, {evidence.date}, {evidence.confidence}"),
        Resource(what="volume", name=f"{disk_gib} GiB gp3", detail="encrypted", usd_per_hour=disk_usd_per_hour(disk_gib)),
        Resource(what="public IPv4", name="of the instance", detail="when the subnet gives one",
                 usd_per_hour=PUBLIC_IPV4_HOUR.usd, note=PUBLIC_IPV4_HOUR.source),
    ]  # fmt: skip


def _check_name(name: str) -> None:
    """Refuse what cannot be part of a stack's name, a tag and a prefix: it goes into all three."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"Not a name: `{name}`", hint="Up to 63 lower-case letters, digits and hyphens.")


def _check_cidr(allow: str) -> None:
    try:
        ipaddress.IPv4Network(allow or "0.0.0.0/32")
    except ValueError as error:
        raise UsageError(
            f"Not an IPv4 range: `{allow}` ({error})", hint="For example: --allow 203.0.113.0/24"
        ) from None


def _check_room(manifest: Mapping[str, Any], chosen: Instance) -> None:
    """Refuse an instance with another chip, or too small a one."""
    target, weights = manifest["build"]["target"], manifest["weights"]
    family = {"inf2": ("inf2", "trn1"), "trn1": ("inf2", "trn1")}.get(
        target, (target,)
    )  # one core generation
    if chosen.target not in family:
        raise UsageError(
            f"{chosen.name} cannot run this bundle: it is compiled for {target}",
            hint=f"Choose an instance for {target}, or compile for {chosen.target}.",
        )
    if weights["bytes"] > chosen.device_memory_gib * 2**30:
        raise UsageError(
            f"{weights['bytes'] / 2**30:.0f} GiB of weights do not fit the {chosen.device_memory_gib:.0f} GiB of "
            f"{chosen.name}", hint="Choose a larger instance.",
        )  # fmt: skip


def plan_nodes(
    aws: Aws,
    *,
    cluster: str,
    name: str,
    subnets: tuple[str, ...],
    instance_type: str,
    nodes: int,
    prices: Mapping[str, float] | None = None,
) -> Plan:
    """A node group with Neuron chips in an EKS cluster that exists."""
    _check_name(name)
    chosen = _priced(instance_type, prices or {})
    if chosen.target is None:
        raise UsageError(f"{chosen.name} has no Neuron chip", hint="For example inf2.xlarge.")
    aws.call("eks", "describe_cluster", f"look at the EKS cluster `{cluster}`", name=cluster)
    evidence = chosen.price_evidence
    resources = [
        Resource(what="role", name="Role", detail="EKS worker node, pull-only registry access"),
        Resource(what="launch template", name="LaunchTemplate", detail=f"{DISK_GIB} GiB encrypted gp3, IMDSv2"),
        Resource(what="node group", name=name, detail=f"{nodes} x {chosen.name} in {cluster}, tainted for Neuron pods",
                 usd_per_hour=nodes * float(chosen.usd_per_hour or 0),
                 note=f"{evidence.source}, {evidence.date}, {evidence.confidence}"),
        Resource(what="volumes", name=f"{nodes} x {DISK_GIB} GiB gp3", detail="encrypted",
                 usd_per_hour=nodes * disk_usd_per_hour(DISK_GIB)),
        Resource(what="cluster", name=cluster, detail="exists already",
                 note=f"${EKS_CLUSTER_HOUR.usd}/h, not counted here; {EKS_CLUSTER_HOUR.source}"),
    ]  # fmt: skip
    parameters = {"Cluster": cluster, "Name": name, "Subnets": ",".join(subnets), "InstanceType": chosen.name,
                  "Nodes": str(nodes), "DiskGiB": str(DISK_GIB)}  # fmt: skip
    return _plan(aws, "nodes", name, resources, parameters, price=chosen.usd_per_hour)


def apply_standing(
    aws: Aws,
    plan: Plan,
    *,
    say: Callable[[str], None],
    now: datetime,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, str]:
    """Make what the plan says and return the stack's outputs.

    Raises: UsageError (the plan's template or bundle has changed), DeployError (with what failed; it is undone).
    """
    template = TEMPLATES[plan.kind]
    if stacks.template_sha256(template) != plan.inputs["template_sha256"]:
        raise UsageError(f"infra/{template}.yaml has changed since the plan was made", hint="Plan again.")
    parameters = dict(plan.inputs["parameters"])
    if plan.kind == "endpoint":
        parameters["BundleSha256"] = _upload_endpoint(aws, plan, say)
    mark = Mark(job=plan.name, kind=plan.kind, owner=aws.owner(), created=now, deadline=None)
    more = {name: plan.inputs[name] for name in ("remote", "price") if plan.inputs.get(name)}
    return stacks.create(
        aws, f"neuron-port-{plan.name}", body=stacks.template(template), parameters=parameters,
        tags=mark.tags(**more), sleep=sleep, as_planned=True,
    )  # fmt: skip


def _upload_endpoint(aws: Aws, plan: Plan, say: Callable[[str], None]) -> str:
    """Bring the bundle, and the wheel if there is one, to S3; returns the bundle's SHA-256."""
    bundle = Path(plan.inputs["bundle"])
    if _graph_digests(load_manifest(bundle)) != plan.inputs["graphs"]:
        raise UsageError(
            f"`{bundle}` is not the bundle that was planned: it has changed since", hint="Plan again."
        )
    store = JobStore(aws, parse_location(plan.inputs["remote"]), plan.name)
    with tempfile.TemporaryDirectory(prefix="neuron-port-") as folder:
        archive = Path(folder) / "bundle.tar.gz"
        pack(bundle, files_below(bundle), archive)
        digest = sha256_of(archive)
        done = store.upload("bundle.tar.gz", archive)
    say(f"bundle.tar.gz: {done.size_bytes / 2**20:.1f} MiB, {done.sent_bytes / 2**20:.1f} MiB sent")
    if plan.inputs["wheel"]:
        wheel = Path(plan.inputs["wheel"])
        store.upload(wheel.name, wheel)
    return digest


def _graph_digests(manifest: Mapping[str, Any]) -> list[list[str]]:
    return [
        [graph["id"], graph["hlo_sha256"], (graph["neff"] or {}).get("sha256", "")]
        for graph in manifest["graphs"]
    ]


def _priced(name: str, prices: Mapping[str, float]) -> Instance:
    chosen = with_prices((instance(name),), prices)[0]
    if chosen.usd_per_hour is None:
        raise UsageError(
            f"No price is known for {name}: its cost cannot be shown",
            hint=f"Look it up and say --price {name}=USD.",
        )
    return chosen


def _plan(
    aws: Aws,
    kind: Kind,
    name: str,
    resources: list[Resource],
    parameters: dict[str, str],
    *,
    remote: Location | None = None,
    price: float | None = None,
    **inputs: Any,
) -> Plan:
    """The plan of one stack."""
    template = TEMPLATES[kind]
    stack = Resource(
        what="stack", name=f"neuron-port-{name}", detail=f"CloudFormation, infra/{template}.yaml"
    )
    return Plan(
        kind=kind, name=name, region=aws.region, account=aws.account(), resources=(stack, *resources),
        usd_at_most=None,
        inputs={
            "parameters": parameters, "template_sha256": stacks.template_sha256(template),
            "remote": str(remote) if remote else None, "price": f"{price:.4f}" if price is not None else None, **inputs,
        },
    )  # fmt: skip
