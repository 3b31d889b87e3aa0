"""What goes wrong on AWS: a clear sentence, nothing left running, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from stand_in_region import BUCKET, NOTHING, Region, build

from neuron_port.cli.remote_options import ended_like_ctrl_c
from neuron_port.deploy import inventory
from neuron_port.deploy.aws import Aws
from neuron_port.deploy.errors import AwsError, DeployError
from neuron_port.deploy.job_store import JobStore
from neuron_port.deploy.locations import Location
from neuron_port.deploy.watch import PhaseFailedError, ReclaimedError
from neuron_port.errors import NeuronPortError, UsageError

MIB = 1 << 20


# ------------------------------------------------------------------------------------- how faults are played


def answer(code: str, message: str, status: int = 400) -> tuple[Any, dict[str, Any]]:
    """What botocore makes of an error document of AWS."""

    class Response:
        status_code = status
        headers: dict[str, str] = {}

    return Response(), {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }


def refuse(
    aws: Aws, service: str, operation: str, code: str, message: str, when: Callable[[Any], bool]
) -> list[Any]:
    """Make AWS refuse an operation when `when(request)` says so; returns the list that refusals are noted in."""
    refused: list[Any] = []

    def before_call(params: Any, **_: Any) -> Any:
        if not when(params):
            return None
        refused.append(params)
        return answer(code, message, 403 if "Denied" in code else 400)

    aws.client(service).meta.events.register(f"before-call.{service}.{operation}", before_call)
    return refused


def always(_: Any) -> bool:
    return True


def spot_only(request: Any) -> bool:
    return b"MarketType" in str(request["body"]).encode()


def stays(region: Region, state: str, reason: str = "") -> Aws:
    """An account whose instances are for ever in one state."""
    aws = Aws()

    def after_call(parsed: Any, **_: Any) -> None:
        for group in parsed["Reservations"]:
            for instance in group["Instances"]:
                if instance["State"]["Name"] in ("pending", "running"):
                    instance["State"]["Name"] = state
                    instance["StateReason"] = {"Code": reason, "Message": reason}

    aws.client("ec2").meta.events.register("after-call.ec2.DescribeInstances", after_call)
    region.before_boot = lambda identity: False
    return aws


# --------------------------------------------------------------------------------------- credentials and S3


def test_no_credentials(
    region: Region, bundle: Path, remote: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials the sentence says so, and how to get them."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AwsError, match="no usable AWS credentials") as caught:
        build(region, bundle, remote)
    assert "aws configure" in str(caught.value.hint)


def test_no_region(region: Region, bundle: Path, remote: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a region nothing is guessed."""
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(AwsError, match="no AWS region is set"):
        build(region, bundle, remote)


