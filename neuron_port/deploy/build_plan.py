"""The plan of a remote build: what `build --remote --dry-run` prints and `deploy apply` carries out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from neuron_port.deploy import stacks
from neuron_port.deploy.aws import Aws
from neuron_port.deploy.job import EXPECTED_MINUTES, Job, Options, make_job
from neuron_port.deploy.job_store import check_bucket
from neuron_port.deploy.locations import parse_location
from neuron_port.deploy.network import Ground, check_offered, find_ground
from neuron_port.deploy.plan import Plan, Resource
from neuron_port.deploy.prices import S3_GB_MONTH, disk_usd_per_hour
from neuron_port.deploy.remote_build import Result, disk_gib, run, stack_name
from neuron_port.errors import UsageError


def plan_build(aws: Aws, bundle: Path, options: Options) -> Plan:
    """What a remote build of this bundle would make; reads from AWS, makes nothing."""
    job = make_job(bundle, options)
    check_bucket(aws, options.remote)
    check_offered(aws, (phase.instance.name for phase in job.phases))
    ground = find_ground(aws, image=options.image, subnet=options.subnet)
    return Plan(
        kind="build", name=job.id, region=aws.region, account=aws.account(),
        resources=(*_standing(job, ground), *_instances(job)), usd_at_most=_most_usd(job),
        inputs={
            "bundle": str(bundle.resolve()), "job": job.id, "template_sha256": stacks.template_sha256("build_job"),
            "options": options_record(options) | {"image": ground.image}, "image_name": options.image,
        },
    )  # fmt: skip


def _standing(job: Job, ground: Ground) -> list[Resource]:
    weights = job.manifest["weights"]["bytes"] if job.options.verify else 0
    stack = stack_name(job.id)
    month = weights / 1e9 * S3_GB_MONTH.usd
    return [
        Resource(what="S3 objects", name=f"{job.options.remote}/{job.id}/",
                 detail=f"bundle and {weights / 2**20:.0f} MiB of weights",
                 note=f"${month:.2f} a month while they are kept; {S3_GB_MONTH.source}"),
        Resource(what="stack", name=stack, detail="CloudFormation, infra/build_job.yaml"),
        Resource(what="role", name=f"{stack} Role", detail="reads this job, writes its compile/ and verify/"),
        Resource(what="instance profile", name=f"{stack} InstanceProfile", detail="gives the role to the instances"),
        Resource(what="security group", name=f"{stack} SecurityGroup", detail=f"in {ground.vpc}: nothing in, HTTPS out"),
        Resource(what="launch template", name=f"{stack} LaunchTemplate",
                 detail=f"{ground.image}, {disk_gib(job)} GiB encrypted gp3, IMDSv2, shutdown terminates"),
    ]  # fmt: skip


def _instances(job: Job) -> list[Resource]:
    found = []
    for phase in job.phases:
        evidence = phase.instance.price_evidence
        found.append(
            Resource(
                what="instance", name=f"{phase.name} on {phase.instance.name}", usd_per_hour=phase.usd_per_hour,
                detail=f"{job.options.market}, {EXPECTED_MINUTES[phase.name]} min expected (assumed), "
                f"{phase.minutes} at most",
                note=f"price on demand: {evidence.source}, {evidence.date or 'no date'}, {evidence.confidence}",
            )
        )  # fmt: skip
        found.append(
            Resource(what="volume", name=f"{phase.name}, {disk_gib(job)} GiB gp3", detail="goes with its instance",
                     usd_per_hour=disk_usd_per_hour(disk_gib(job)))
        )  # fmt: skip
    return found


def _most_usd(job: Job) -> float:
    disk = disk_usd_per_hour(disk_gib(job))
    return round(sum(phase.most_usd + disk * phase.minutes / 60 for phase in job.phases), 2)


def options_record(options: Options) -> dict[str, Any]:
    """Options as JSON."""
    record = {field.name: getattr(options, field.name) for field in fields(options)}
    return record | {
        "remote": str(options.remote), "prices": dict(options.prices),
        "finish_arguments": list(options.finish_arguments),
    }  # fmt: skip


def options_from(record: dict[str, Any]) -> Options:
    return Options(
        **record
        | {"remote": parse_location(record["remote"]), "finish_arguments": tuple(record["finish_arguments"])}
    )


def apply_build(aws: Aws, plan: Plan, *, say: Callable[[str], None], **timing: Any) -> Result:
    """Carry out a build's plan: the same bundle, the same options, the same machine image.

    Raises: UsageError when the bundle is not the one that was planned.
    """
    bundle, options = Path(plan.inputs["bundle"]), options_from(plan.inputs["options"])
    named = options_from({**plan.inputs["options"], "image": plan.inputs["image_name"]})
    if make_job(bundle, named).id != plan.name:
        raise UsageError(
            f"`{bundle}` is not the bundle that was planned: it has changed since", hint="Plan again."
        )
    return run(bundle, options, say=say, aws=aws, job_id=plan.name, **timing)
