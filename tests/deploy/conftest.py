"""moto's server for the session, a clean region and a bundle for each test."""

from __future__ import annotations

import logging
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"  # thousands; read when moto is imported

import boto3
import pytest
from moto.server import ThreadedMotoServer
from moto.ssm.models import Parameter, ssm_backends
from stand_in_region import ACCOUNT, BUCKET, Region, build_helper, quiet_environment

from neuron_port.build import write_bundle
from neuron_port.deploy import job as jobs
from neuron_port.deploy.locations import Location


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def region(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Region:
    """An empty account with one bucket and a Neuron machine image."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in quiet_environment().items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with urllib.request.urlopen(
        urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
    ) as answer:
        answer.read()
    boto3.setup_default_session()
    publish_image(jobs.IMAGE)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return Region(home=tmp_path / "region", endpoint=endpoint)


def publish_image(name: str) -> None:
    """What AWS publishes and moto does not know: the SSM parameter that names the Neuron image."""
    image = boto3.client("ec2").register_image(Name="Deep Learning AMI Neuron", RootDeviceName="/dev/sda1")[
        "ImageId"
    ]
    ssm_backends[ACCOUNT]["us-east-1"]._parameters[name] = [
        Parameter(account_id=ACCOUNT, name=name, value=image, parameter_type="String", description="",
                  allowed_pattern=None, keyid=None, last_modified_date=0, version=1, data_type="text",
                  source_result=None)
    ]  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of two graphs and one stored weight, for trn2."""
    arguments = build_helper("tiny_bundle").make_arguments(tmp_path)
    return write_bundle(tmp_path / "bundle", **arguments).folder


@pytest.fixture
def remote() -> Location:
    return Location(bucket=BUCKET, prefix="builds")


@pytest.fixture(scope="session")
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    arguments = build_helper("tiny_bundle").make_arguments(folder)
    made = write_bundle(folder / "bundle", **arguments).folder
    done = build_helper("stand_in_instance").Instance(folder / "instance", made).finish(target="inf2")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def compiled(_compiled_once: Path, tmp_path: Path) -> Path:
    """A bundle that is compiled for inf2."""
    return Path(shutil.copytree(_compiled_once, tmp_path / "compiled"))
