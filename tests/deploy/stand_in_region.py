"""A region of AWS on this machine: moto's server over HTTP, and instances that really run their user data here.

An instance boots when somebody waits (`sleep`): its user data is fetched from moto's EC2 and run by bash, with
stand-ins for the aws command, neuronx-cc, nrtpy and `shutdown` on PATH. Time is the test's own.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3

from neuron_port.deploy.job import Options
from neuron_port.deploy.locations import Location
from neuron_port.deploy.remote_build import Result, run

ACCOUNT = "123456789012"
BUCKET = "neuron-port-tests"
FAKES = Path(__file__).parent / "fakes"
BUILD_FAKES = Path(__file__).parents[1] / "build" / "fakes"


@dataclass
class Region:
    """Instances, time and faults. `before_boot(identity)` may return False to keep an instance from booting."""

    home: Path
    endpoint: str
    now: datetime = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    environment: dict[str, str] = field(default_factory=dict)
    fail: dict[str, str] = field(default_factory=dict)
    before_boot: Callable[[str], bool] = lambda identity: True
    booted: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    haste: int = 1  # how many times faster than asked time passes

    def __post_init__(self) -> None:
        self.ec2 = boto3.client("ec2")
        bin_folder = self.home / "bin"
        bin_folder.mkdir(parents=True)
        for name, command in {
            "aws": f'exec {sys.executable} -S {FAKES / "aws.py"} "$@"',
            "neuronx-cc": f'exec {sys.executable} -S {BUILD_FAKES / "neuronx_cc.py"} "$@"',
            "shutdown": 'echo "$@" >> "$NEURON_PORT_ROOT/shutdown"',
            "python3": f'exec {sys.executable} "$@"',
            "nrtpy-python": f'PYTHONPATH={BUILD_FAKES / "nrtpy_environment"} exec {sys.executable} "$@"',
        }.items():
            (bin_folder / name).write_text(f"#!/bin/sh\n{command}\n")
            (bin_folder / name).chmod(0o755)

    def use_aws_command(self, path: str) -> None:
        """Give instances AWS's own command in place of the stand-in."""
        keys = "AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing"
        (self.home / "bin" / "aws").write_text(
            f'#!/bin/sh\nPATH="{os.environ["PATH"]}" {keys} exec {path} "$@"\n'
        )

    # ------------------------------------------------------------------------------------- time and waiting

    def clock(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Time passes, and instances that were ordered boot and do their work."""
        self.now += timedelta(seconds=seconds * self.haste)
        for instance in self.instances("pending", "running"):
            identity = instance["InstanceId"]
            if identity not in [each["id"] for each in self.booted] and self.before_boot(identity):
                self.boot(identity)

    # ------------------------------------------------------------------------------------------- instances

    def instances(self, *states: str) -> list[dict[str, Any]]:
        groups = self.ec2.describe_instances()["Reservations"]
        found = [instance for group in groups for instance in group["Instances"]]
        return [each for each in found if not states or each["State"]["Name"] in states]

    def user_data(self, identity: str) -> str:
        answer = self.ec2.describe_instance_attribute(InstanceId=identity, Attribute="userData")
        return base64.b64decode(answer["UserData"]["Value"]).decode()

    def boot(self, identity: str) -> None:
        """Run an instance's user data to its end; when it shuts down, moto terminates it."""
        root = self.home / identity
        root.mkdir()
        self._plug_devices(identity)
        (root / "user_data.sh").write_text(self.user_data(identity))
        record: dict[str, Any] = {"id": identity}
        self.booted.append(record)
        done = subprocess.run(
            ["bash", str(root / "user_data.sh")], env=self.variables(root), capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        record |= {
            "output": done.stdout + done.stderr,
            "shutdown": (root / "shutdown").read_text().splitlines(),
        }
        if "-P now" in record["shutdown"]:
            self.ec2.terminate_instances(InstanceIds=[identity])

    def _plug_devices(self, identity: str) -> None:
        """Instances with a Neuron chip have a device node, the others have none."""
        kind = next(each["InstanceType"] for each in self.instances() if each["InstanceId"] == identity)
        node = self.home / "devices" / "neuron0"
        node.parent.mkdir(exist_ok=True)
        node.touch()
        if not kind.startswith(("inf", "trn")):
            node.unlink()

    @property
    def device_nodes(self) -> tuple[str, str]:
        return "--device-nodes", f"{self.home}/devices/neuron*"

    def variables(self, root: Path) -> dict[str, str]:
        steer = {"version": "2.27.5334.0", "fail": self.fail, "io": str(root / "bundle" / "graphs"),
                 "calls": str(self.home / "calls")}  # fmt: skip
        return {
            "PATH": f"{self.home / 'bin'}:/usr/bin:/bin", "HOME": str(root), "NEURON_PORT_ROOT": str(root),
            "AWS_ENDPOINT_URL": self.endpoint, "FAKE_CC": json.dumps(steer), "NEURON_PORT_PULSE_SECONDS": "0.2",
            "NEURON_PORT_NRTPY_PYTHON": str(self.home / "bin" / "nrtpy-python"), **self.environment,
        }  # fmt: skip

    @property
    def compiled(self) -> list[str]:
        """Graphs that the stand-in compiler was asked for, in order, over all instances."""
        path = self.home / "calls"
        return [json.loads(line)["graph"] for line in path.read_text().splitlines()] if path.exists() else []

    def left(self) -> dict[str, Any]:
        """Everything that would cost money or stay: running instances and stacks."""
        stacks = boto3.client("cloudformation").describe_stacks()["Stacks"]
        return {
            "instances": self.instances("pending", "running"),
            "stacks": [each["StackName"] for each in stacks],
        }


def build_helper(name: str) -> ModuleType:
    """A module of tests/build, which keeps the small bundle and the machine that finishes one."""
    folder = str(Path(__file__).parents[1] / "build")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


NOTHING = {"instances": [], "stacks": []}


def quiet_environment() -> dict[str, str]:
    """Credentials that belong to nobody, and no configuration of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


def build(region: Region, bundle: Path, remote: Location, **changes: Any) -> Result:
    """A remote build in the stand-in region, without the check on a device unless `verify` is given."""
    timing = {name: changes.pop(name) for name in ("aws", "smallest_part_bytes") if name in changes}
    options = {
        "target": "trn2",
        "remote": remote,
        "finish_arguments": region.device_nodes,
        "verify": False,
    } | changes
    return run(
        bundle, Options(**options), say=region.said.append, clock=region.clock, sleep=region.sleep, **timing
    )
