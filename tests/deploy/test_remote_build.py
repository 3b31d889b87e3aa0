"""The remote build end to end against moto's server: the instances' own scripts run, and finish.py with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import boto3
import pytest
from stand_in_region import BUCKET, NOTHING, Region, build

from neuron_port.build import load_manifest, verify_files
from neuron_port.deploy.locations import Location


def objects() -> set[str]:
    found = boto3.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return {each["Key"].split("/", 2)[-1] for each in found}


def test_a_bundle_is_compiled_on_an_instance_and_comes_home(
    region: Region, bundle: Path, remote: Location
) -> None:
    """Upload, the instance's own script with finish.py, results checked and brought home, nothing left."""
    result = build(region, bundle, remote)
    assert (result.state, result.reused) == ("compiled", False), region.booted
    assert load_manifest(bundle)["state"] == "compiled"
    assert verify_files(bundle) == []
    assert (bundle / "neff" / "trn2" / "prefill_b1_s2.neff").is_file()
    assert region.left() == NOTHING
    assert {
        "job.json",
        "bundle.tar.gz",
        "compile/status.json",
        "compile/log.txt",
        "compile/out.tar.gz",
    } <= objects()


def test_the_instance_ends_itself(region: Region, bundle: Path, remote: Location) -> None:
    """The first thing that it does is to set its own end, the last to shut down."""
    build(region, bundle, remote, timeout_minutes=45)
    assert region.booted[0]["shutdown"] == ["-P +45", "-P now"]


def test_a_device_verifies_what_a_cpu_instance_compiled(
    region: Region, bundle: Path, remote: Location
) -> None:
    """Two instances: the second fetches NEFFs and weights, compiles nothing, and runs them."""
    result = build(region, bundle, remote, verify=True, target="inf2")
    assert result.state == "device-verified", [each["output"][-2000:] for each in region.booted]
    assert len(region.booted) == 2
    assert sorted(region.compiled) == ["decode_b1_t3", "prefill_b1_s2"]
    types = [each["InstanceType"] for each in region.instances()]
    assert types == ["r7i.xlarge", "inf2.xlarge"]
    assert verify_files(bundle) == []
    assert region.left() == NOTHING


@pytest.mark.skipif(shutil.which("aws") is None, reason="AWS's own command is not installed")
def test_awss_own_command(region: Region, bundle: Path, remote: Location) -> None:
    """The instance's script works with AWS's command as it does with the stand-in."""
    command = shutil.which("aws")
    assert command is not None
    region.use_aws_command(command)
    assert build(region, bundle, remote).state == "compiled", region.booted
    assert region.left() == NOTHING
