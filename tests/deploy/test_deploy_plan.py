"""Plans: every resource with its price, nothing made; applying makes exactly that; destroying undoes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from stand_in_region import BUCKET, NOTHING, Region

from neuron_port.build import load_manifest
from neuron_port.deploy.apply import apply_plan
from neuron_port.deploy.aws import Aws
from neuron_port.deploy.build_plan import plan_build
from neuron_port.deploy.errors import AwsError, DeployError
from neuron_port.deploy.inventory import destroy, inventory
from neuron_port.deploy.job import Options
from neuron_port.deploy.locations import Location, parse_location
from neuron_port.deploy.plan import read_plan
from neuron_port.deploy.standing import plan_endpoint, plan_nodes, plan_storage
from neuron_port.errors import UsageError


def apply(region: Region, plan: Any) -> dict[str, Any]:
    return apply_plan(Aws(), plan, say=region.said.append, clock=region.clock, sleep=region.sleep)


def written(plan: Any, folder: Path) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(plan.document()))
    return path


def options(region: Region, remote: Location, **changes: Any) -> Options:
    return Options(**{"target": "inf2", "remote": remote, "finish_arguments": region.device_nodes} | changes)


# ---------------------------------------------------------------------------------------------------- build


def test_a_plan_names_everything_and_makes_nothing(region: Region, bundle: Path, remote: Location) -> None:
    """Both instances with price, source and hard end, the role, the network, the storage; and the most it can cost."""
    plan = plan_build(Aws(), bundle, options(region, remote))
    text = plan.text()
    for word in (
        "r7i.xlarge",
        "inf2.xlarge",
        "$0.2646/h",
        "$0.7582/h",
        "security group",
        "role",
        "S3 objects",
        "gp3",
    ):
        assert word in text
    assert plan.usd_at_most == pytest.approx(2 * (0.2646 + 0.7582), abs=0.1)
    assert region.left() == NOTHING
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket=BUCKET)


def test_applying_a_plan_builds_what_was_planned(
    region: Region, bundle: Path, remote: Location, tmp_path: Path
) -> None:
    """A plan read back from its file builds the bundle under the planned name, on the planned image."""
    plan = read_plan(written(plan_build(Aws(), bundle, options(region, remote, verify=False)), tmp_path))
    result = apply(region, plan)
    assert (result["job"], result["state"]) == (plan.name, "compiled")
    image = boto3.client("ec2").describe_images(Owners=["self"])["Images"][0]["ImageId"]
    assert [each["ImageId"] for each in region.instances()] == [image]
    assert region.left() == NOTHING


def test_another_bundle_is_refused(region: Region, bundle: Path, remote: Location, tmp_path: Path) -> None:
    """A bundle that changed since it was planned is not built under the old plan."""
    plan = plan_build(Aws(), bundle, options(region, remote))
    manifest = json.loads((bundle / "neuron_port.json").read_text())
    manifest["graphs"][0]["hlo_sha256"] = "0" * 64
    (bundle / "neuron_port.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="is not the bundle that was planned"):
        apply(region, plan)
    assert region.left() == NOTHING


def test_a_changed_plan_is_refused(region: Region, bundle: Path, remote: Location, tmp_path: Path) -> None:
    """A plan that was edited by hand is not carried out."""
    path = written(plan_build(Aws(), bundle, options(region, remote)), tmp_path)
    path.write_text(path.read_text().replace("inf2.xlarge", "inf2.48xlarge"))
    with pytest.raises(UsageError, match="was changed after it was made"):
        read_plan(path)


def test_a_plan_for_another_account_is_refused(region: Region, bundle: Path, remote: Location) -> None:
    """Credentials of another account do not carry out a plan."""
    plan = plan_build(Aws(), bundle, options(region, remote))
    object.__setattr__(plan, "account", "999999999999")
    with pytest.raises(UsageError, match="The plan is for account 999999999999"):
        apply(region, plan)


def test_prices_of_the_user_count(region: Region, bundle: Path, remote: Location) -> None:
    """--price wins over the table, and the plan says whose price it is."""
    plan = plan_build(
        Aws(),
        bundle,
        options(region, remote, verify=False, compile_instance="r7i.xlarge", prices={"r7i.xlarge": 0.5}),
    )
    assert "$0.5000/h" in plan.text()
    assert "given by you" in plan.text()


def test_weights_that_are_not_there_cannot_be_verified(
    region: Region, bundle: Path, remote: Location
) -> None:
    """A bundle of random weights can be compiled, not verified: that is said before anything is made."""
    manifest = json.loads((bundle / "neuron_port.json").read_text())
    manifest["weights"]["random"] = True
    (bundle / "neuron_port.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="random weights, which are not stored: a device cannot check it"):
        plan_build(Aws(), bundle, options(region, remote))
    assert plan_build(Aws(), bundle, options(region, remote, verify=False)).kind == "build"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verify_instance": "trn2.48xlarge"}, "does not run what is compiled for inf2"),
        ({"verify_instance": "trn2.4xlarge"}, "Unknown instance type"),
        ({"timeout_minutes": 1}, "must be 5 or more"),
        ({"max_usd": 0}, "must be above 0"),
    ],
)
def test_options_that_cannot_be(
    region: Region, bundle: Path, remote: Location, changes: dict[str, Any], said: str
) -> None:
    """Each is refused by name before AWS is asked for anything."""
    with pytest.raises(UsageError, match=said):
        plan_build(Aws(), bundle, options(region, remote, **changes))


@pytest.mark.parametrize(
    "text", ["bucket/prefix", "s3://", "s3://Bucket/x", "s3://bucket/a//b", "s3://bucket/a b", "s3://b..d/x"]
)
def test_locations_that_cannot_be(text: str) -> None:
    """What is no bucket with a plain prefix is refused: the text goes into scripts and policies."""
    with pytest.raises(UsageError):
        parse_location(text)


# -------------------------------------------------------------------------------------------------- storage


@pytest.mark.filterwarnings("ignore:Tried to parse")  # moto makes the bucket and leaves out its policy
def test_storage_is_planned_made_and_kept(region: Region, tmp_path: Path) -> None:
    """The bucket is encrypted; applying twice is harmless."""
    plan = plan_storage(Aws(), Location(bucket="my-models", prefix="builds"))
    assert "my-models" in plan.text()
    assert region.left() == NOTHING
    assert apply(region, plan)["Bucket"] == "my-models"
    assert apply(region, plan)["Bucket"] == "my-models"
    rules = boto3.client("s3").get_bucket_encryption(Bucket="my-models")["ServerSideEncryptionConfiguration"][
        "Rules"
    ]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


# ------------------------------------------------------------------------------------------------- endpoint


def test_an_endpoint_is_planned_made_listed_and_destroyed(
    region: Region, compiled: Path, remote: Location
) -> None:
    """From the plan to nothing left, through the real template in moto."""
    models = Location(bucket=BUCKET, prefix="endpoints")
    plan = plan_endpoint(Aws(), compiled, models, instance_type="inf2.xlarge", name="tiny")
    assert "closed: nothing comes in" in plan.text()
    assert "$0.7582/h" in plan.text()
    assert "per month, until it is destroyed" in plan.text()
    assert region.left() == NOTHING
    outputs = apply(region, plan)
    running = region.instances("pending", "running")
    assert [each["InstanceId"] for each in running] == [outputs["Instance"]]
    listed = inventory(Aws(), region.now)
    assert {item.kind for item in listed} == {"endpoint"}
    assert all(item.deadline is None for item in listed)
    destroy(Aws(), "tiny", say=region.said.append, purge=True, now=region.now)
    assert region.left() == NOTHING
    left = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="endpoints/")
    assert "Contents" not in left


@pytest.mark.parametrize(("allow", "rules"), [("", []), ("203.0.113.0/24", ["203.0.113.0/24"])])
def test_an_endpoint_is_closed_unless_a_cidr_is_given(
    region: Region, compiled: Path, allow: str, rules: list[str]
) -> None:
    """Only the CIDR that was given may come in, on the one port."""
    models = Location(bucket=BUCKET, prefix="endpoints")
    plan = plan_endpoint(Aws(), compiled, models, instance_type="inf2.xlarge", name="tiny", allow=allow)
    apply(region, plan)
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    ours = next(group for group in groups if "endpoint" in group["Description"])
    assert [each["CidrIp"] for rule in ours["IpPermissions"] for each in rule["IpRanges"]] == rules
    assert {rule["FromPort"] for rule in ours["IpPermissions"]} <= {8000}


def test_an_endpoint_that_stands_is_not_taken_for_another(region: Region, compiled: Path) -> None:
    """The same plan again is harmless; another plan under the same name is refused, and the first one stays."""
    models = Location(bucket=BUCKET, prefix="endpoints")
    given = {"remote": models, "instance_type": "inf2.xlarge", "name": "tiny"}
    first = apply(region, plan_endpoint(Aws(), compiled, **given))
    assert apply(region, plan_endpoint(Aws(), compiled, **given)) == first
    with pytest.raises(UsageError, match="`neuron-port-tiny` stands already, with another Allow"):
        apply(region, plan_endpoint(Aws(), compiled, allow="203.0.113.0/24", **given))
    assert [each["InstanceId"] for each in region.instances("pending", "running")] == [first["Instance"]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../tiny"}, "Not a name: `../tiny`"),
        ({"name": "Tiny"}, "Not a name: `Tiny`"),
        ({"allow": "203.0.113.0/33"}, "Not an IPv4 range"),
        ({"allow": "203.0.113.7/24"}, "Not an IPv4 range"),
    ],
)
def test_endpoints_that_cannot_be(region: Region, compiled: Path, changes: dict[str, str], said: str) -> None:
    """A name or a range that AWS would refuse later is refused before anything is uploaded."""
    given = {"instance_type": "inf2.xlarge", "name": "tiny"} | changes
    with pytest.raises(UsageError, match=said):
        plan_endpoint(Aws(), compiled, Location(bucket=BUCKET, prefix="endpoints"), **given)


def test_a_bundle_of_several_ranks_is_no_endpoint(region: Region, compiled: Path) -> None:
    """What the server would refuse on the instance is refused before there is one."""
    manifest = json.loads((compiled / "neuron_port.json").read_text())
    manifest["target"]["tp"] = 2
    (compiled / "neuron_port.json").write_text(json.dumps(manifest))
    models = Location(bucket=BUCKET, prefix="endpoints")
    with pytest.raises(UsageError, match="is split over 2 ranks"):
        plan_endpoint(Aws(), compiled, models, instance_type="inf2.xlarge", name="tiny")


def test_a_portable_bundle_is_no_endpoint(region: Region, bundle: Path) -> None:
    """What is not compiled cannot be served on a chip; the command that compiles it is named."""
    models = Location(bucket=BUCKET, prefix="endpoints")
    with pytest.raises(UsageError, match="is not compiled") as caught:
        plan_endpoint(Aws(), bundle, models, instance_type="inf2.xlarge", name="tiny")
    assert "neuron-port build" in str(caught.value.hint)


def test_an_endpoint_on_another_chip_is_refused(region: Region, compiled: Path) -> None:
    """NEFFs for inf2 do not run on trn2."""
    models = Location(bucket=BUCKET, prefix="endpoints")
    assert load_manifest(compiled)["build"]["target"] == "inf2"
    with pytest.raises(UsageError, match=r"trn2\.48xlarge cannot run this bundle: it is compiled for inf2"):
        plan_endpoint(Aws(), compiled, models, instance_type="trn2.48xlarge", name="tiny")


# --------------------------------------------------------------------------------------------------- nodes


def test_nodes_need_a_cluster(region: Region) -> None:
    """A node group for a cluster that is not there is refused in AWS's words."""
    with pytest.raises(AwsError, match="Cannot look at the EKS cluster `nowhere`"):
        plan_nodes(
            Aws(),
            cluster="nowhere",
            name="chips",
            subnets=("subnet-1",),
            instance_type="inf2.xlarge",
            nodes=1,
        )