def test_an_unreachable_endpoint(
    region: Region, bundle: Path, remote: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that does not answer is a sentence, not a traceback."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(AwsError, match="AWS cannot be reached"):
        build(region, bundle, remote)


def test_a_missing_bucket(region: Region, bundle: Path) -> None:
    """The cure is the command that makes the bucket."""
    with pytest.raises(DeployError, match="there is no such bucket") as caught:
        build(region, bundle, Location(bucket="nobody-has-this", prefix="builds"))
    assert "deploy plan storage" in str(caught.value.hint)
    assert region.left() == NOTHING


def test_a_bucket_in_another_region(region: Region, bundle: Path) -> None:
    """Instances and bucket must be in one region: both are named."""
    boto3.client("s3", region_name="eu-west-1").create_bucket(
        Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    with pytest.raises(DeployError, match="in eu-west-1, and the instances would start in us-east-1"):
        build(region, bundle, Location(bucket="far-away", prefix="builds"))


def test_s3_denied_at_the_start(region: Region, bundle: Path, remote: Location) -> None:
    """A bucket that may not be used stops the build before anything is made."""
    aws = Aws()
    refuse(aws, "s3", "PutObject", "AccessDenied", "Access Denied", always)
    with pytest.raises(AwsError, match=r"Cannot upload .*bundle.tar.gz.* lack a permission"):
        build(region, bundle, remote, aws=aws)
    assert region.left() == NOTHING


def test_s3_denied_midway_on_the_instance(region: Region, bundle: Path, remote: Location) -> None:
    """A role that may not write its results is reported by the instance; what was compiled is kept for the next."""
    region.environment["FAKE_AWS_REFUSE"] = "/compile/out.tar.gz"
    with pytest.raises(PhaseFailedError, match="AccessDenied"):
        build(region, bundle, remote)
    assert region.left() == NOTHING
    region.environment.clear()
    assert build(region, bundle, remote).state == "compiled"
    assert sorted(region.compiled) == ["decode_b1_t3", "prefill_b1_s2"]  # once each: the NEFFs were on S3


def test_s3_denied_midway_for_us(region: Region, bundle: Path, remote: Location) -> None:
    """When we may no longer read the status, the instance is ended before the sentence is said."""
    aws = Aws()
    refuse(
        aws,
        "s3",
        "GetObject",
        "AccessDenied",
        "Access Denied",
        lambda request: bool(region.instances("running")),
    )
    region.before_boot = lambda identity: False
    with pytest.raises(AwsError, match=r"Cannot read .*status.json.* lack a permission"):
        build(region, bundle, remote, aws=aws)
    assert region.left() == NOTHING


# -------------------------------------------------------------------------------------------------- uploads


def store(aws: Aws, remote: Location) -> JobStore:
    return JobStore(aws, remote, "job", smallest_part_bytes=5 * MIB)


def parts_sent(aws: Aws) -> list[int]:
    """Numbers of the parts that are sent from now on."""
    sent: list[int] = []

    def note(params: Any, **_: Any) -> None:
        sent.append(params["PartNumber"])

    aws.client("s3").meta.events.register("provide-client-params.s3.UploadPart", note)
    return sent


def test_half_an_upload_goes_on_where_it_stopped(region: Region, remote: Location, tmp_path: Path) -> None:
    """After a cut connection the finished parts are not sent again, and no half file is ever there."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(12 * MIB))
    cut = Aws()
    sent = parts_sent(cut)
    refuse(cut, "s3", "UploadPart", "RequestTimeout", "cut", lambda request: "partNumber=3" in request["url"])
    with pytest.raises(AwsError):
        store(cut, remote).upload("weights", path)
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket=BUCKET)
    again = Aws()
    sent = parts_sent(again)
    done = store(again, remote).upload("weights", path)
    assert sent == [3]
    assert done.sent_bytes == 2 * MIB
    body = boto3.client("s3").get_object(Bucket=BUCKET, Key="builds/job/weights")["Body"].read()
    assert body == path.read_bytes()
    assert store(again, remote).upload("weights", path).sent_bytes == 0


def test_a_changed_file_is_sent_again(region: Region, remote: Location, tmp_path: Path) -> None:
    """Parts of an older content are not taken for the new file's."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(12 * MIB))
    cut = Aws()
    refuse(cut, "s3", "UploadPart", "RequestTimeout", "cut", lambda request: "partNumber=3" in request["url"])
    with pytest.raises(AwsError):
        store(cut, remote).upload("weights", path)
    path.write_bytes(os.urandom(12 * MIB))
    store(Aws(), remote).upload("weights", path)
    assert (
        boto3.client("s3").get_object(Bucket=BUCKET, Key="builds/job/weights")["Body"].read()
        == path.read_bytes()
    )


def test_a_damaged_download_is_refused(region: Region, remote: Location, tmp_path: Path) -> None:
    """Results whose SHA-256 is another are not kept."""
    boto3.client("s3").put_object(Bucket=BUCKET, Key="builds/job/out.tar.gz", Body=b"half")
    with pytest.raises(DeployError, match="is not what the instance wrote"):
        store(Aws(), remote).download("out.tar.gz", tmp_path / "out.tar.gz", sha256="0" * 64)
    assert list(tmp_path.glob("*out.tar.gz*")) == []


def test_an_instance_refuses_a_bundle_that_is_not_the_one(
    region: Region, bundle: Path, remote: Location
) -> None:
    """The instance checks what it fetches against job.json."""

    def swap(identity: str) -> bool:
        key = next(
            each["Key"] for each in boto3.client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]
            if each["Key"].endswith("bundle.tar.gz")
        )  # fmt: skip
        boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"another")
        return True

    region.before_boot = swap
    with pytest.raises(PhaseFailedError, match="its SHA-256 is another"):
        build(region, bundle, remote)
    assert region.left() == NOTHING


