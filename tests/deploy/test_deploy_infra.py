"""infra/: templates lint clean and deploy through moto, the manifest fits Kubernetes' schemas, scripts run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import kubernetes_validate
import pytest
import yaml
from stand_in_region import BUCKET, Region
from test_deploy_plan import apply

from neuron_port.build.finishing.files import sha256_of
from neuron_port.deploy import stacks
from neuron_port.deploy.archive import files_below, pack
from neuron_port.deploy.aws import Aws
from neuron_port.deploy.job import NRTPY, Options, make_job
from neuron_port.deploy.kubernetes import kubernetes_manifest
from neuron_port.deploy.locations import Location
from neuron_port.deploy.standing import plan_endpoint
from neuron_port.deploy.user_data import LARGEST_BYTES, phase_script
from neuron_port.errors import UsageError
from neuron_port.registry import data_folder

INFRA = data_folder("infra")
TEMPLATES = sorted(path.stem for path in INFRA.glob("*.yaml"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_lint_clean(name: str) -> None:
    """cfn-lint has nothing to say, warnings included."""
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), str(INFRA / f"{name}.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_broken_template_is_not_clean(tmp_path: Path) -> None:
    """The same check names a property that does not exist."""
    broken = (INFRA / "build_job.yaml").read_text().replace("HttpTokens: required", "HttpToken: required")
    (tmp_path / "broken.yaml").write_text(broken)
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), str(tmp_path / "broken.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "HttpToken" in done.stdout


def job_stack(region: Region) -> dict[str, str]:
    ec2 = boto3.client("ec2")
    image = ec2.describe_images(Owners=["self"])["Images"][0]["ImageId"]
    parameters = {"Bucket": BUCKET, "Prefix": "builds/job", "Image": image,
                  "Vpc": ec2.describe_vpcs()["Vpcs"][0]["VpcId"]}  # fmt: skip
    return stacks.create(
        Aws(), "job", body=stacks.template("build_job"), parameters=parameters, tags={}, sleep=region.sleep
    )


def statements(role: str) -> dict[str, Any]:
    iam = boto3.client("iam")
    name = iam.list_role_policies(RoleName=role)["PolicyNames"][0]
    document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    document = yaml.safe_load(document) if isinstance(document, str) else document  # moto keeps Python's text
    return {each["Sid"]: each for each in document["Statement"]}


def test_a_job_reaches_its_own_prefix_only(region: Region) -> None:
    """The role that moto made from the template: read the job, write its results, list nothing else."""
    found = statements(job_stack(region)["Role"])
    home = f"arn:aws:s3:::{BUCKET}/builds/job"
    assert found["ReadTheJob"]["Resource"] == f"{home}/*"
    assert found["WriteItsResults"]["Resource"] == [f"{home}/compile/*", f"{home}/verify/*"]
    assert found["ListTheJob"]["Condition"] == {"StringLike": {"s3:prefix": "builds/job/*"}}
    actions = {
        action
        for each in found.values()
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    }
    assert not any(action.endswith("*") for action in actions)


def test_a_job_template_ends_instances_and_hides_credentials(region: Region) -> None:
    """Shutdown terminates, IMDSv2 is required, the disk is encrypted and goes, nothing comes in."""
    template = job_stack(region)["LaunchTemplate"]
    ec2 = boto3.client("ec2")
    data = ec2.describe_launch_template_versions(LaunchTemplateId=template)["LaunchTemplateVersions"][0][
        "LaunchTemplateData"
    ]
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["BlockDeviceMappings"][0]["Ebs"]["DeleteOnTermination"] in (True, "true")
    group = ec2.describe_security_groups(GroupIds=data["SecurityGroupIds"])["SecurityGroups"][0]
    assert group["IpPermissions"] == []


def test_user_data_fits(bundle: Path, remote: Location) -> None:
    """EC2 takes 16 KiB of user data; names with every allowed character survive bash."""
    job = make_job(bundle, Options(target="trn2", remote=remote))
    for phase in job.phases:
        script = phase_script(job, phase, region="us-east-1", attempt=1, minutes=60)
        assert len(script.encode()) <= LARGEST_BYTES
        assert not re.search(r"@[A-Z]+@", script)
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


# --------------------------------------------------------------------------------------- the serving instance


SERVING_FAKES = {
    # `python3 -m venv FOLDER` makes a pip that notes what it is asked to install.
    "python3": """mkdir -p "$3/bin"
