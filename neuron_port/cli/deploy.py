"""`neuron-port deploy`: plans with prices, carrying them out, what is there, and its end."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from neuron_port.cli.remote_options import (
    UNCONFIRMED,
    build_options,
    ended_like_ctrl_c,
    price_option,
    remote_options,
    say,
)


@click.group()
def deploy() -> None:
    """From a bundle to an endpoint on AWS: plan, apply, list, destroy.

    `plan`, and `--dry-run` of the others, make and end nothing. Region and credentials are those of the AWS tools.
    """


@deploy.group()
def plan() -> None:
    """Show every resource and its price, and make nothing."""


def plan_options(function: Any) -> Any:
    """Where the plan goes."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON."),
        click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="For `deploy apply`."),
    ):  # fmt: skip
        function = option(function)
    return function


REMOTE = click.option(
    "--remote", required=True, metavar="s3://BUCKET/PREFIX", help="Where jobs and bundles live."
)
BUNDLE = click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))


@plan.command("build")
@BUNDLE
@click.option("--target", required=True, type=click.Choice(["inf2", "trn1", "trn2"]))
@REMOTE
@remote_options
@plan_options
def plan_build(
    bundle: Path, target: str, remote: str, as_json: bool, output: Path | None, **options: Any
) -> None:
    """Compile BUNDLE on a CPU instance and verify it on the target."""
    from neuron_port.deploy.aws import Aws
    from neuron_port.deploy.build_plan import plan_build as run

    show(run(Aws(), bundle, build_options(target, remote, **options)), as_json, output)


@plan.command("storage")
@REMOTE
@click.option(
    "--budget-email", default="", metavar="ADDRESS", help="Write here when the budget is nearly used up."
)
@click.option("--budget-usd", type=float, default=100.0, show_default=True, help="Monthly budget.")
@plan_options
def plan_storage(
    remote: str, budget_email: str, budget_usd: float, as_json: bool, output: Path | None
) -> None:
    """A private bucket for jobs and bundles."""
    from neuron_port.deploy.aws import Aws
    from neuron_port.deploy.locations import parse_location
    from neuron_port.deploy.standing import plan_storage as run

    found = run(Aws(), parse_location(remote), budget_email=budget_email, budget_usd=budget_usd)
    show(found, as_json, output)


@plan.command("endpoint")
@BUNDLE
@REMOTE
@click.option("--instance", "instance_type", required=True, metavar="TYPE", help="For example inf2.xlarge.")
@click.option(
    "--name", required=True, help="What the endpoint is called: lower-case letters, digits, hyphens."
)
@click.option("--allow", default="", metavar="CIDR", help="Who may call it.  [default: nobody]")
@click.option(
    "--package", help="What pip installs there, or a wheel.  [default: this version of neuron-port]"
)
@click.option(
    "--pip-index", default="", metavar="URL", help="The pip repository that the Neuron SDK's guide names."
)
@click.option("--image", help="Machine image: an id or a public SSM parameter.  [default: the Neuron DLAMI]")
@click.option("--subnet", metavar="ID", help="Start it here.  [default: a default subnet]")
@price_option
@plan_options
def plan_endpoint(bundle: Path, remote: str, as_json: bool, output: Path | None, **options: Any) -> None:
    """One EC2 instance that serves BUNDLE."""
    from neuron_port.deploy.aws import Aws
    from neuron_port.deploy.job import IMAGE
    from neuron_port.deploy.locations import parse_location
    from neuron_port.deploy.standing import plan_endpoint as run

    options["image"] = options["image"] or IMAGE
    show(run(Aws(), bundle, parse_location(remote), **options), as_json, output)