# ------------------------------------------------------------------------------------------------ instances


def test_an_instance_that_never_starts(region: Region, bundle: Path, remote: Location) -> None:
    """Pending for ever ends after ten minutes, with the instance terminated."""
    region.haste = 10
    with pytest.raises(DeployError, match="has not started after 10 minutes"):
        build(region, bundle, remote, aws=stays(region, "pending"))
    assert region.left() == NOTHING


def test_an_instance_that_says_nothing(region: Region, bundle: Path, remote: Location) -> None:
    """A running instance whose script never speaks is ended, with the usual causes named."""
    region.haste = 10
    with pytest.raises(DeployError, match="has said nothing for 20 minutes") as caught:
        build(region, bundle, remote, aws=stays(region, "running"))
    assert "S3" in str(caught.value.hint)
    assert region.left() == NOTHING


def test_no_capacity_anywhere(region: Region, bundle: Path, remote: Location) -> None:
    """Every zone is tried once; then the sentence, with alternatives."""
    aws = Aws()
    message = "We currently do not have sufficient r7i.xlarge capacity"
    tried = refuse(aws, "ec2", "RunInstances", "InsufficientInstanceCapacity", message, always)
    with pytest.raises(AwsError, match="no capacity for it now"):
        build(region, bundle, remote, aws=aws)
    assert len(tried) > 1
    assert region.left() == NOTHING


def test_no_capacity_in_one_zone(region: Region, bundle: Path, remote: Location) -> None:
    """A zone without room costs a try, not the build."""
    aws = Aws()
    refuse(
        aws, "ec2", "RunInstances", "InsufficientInstanceCapacity", "no room", lambda request: not tried(aws)
    )
    assert build(region, bundle, remote, aws=aws).state == "compiled"


def tried(aws: Aws) -> bool:
    """Whether this was asked before."""
    asked = getattr(aws, "asked", False)
    aws.asked = True  # type: ignore[attr-defined]
    return asked


def test_a_quota(region: Region, bundle: Path, remote: Location) -> None:
    """A quota names Service Quotas."""
    aws = Aws()
    message = "You have requested more vCPU capacity than your current vCPU limit of 0 allows"
    refuse(aws, "ec2", "RunInstances", "VcpuLimitExceeded", message, always)
    with pytest.raises(AwsError, match="a quota of the account is reached") as caught:
        build(region, bundle, remote, aws=aws)
    assert "Service Quotas" in str(caught.value.hint)
    assert region.left() == NOTHING