printf '#!/bin/sh\\necho "$@" >> "%s/pip"\\n' "$NEURON_PORT_ROOT" > "$3/bin/pip"
chmod +x "$3/bin/pip" """,
    "systemctl": 'echo "$@" >> "$NEURON_PORT_ROOT/systemctl"',
    "useradd": "true",
    "chown": "true",
}


def boot_server(region: Region, identity: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run a serving instance's user data here, with stand-ins for what changes the machine."""
    root, units, tools = region.home / "server", region.home / "units", region.home / "server_bin"
    for folder in (root, units, tools):
        folder.mkdir()
    for name, command in SERVING_FAKES.items():
        (tools / name).write_text(f"#!/bin/sh\n{command}\n")
        (tools / name).chmod(0o755)
    variables = region.variables(root) | {"NEURON_PORT_ROOT": str(root), "NEURON_PORT_UNITS": str(units)}
    variables["PATH"] = f"{tools}:{variables['PATH']}"
    done = subprocess.run(
        ["bash"], input=region.user_data(identity), env=variables, capture_output=True, text=True
    )
    return root, done


def test_a_serving_instance_sets_itself_up(region: Region, compiled: Path) -> None:
    """Its own user data, taken from moto: bundle checked and unpacked, a key made, a unit that serves on the chip."""
    models = Location(bucket=BUCKET, prefix="endpoints")
    plan = plan_endpoint(Aws(), compiled, models, instance_type="inf2.xlarge", name="tiny")
    root, done = boot_server(region, apply(region, plan)["Instance"])
    assert done.returncode == 0, done.stderr
    assert sha256_of(root / "bundle" / "neuron_port.json") == sha256_of(compiled / "neuron_port.json")
    unit = (region.home / "units" / "neuron-port.service").read_text()
    assert f"serve {root}/bundle --backend neuron --host 0.0.0.0 --port 8000" in unit
    key = (root / "key.env").read_text().strip()
    assert re.fullmatch(r"NEURON_PORT_API_KEY=[A-Za-z0-9_-]{32}", key)
    assert (root / "key.env").stat().st_mode & 0o077 == 0
    assert NRTPY in (root / "pip").read_text()
    assert "enable --now neuron-port" in (root / "systemctl").read_text()


def test_a_serving_instance_refuses_another_bundle(region: Region, compiled: Path) -> None:
    """An archive that is not the planned one is not served."""
    models = Location(bucket=BUCKET, prefix="endpoints")
    plan = plan_endpoint(Aws(), compiled, models, instance_type="inf2.xlarge", name="tiny")
    outputs = apply(region, plan)
    boto3.client("s3").put_object(Bucket=BUCKET, Key="endpoints/tiny/bundle.tar.gz", Body=b"another")
    root, done = boot_server(region, outputs["Instance"])
    assert done.returncode != 0
    assert not (root / "systemctl").exists()


# ------------------------------------------------------------------------------------------------ Kubernetes


def test_storage_is_private() -> None:
    """What moto does not make is in the template: no public access, TLS only, half uploads go."""
    text = (INFRA / "build_storage.yaml").read_text()
    for name in ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"):
        assert f"{name}: true" in text
    assert 'aws:SecureTransport: "false"' in text
    assert "AbortIncompleteMultipartUpload" in text