@plan.command("nodes")
@click.option("--cluster", required=True, help="An EKS cluster that exists.")
@click.option("--name", required=True, help="What the node group is called.")
@click.option("--subnet", "subnets", required=True, multiple=True, metavar="ID", help="Repeatable.")
@click.option("--instance", "instance_type", required=True, metavar="TYPE", help="For example inf2.xlarge.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True)
@price_option
@plan_options
def plan_nodes(as_json: bool, output: Path | None, **options: Any) -> None:
    """A group of EKS nodes with Neuron chips."""
    from neuron_port.deploy.aws import Aws
    from neuron_port.deploy.standing import plan_nodes as run

    show(run(Aws(), **options), as_json, output)


def show(found: Any, as_json: bool, output: Path | None) -> None:
    """Print a plan; with `output`, write it too."""
    if output is not None:
        output.write_text(json.dumps(found.document(), indent=2) + "\n", encoding="utf-8")
    click.echo(json.dumps(found.document(), indent=2) if as_json else found.text())
    if output is not None:
        say(f"Nothing was made. Carry it out: neuron-port deploy apply {output}")
    say(UNCONFIRMED)


@deploy.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show the plan once more, and make nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; with --dry-run the plan.")
def apply(plan_file: Path, dry_run: bool, as_json: bool) -> None:
    """Carry out PLAN, exactly as it was shown."""
    from neuron_port.deploy.apply import apply_plan
    from neuron_port.deploy.aws import Aws
    from neuron_port.deploy.plan import read_plan

    found = read_plan(plan_file)
    if dry_run:
        show(found, as_json, None)
        return
    say(found.text())
    say(UNCONFIRMED)
    with ended_like_ctrl_c():
        result = apply_plan(Aws(found.region), found, say=say)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            click.echo(f"{name}: {value}")


@deploy.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_items(as_json: bool) -> None:
    """List everything of ours in the region, by its tags: crashed runs and what is past its deadline too."""
    from neuron_port.deploy.aws import Aws
    from neuron_port.deploy.inventory import inventory
    from neuron_port.deploy.tags import stamp

    aws = Aws()
    items = inventory(aws, datetime.now(UTC))
    if as_json:
        click.echo(json.dumps([vars(item) for item in items], indent=2, default=stamp))
        return
    for item in items:
        click.echo(_line(item))
    if not items:
        say(f"Nothing of neuron-port in {aws.region}.")


def _line(item: Any) -> str:
    """One instance or stack for people."""
    from neuron_port.deploy.tags import stamp

    price = f"${item.usd_per_hour:.4f}/h, ${item.usd:.2f} so far" if item.usd_per_hour is not None else ""
    until = "stays until destroyed" if item.deadline is None else f"until {stamp(item.deadline)}"
    overdue = "  PAST ITS DEADLINE" if item.overdue else ""
    return f"{item.job}  {item.what} {item.id} ({item.detail})  {item.state}  {item.owner}  {until}  {price}{overdue}"


@deploy.command()
@click.argument("name", required=False)
@click.option("--overdue", is_flag=True, help="Everything that is past its deadline, whoever started it.")
@click.option("--purge", is_flag=True, help="Its files on S3 too.")
@click.option(
    "--remote", metavar="s3://BUCKET/PREFIX", help="With --purge: where the files of a job lie that is done."
)
@click.option("--dry-run", is_flag=True, help="Show what would be ended, and end nothing.")
def destroy(name: str | None, overdue: bool, purge: bool, remote: str | None, dry_run: bool) -> None:
    """End everything of NAME: instances, role, network; with --purge its files too. A bucket with files stays."""
    from neuron_port.deploy.aws import Aws
    from neuron_port.deploy.inventory import destroy as run
    from neuron_port.deploy.inventory import destroy_overdue, inventory, of_job
    from neuron_port.deploy.locations import parse_location

    if (name is None) is not overdue:
        raise click.UsageError("Give a NAME (see `neuron-port deploy list`), or --overdue")
    if (purge and overdue) or (remote is not None and not purge):
        raise click.UsageError("--remote goes with --purge, and --purge with a NAME")
    aws, now, place = Aws(), datetime.now(UTC), parse_location(remote) if remote else None
    if dry_run:
        found = (
            [item for item in inventory(aws, now) if item.overdue]
            if name is None
            else of_job(aws, name, now, or_files=place is not None)
        )
        for item in found:
            click.echo(_line(item))
        say("Nothing was ended.")
        return
    if name is None:
        removed = destroy_overdue(aws, say=say, now=now)
    else:
        removed = run(aws, name, say=say, purge=purge, remote=place, now=now)
    click.echo(f"removed: {removed}")


@deploy.command()
@BUNDLE
@click.option(
    "--container", required=True, metavar="IMAGE", help="The container image, from infra/Dockerfile."
)
@click.option("--name", required=True, help="What the service is called.")
@click.option(
    "--devices", type=click.IntRange(min=1), default=1, show_default=True, help="Neuron chips per pod."
)
@click.option("--replicas", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="  [default: stdout]")
def manifest(bundle: Path, output: Path | None, **options: Any) -> None:
    """Write the Kubernetes manifest that serves BUNDLE on EKS."""
    from neuron_port.deploy.kubernetes import kubernetes_manifest

    text = kubernetes_manifest(bundle, **options)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        say(f"Apply it: kubectl apply -f {output}")