def test_a_reclaimed_spot_instance_is_replaced_on_demand(
    region: Region, bundle: Path, remote: Location
) -> None:
    """A spot instance that AWS takes back is replaced once, and the graph it had finished is not compiled again."""
    region.fail = {"decode_b1_t3": "memory"}  # the first instance gets as far as one graph
    aws = Aws()
    reclaimed: list[str] = []

    def after_call(parsed: Any, **_: Any) -> None:
        for group in parsed["Reservations"]:
            for instance in group["Instances"]:
                if instance.get("InstanceLifecycle") == "spot" and region.booted:
                    reclaimed.append(instance["InstanceId"])
                    instance["State"]["Name"] = "terminated"
                    code = "Server.SpotInstanceTermination"
                    instance["StateReason"] = {"Code": code, "Message": f"{code}: no capacity"}
                    boto3.client("s3").delete_object(Bucket=BUCKET, Key=f"builds/{job}/compile/status.json")
                    region.fail = {}

    aws.client("ec2").meta.events.register("after-call.ec2.DescribeInstances", after_call)
    job = job_of(bundle, region, remote, market="spot")
    assert build(region, bundle, remote, aws=aws, market="spot").state == "compiled"
    assert reclaimed
    assert [each.get("InstanceLifecycle") for each in region.instances()] == ["spot", None]
    assert region.compiled.count("prefill_b1_s2") == 1
    assert any("once more, on demand" in line for line in region.said)
    assert region.left() == NOTHING


def test_a_reclaimed_spot_instance_without_retry(region: Region, bundle: Path, remote: Location) -> None:
    """Where no second try is wanted, the sentence says what happened and how to go on."""
    aws = stays(region, "terminated", "Server.SpotInstanceTermination")
    with pytest.raises(ReclaimedError, match="AWS took back the compile instance") as caught:
        build(region, bundle, remote, aws=aws, market="spot", retry_on_demand=False)
    assert "same command" in str(caught.value.hint)
    assert region.left() == NOTHING


def test_no_spot_capacity_becomes_on_demand(region: Region, bundle: Path, remote: Location) -> None:
    """Spot capacity that is not to be had is replaced on demand, and it is said."""
    aws = Aws()
    refuse(aws, "ec2", "RunInstances", "InsufficientInstanceCapacity", "no spot capacity", spot_only)
    assert build(region, bundle, remote, aws=aws, market="spot").state == "compiled"
    assert any("once more, on demand" in line for line in region.said)


def test_an_instance_that_ends_without_a_word(region: Region, bundle: Path, remote: Location) -> None:
    """Somebody terminated it: the sentence says when, and nothing waits for it."""
    aws = stays(region, "terminated", "Client.UserInitiatedShutdown")
    with pytest.raises(DeployError, match=r"ended \(Client.UserInitiatedShutdown.*before its first word"):
        build(region, bundle, remote, aws=aws)
    assert region.left() == NOTHING


# ------------------------------------------------------------------------------------------- time and money


def test_a_ceiling_that_cannot_pay_is_refused_first(region: Region, bundle: Path, remote: Location) -> None:
    """Nothing is created when the expected cost is above the ceiling: not even an upload."""
    with pytest.raises(UsageError, match=r"expected to cost \$0.13 .* above the ceiling of \$0.10"):
        build(region, bundle, remote, max_usd=0.10)
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket=BUCKET)
    assert region.left() == NOTHING


def test_the_ceiling_is_the_instances_own_end(region: Region, bundle: Path, remote: Location) -> None:
    """The instance ends itself where the ceiling would be passed, also when nobody is watching any more."""
    build(region, bundle, remote, max_usd=0.2646)  # what r7i.xlarge costs in an hour
    assert region.booted[0]["shutdown"][0] == "-P +60"


def test_the_ceiling_is_reached(region: Region, bundle: Path, remote: Location) -> None:
    """A lower ceiling than that of the run which started the instance ends it when time x price reaches it."""
    kill_while_waiting(region, bundle)
    region.now, region.haste = region.instances()[0]["LaunchTime"], 30
    region.before_boot = lambda identity: speaks_once(region, bundle, remote)
    with pytest.raises(DeployError, match=r"ceiling of \$0.20 is reached during compile"):
        build(region, bundle, remote, max_usd=0.2)
    assert region.left() == NOTHING


