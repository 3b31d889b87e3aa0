"""`neuron-port deploy`, `export` and what they print: data on stdout, sentences on stderr, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
import pytest
from stand_in_region import BUCKET, NOTHING, Region
from test_deploy_faults import kill_while_waiting

from neuron_port.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_plan_is_printed_and_written(
    region: Region, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text for people, a file for apply, and the words that nothing real has confirmed it."""
    arguments = ("--target", "inf2", "--remote", f"s3://{BUCKET}/builds")
    path = tmp_path / "plan.json"
    code, out, err = run(capsys, "deploy", "plan", "build", str(bundle), *arguments, "-o", str(path))
    assert code == 0
    assert "r7i.xlarge" in out
    assert "inf2.xlarge" in out
    assert f"neuron-port deploy apply {path}" in err
    assert "No AWS account has confirmed this" in err
    code, out, _ = run(capsys, "deploy", "plan", "build", str(bundle), *arguments, "--json")
    assert json.loads(out)["digest"] == json.loads(path.read_text())["digest"]
    assert region.left() == NOTHING


def test_a_dry_run_of_a_remote_build(
    region: Region, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`build --remote --dry-run` shows the same plan and makes nothing."""
    arguments = ("--target", "inf2", "--remote", f"s3://{BUCKET}/builds")
    code, out, err = run(capsys, "build", str(bundle), *arguments, "--dry-run")
    assert code == 0, err
    assert out == run(capsys, "deploy", "plan", "build", str(bundle), *arguments)[1]
    assert "at most $" in out
    assert region.left() == NOTHING


def test_planning_and_making_storage(
    region: Region, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two commands that a missing bucket's error names."""
    path = tmp_path / "storage.json"
    assert run(capsys, "deploy", "plan", "storage", "--remote", "s3://my-own/builds", "-o", str(path))[0] == 0
    code, out, err = run(capsys, "deploy", "apply", str(path))
    assert code == 0, err
    assert "Bucket: my-own" in out
    assert "my-own" in [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]]


def test_a_crashed_run_is_listed_and_destroyed(
    region: Region, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a killed process left is seen with its price and deadline, and one command ends it."""
    kill_while_waiting(region, bundle)
    code, out, _ = run(capsys, "deploy", "list")
    assert code == 0
    assert "r7i.xlarge, compile" in out
    assert "$0.2646/h" in out
    items = json.loads(run(capsys, "deploy", "list", "--json")[1])
    assert {item["what"] for item in items} == {"instance", "stack"}
    code, out, err = run(capsys, "deploy", "destroy", items[0]["job"], "--purge")
    assert (code, out) == (0, "removed: 2\n")
    assert "terminated: i-" in err
    assert region.left() == NOTHING
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket=BUCKET)


def test_dry_runs_make_and_end_nothing(
    region: Region, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`apply --dry-run` shows the plan, `destroy --dry-run` what it would end; both leave everything as it is."""
    path = tmp_path / "plan.json"
    arguments = ("--target", "inf2", "--remote", f"s3://{BUCKET}/builds", "-o", str(path))
    planned = run(capsys, "deploy", "plan", "build", str(bundle), *arguments)[1]
    assert run(capsys, "deploy", "apply", str(path), "--dry-run")[:2] == (0, planned)
    assert region.left() == NOTHING
    kill_while_waiting(region, bundle)
    before = region.left()
    job = json.loads(run(capsys, "deploy", "list", "--json")[1])[0]["job"]
    code, out, err = run(capsys, "deploy", "destroy", job, "--dry-run")
    assert (code, err) == (0, "Nothing was ended.\n")
    assert len(out.splitlines()) == 2
    assert region.left() == before


def test_the_files_of_a_job_that_is_done_are_deleted(
    region: Region, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing carries the job's tags any more: --remote says where its files are, and others' stay."""
    client = boto3.client("s3")
    for key in ("builds/mine/job.json", "builds/mine-2/job.json"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    code, _, err = run(capsys, "deploy", "destroy", "mine", "--purge")
    assert code == 2
    assert "--remote" in err
    assert run(capsys, "deploy", "destroy", "mine", "--purge", "--remote", f"s3://{BUCKET}/builds")[0] == 0
    assert [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == [
        "builds/mine-2/job.json"
    ]


def test_a_stopped_instance_is_destroyed(
    region: Region, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody stopped an instance of ours: it still pays for its disk, and goes with its job."""
    kill_while_waiting(region, bundle)
    identity = region.instances("pending", "running")[0]["InstanceId"]
    boto3.client("ec2").stop_instances(InstanceIds=[identity])
    job = json.loads(run(capsys, "deploy", "list", "--json")[1])[0]["job"]
    assert run(capsys, "deploy", "destroy", job)[0] == 0
    assert region.instances("stopped", "stopping") == []


def test_an_empty_account_is_listed_as_such(region: Region, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing on stdout, a sentence on stderr."""
    assert run(capsys, "deploy", "list") == (0, "", "Nothing of neuron-port in us-east-1.\n")


@pytest.mark.parametrize("arguments", [("destroy",), ("destroy", "name", "--overdue")])
def test_destroy_wants_one_thing(
    region: Region, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    """A name or --overdue, not both and not neither."""
    code, _, err = run(capsys, "deploy", *arguments)
    assert code == 2
    assert "--overdue" in err


def test_no_traceback_reaches_the_user(
    region: Region, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of AWS is a sentence with its cure and exit code 1."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, out, err = run(capsys, "deploy", "list")
    assert (code, out) == (1, "")
    assert err.startswith("error: Cannot look at instances: AWS cannot be reached")
    assert "Traceback" not in err


def test_a_price_that_is_none(region: Region, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--price takes TYPE=USD."""
    arguments = ("--target", "inf2", "--remote", f"s3://{BUCKET}/builds", "--price", "inf2.xlarge=cheap")
    code, _, err = run(capsys, "deploy", "plan", "build", str(bundle), *arguments)
    assert code == 2
    assert "inf2.xlarge=0.76" in err


def test_a_price_of_what_is_not_in_the_table(
    region: Region, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt type would leave the table's price in force: it is refused, with its neighbour."""
    arguments = ("--target", "inf2", "--remote", f"s3://{BUCKET}/builds", "--price", "inf2.xlrge=0.5")
    code, _, err = run(capsys, "deploy", "plan", "build", str(bundle), *arguments)
    assert code == 2
    assert "Did you mean `inf2.xlarge`" in err


def test_a_manifest_is_printed(compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML on stdout, for kubectl."""
    arguments = ("--container", "registry/model:1", "--name", "tiny")
    code, out, _ = run(capsys, "deploy", "manifest", str(compiled), *arguments)
    assert code == 0
    assert "kind: Deployment" in out
    assert "$" not in out.replace("$(openssl rand -base64 24)", "")


@pytest.mark.parametrize("to", ["vllm", "optimum", "sagemaker"])
def test_exports_say_where_and_what_next(
    compiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    """The folder on stdout; on stderr that no device has run it, and the next step."""
    code, out, err = run(capsys, "export", str(compiled), "--to", to, "-o", str(tmp_path / "out"))
    assert (code, out) == (0, f"{tmp_path / 'out'}\n"), err
    assert "No Neuron device has run this export" in err