def test_nodes_are_planned_with_their_price(region: Region) -> None:
    """The price is that of all nodes; the cluster's own is named."""
    role = "arn:aws:iam::123456789012:role/eks"
    boto3.client("eks").create_cluster(name="here", roleArn=role, resourcesVpcConfig={"subnetIds": []})
    plan = plan_nodes(
        Aws(), cluster="here", name="chips", subnets=("subnet-1",), instance_type="inf2.xlarge", nodes=2
    )
    assert "$1.5164/h" in plan.text()
    assert "exists already" in plan.text()


@pytest.mark.filterwarnings("ignore:Tried to parse")  # moto makes role and launch template, and no node group
def test_nodes_are_made_and_destroyed(region: Region) -> None:
    """The template deploys through moto, as far as moto goes, and leaves nothing."""
    role = "arn:aws:iam::123456789012:role/eks"
    boto3.client("eks").create_cluster(name="here", roleArn=role, resourcesVpcConfig={"subnetIds": []})
    plan = plan_nodes(
        Aws(), cluster="here", name="chips", subnets=("subnet-1",), instance_type="inf2.xlarge", nodes=1
    )
    apply(region, plan)
    made = boto3.client("cloudformation").describe_stacks(StackName="neuron-port-chips")["Stacks"][0]
    assert made["StackStatus"] == "CREATE_COMPLETE"
    assert len(boto3.client("iam").list_roles()["Roles"]) == 1
    destroy(Aws(), "chips", say=region.said.append, now=region.now)
    assert region.left() == NOTHING


def test_a_region_without_the_chip(region: Region, bundle: Path, remote: Location) -> None:
    """A region that does not offer the instance type is refused before anything is made."""
    with pytest.raises(DeployError, match=r"us-east-1 does not offer trn2\.3xlarge"):
        plan_build(Aws(), bundle, options(region, remote, target="trn2"))