def test_the_deadline(region: Region, bundle: Path, remote: Location) -> None:
    """A phase that goes on for ever is ended at its limit, and the next run goes on with what is there."""
    region.haste = 30
    region.before_boot = lambda identity: speaks_once(region, bundle, remote)
    with pytest.raises(DeployError, match="compile phase reached its limit of time"):
        build(region, bundle, remote, timeout_minutes=30)
    assert region.left() == NOTHING
    region.before_boot = always
    assert build(region, bundle, remote, timeout_minutes=30).state == "compiled"


def speaks_once(region: Region, bundle: Path, remote: Location, **options: Any) -> bool:
    """An instance that says that it is at work, and nothing after that."""
    status = {"state": "running", "message": "compiling", "attempt": 1}
    key = f"builds/{job_of(bundle, region, remote, **options)}/compile/status.json"
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=json.dumps(status).encode())
    return False


def test_what_was_spent_counts_in_the_next_run(region: Region, bundle: Path, remote: Location) -> None:
    """A ceiling is the job's, not the run's: what a failed run has spent is gone."""
    region.haste = 10
    with pytest.raises(DeployError, match="has not started"):
        build(region, bundle, remote, aws=stays(region, "pending"), max_usd=0.2646, timeout_minutes=60)
    region.before_boot = always
    build(region, bundle, remote, max_usd=0.2646, timeout_minutes=60)
    assert region.booted[-1]["shutdown"][0] == "-P +50"  # ten minutes were spent before


# --------------------------------------------------------------------------------------------------- stacks


def test_a_stack_that_rolls_back_says_why(region: Region, bundle: Path, remote: Location) -> None:
    """CloudFormation's first failed resource and its reason are in the sentence, and no stack is left."""
    aws = Aws()
    cloudformation = aws.client("cloudformation")

    def rolled_back(parsed: Any, **_: Any) -> None:
        for stack in parsed.get("Stacks", []):
            if stack["StackStatus"] == "CREATE_COMPLETE":
                stack["StackStatus"] = "ROLLBACK_COMPLETE"

    def events(parsed: Any, **_: Any) -> None:
        failed = {"ResourceStatus": "CREATE_FAILED", "Timestamp": region.now, "StackId": "x", "EventId": "x"}
        parsed["StackEvents"] += [
            failed | {"LogicalResourceId": "LaunchTemplate", "ResourceType": "AWS::EC2::LaunchTemplate",
                      "ResourceStatusReason": "Resource creation cancelled"},
            failed | {"LogicalResourceId": "Role", "ResourceType": "AWS::IAM::Role",
                      "ResourceStatusReason": "not authorized to perform: iam:CreateRole"},
        ]  # fmt: skip

    cloudformation.meta.events.register("after-call.cloudformation.DescribeStacks", rolled_back)
    cloudformation.meta.events.register("after-call.cloudformation.DescribeStackEvents", events)
    with pytest.raises(
        DeployError, match=r"Role \(AWS::IAM::Role\): not authorized to perform: iam:CreateRole"
    ):
        build(region, bundle, remote, aws=aws)
    assert region.left() == NOTHING


# ------------------------------------------------------------------------------------------- our own crash

KILLED = """
import sys, time
from pathlib import Path
from neuron_port.deploy.job import Options
from neuron_port.deploy.locations import Location
from neuron_port.deploy.remote_build import run

def sleep(seconds):
    print("waiting", flush=True)
    time.sleep(60)

options = Options(target="trn2", remote=Location(bucket=sys.argv[2], prefix="builds"), verify=False,
                  finish_arguments=tuple(sys.argv[3:]))
run(Path(sys.argv[1]), options, say=lambda line: None, sleep=sleep)
"""