def documents(bundle: Path) -> list[dict[str, Any]]:
    text = kubernetes_manifest(bundle, container="registry/model:1", name="tiny", devices=2, replicas=3)
    return list(yaml.safe_load_all(text))


def test_the_manifest_fits_the_schemas(region: Region, compiled: Path) -> None:
    """Every document is valid and strict for Kubernetes 1.30 and the newest known; an unknown field is not."""
    found = documents(compiled)
    assert [each["kind"] for each in found] == ["Deployment", "Service"]
    for document in found:
        for version in ("1.30", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)
    found[0]["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found[0], kubernetes_validate.latest_version(), strict=True)


def test_the_manifest_asks_for_chips_and_drains(region: Region, compiled: Path) -> None:
    """Chips through the device plugin, probes on /health, and more time to end than draining takes."""
    pod = documents(compiled)[0]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["aws.amazon.com/neuron"] == "2"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"
    drain = int(container["args"][container["args"].index("--drain-seconds") + 1])
    assert (
        pod["terminationGracePeriodSeconds"] > drain + container["lifecycle"]["preStop"]["sleep"]["seconds"]
    )
    assert pod["tolerations"][0]["key"] == "aws.amazon.com/neuron"


def test_a_name_that_kubernetes_refuses(region: Region, compiled: Path) -> None:
    """Names go into YAML: what is no DNS label is refused."""
    with pytest.raises(UsageError, match="Not a name for Kubernetes"):
        kubernetes_manifest(compiled, container="image", name="a: b", devices=1, replicas=1)


# ------------------------------------------------------------------------------------------------- container


def test_the_container_is_built_on_the_public_image() -> None:
    """FROM names AWS's image with its exact tag, and every file that is copied is in the repository."""
    text = (INFRA / "Dockerfile").read_text()
    froms = re.findall(r"^FROM (\S+)", text, re.M)
    tag = "jax-training-neuronx:0.10.0-neuronx-py313-sdk2.32.0-ubuntu24.04"
    assert froms == [f"public.ecr.aws/neuron/{tag}", "serve"]
    for line in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+)$", text, re.M):
        for source in line.split()[:-1]:
            assert (INFRA.parent / source).exists(), source
    assert NRTPY in text


@pytest.mark.parametrize(
    ("arguments", "model", "said"),
    [
        (["serve"], True, "sagemaker"),
        (["serve"], False, "neuron-port serve"),
        (["serve", "/opt/neuron-port/bundle"], True, "neuron-port serve /opt/neuron-port/bundle"),
    ],
)
def test_the_containers_entry(tmp_path: Path, arguments: list[str], model: bool, said: str) -> None:
    """`serve` alone with a SageMaker model serves that; everything else is neuron-port's."""
    tools = tmp_path / "serve" / "bin"
    tools.mkdir(parents=True)
    for name, command in (("python", "echo sagemaker"), ("neuron-port", 'echo neuron-port "$@"')):
        (tools / name).write_text(f"#!/bin/sh\n{command}\n")
        (tools / name).chmod(0o755)
    if model:
        (tmp_path / "model" / "code").mkdir(parents=True)
        (tmp_path / "model" / "code" / "inference.py").touch()
    variables = {
        "PATH": os.environ["PATH"],
        "NEURON_PORT_ROOT": str(tmp_path),
        "SM_MODEL_DIR": str(tmp_path / "model"),
    }
    done = subprocess.run(
        ["sh", str(INFRA / "container.sh"), *arguments],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == said


def test_archives_have_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    """Packing twice gives equal archives: that is what lets an upload go on."""
    names = files_below(bundle)
    pack(bundle, names, tmp_path / "a.tar.gz")
    os.utime(bundle / "neuron_port.json", (0, 0))
    pack(bundle, names, tmp_path / "b.tar.gz")
    assert sha256_of(tmp_path / "a.tar.gz") == sha256_of(tmp_path / "b.tar.gz")
    assert json.loads((bundle / "neuron_port.json").read_text())
