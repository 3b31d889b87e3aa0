"""The machine image and the network that instances use, looked up before anything is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from neuron_port.deploy.aws import Aws
from neuron_port.deploy.errors import DeployError


@dataclass(frozen=True, kw_only=True)
class Ground:
    """An image id, a VPC and, when one was asked for, a subnet."""

    image: str
    vpc: str
    subnet: str | None


def find_ground(aws: Aws, *, image: str, subnet: str | None) -> Ground:
    """Resolve an image (an id, or the name of a public SSM parameter) and the VPC.

    Raises: AwsError (no such image parameter in the region), DeployError (no default VPC).
    """
    if not image.startswith("ami-"):
        found = aws.call(
            "ssm", "get_parameter", f"find the machine image `{image}` in {aws.region}", Name=image
        )
        image = found["Parameter"]["Value"]
    if subnet is not None:
        subnets = aws.call("ec2", "describe_subnets", f"look at the subnet {subnet}", SubnetIds=[subnet])[
            "Subnets"
        ]
        return Ground(image=image, vpc=subnets[0]["VpcId"], subnet=subnet)
    defaults = [{"Name": "is-default", "Values": ["true"]}]
    vpcs = aws.call("ec2", "describe_vpcs", "find the default VPC", Filters=defaults)["Vpcs"]
    if not vpcs:
        raise DeployError(
            f"The account has no default VPC in {aws.region}",
            hint="Name a subnet with internet access: --subnet ID.",
        )
    return Ground(image=image, vpc=vpcs[0]["VpcId"], subnet=None)


def default_subnet(aws: Aws, instance_type: str) -> str:
    """A default subnet in a zone that offers the instance type.

    Raises: DeployError when there is none.
    """
    subnets = default_subnets(aws, instance_type)
    if not subnets:
        raise DeployError(
            f"No zone with a default subnet in {aws.region} offers {instance_type}",
            hint="Name a subnet (--subnet), another instance type, or another region.",
        )
    return subnets[0]


def check_offered(aws: Aws, instance_types: Iterable[str]) -> None:
    """Stop before anything is made when the region does not have an instance type.

    Raises: DeployError naming it.
    """
    for name in dict.fromkeys(instance_types):
        if not _zones(aws, name):
            raise DeployError(
                f"{aws.region} does not offer {name}",
                hint="Set AWS_REGION to a region that does (with a bucket there), or name another instance type.",
            )


def default_subnets(aws: Aws, instance_type: str) -> list[str]:
    """Default subnets in the zones that offer the type."""
    zones = _zones(aws, instance_type)
    pages = aws.pages(
        "ec2", "describe_subnets", "list subnets", Filters=[{"Name": "default-for-az", "Values": ["true"]}]
    )
    subnets = [entry for page in pages for entry in page["Subnets"]]
    return [entry["SubnetId"] for entry in subnets if entry["AvailabilityZone"] in zones]


def _zones(aws: Aws, instance_type: str) -> set[str]:
    """Zones of the region that offer the type."""
    offered = aws.pages(
        "ec2", "describe_instance_type_offerings", "ask which zones offer it", LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": [instance_type]}],
    )  # fmt: skip
    return {entry["Location"] for page in offered for entry in page["InstanceTypeOfferings"]}