def kill_while_waiting(region: Region, bundle: Path) -> None:
    """Start a build in a process of its own and kill it with SIGKILL once it waits for its instance."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(bundle), BUCKET, *region.device_nodes],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_build_that_is_asked_to_end_leaves_nothing(region: Region, bundle: Path, remote: Location) -> None:
    """SIGTERM while an instance runs: it is terminated and the stack deleted before we end."""
    region.before_boot = lambda identity: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ended_like_ctrl_c():
        build(region, bundle, remote)
    assert region.instances()
    assert region.left() == NOTHING
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_killed_build_is_found_and_destroyed(region: Region, bundle: Path) -> None:
    """SIGKILL leaves an instance and a stack; the list shows both by their tags, and destroy ends both."""
    kill_while_waiting(region, bundle)
    aws = Aws()
    region.now = region.instances()[0]["LaunchTime"]
    found = inventory.inventory(aws, region.now)
    assert sorted(item.what for item in found) == ["instance", "stack"]
    assert {item.kind for item in found} == {"build"}
    assert all(item.deadline is not None and not item.overdue for item in found)
    said: list[str] = []
    inventory.destroy(aws, found[0].job, say=said.append, now=region.now)
    assert region.left() == NOTHING
    assert len(said) == 2


def test_a_killed_build_goes_on_from_the_running_instance(
    region: Region, bundle: Path, remote: Location
) -> None:
    """The same command finds the instance of the killed run, waits for it and starts no other."""
    kill_while_waiting(region, bundle)
    region.now = region.instances()[0]["LaunchTime"]
    result = build(region, bundle, remote)
    assert result.state == "compiled"
    assert len(region.instances()) == 1
    assert any("of an earlier run is at it" in line for line in region.said)
    assert region.left() == NOTHING


def test_a_killed_build_goes_on_from_the_finished_job(region: Region, bundle: Path, remote: Location) -> None:
    """When the instance finished while nobody watched, the same command only fetches, and clears what is left."""
    kill_while_waiting(region, bundle)
    identity = region.instances()[0]["InstanceId"]
    region.boot(identity)
    result = build(region, bundle, remote)
    assert (result.state, result.reused) == ("compiled", True)
    assert len(region.instances()) == 1
    assert region.left() == NOTHING


def test_overdue_jobs_are_destroyed_and_others_are_not(region: Region, bundle: Path) -> None:
    """Past its deadline a job is marked and can be ended without naming it; before that it is left alone."""
    kill_while_waiting(region, bundle)
    aws, launched = Aws(), region.instances()[0]["LaunchTime"]
    assert inventory.destroy_overdue(aws, say=region.said.append, now=launched) == 0
    assert region.left() != NOTHING
    late = launched.replace(year=launched.year + 1)
    assert all(item.overdue for item in inventory.inventory(aws, late))
    assert inventory.destroy_overdue(aws, say=region.said.append, now=late) == 2
    assert region.left() == NOTHING


def test_destroying_what_is_not_there(region: Region) -> None:
    """A name that nothing carries is refused, with those that there are."""
    with pytest.raises(UsageError, match="Nothing in us-east-1 belongs to: `nothing`"):
        inventory.destroy(Aws(), "nothing", say=region.said.append, now=region.now)


def test_cleaning_up_that_fails_is_said(region: Region, bundle: Path, remote: Location) -> None:
    """When even the cleaning fails, the first error stands, and the command that finishes it is named."""
    region.haste = 10
    aws = stays(region, "pending")
    refuse(aws, "ec2", "TerminateInstances", "UnauthorizedOperation", "not yours", always)
    with pytest.raises(NeuronPortError, match="has not started") as caught:
        build(region, bundle, remote, aws=aws)
    assert "neuron-port deploy destroy tiny-trn2-" in str(caught.value.hint)
    assert any(line.startswith("WARNING") for line in region.said)


def job_of(bundle: Path, region: Region, remote: Location, **options: Any) -> str:
    """The id that a build with these options has."""
    from neuron_port.deploy.job import Options, make_job

    given = {"target": "trn2", "verify": False, "finish_arguments": region.device_nodes} | options
    return make_job(bundle, Options(remote=remote, **given)).id
