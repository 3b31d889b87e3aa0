"""Exports: folders that Hugging Face tools read, SageMaker's archive and its server; and what cannot be exported."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from stand_in_region import BUCKET, Region, build_helper

from neuron_port.build import write_bundle
from neuron_port.build.finishing.files import sha256_of
from neuron_port.deploy.export import TEMPLATES, export_checkpoint, export_command, neuron_hints
from neuron_port.deploy.sagemaker import export_sagemaker
from neuron_port.errors import CheckpointError, UsageError


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny Llama in two shards, and a bundle whose checkpoint it is."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    tiny = build_helper("tiny_bundle")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64)
    )  # fmt: skip
    model.save_pretrained(folder / "checkpoint", max_shard_size="8KB")
    arguments = tiny.make_arguments(folder / "tiny")
    made = write_bundle(folder / "bundle", **arguments).folder
    for path in (made / "weights").iterdir():
        path.unlink()
    files = []
    for shard in sorted((folder / "checkpoint").glob("*.safetensors")):
        shutil.copyfile(shard, made / "weights" / shard.name)
        files.append({"name": shard.name, "sha256": sha256_of(shard), "bytes": shard.stat().st_size})
    (made / "weights" / "weights.lock.json").write_text(json.dumps({"source": "llama", "files": files}))
    weights = {"mode": "copy", "random": False, "bytes": sum(each["bytes"] for each in files), "files": files}
    (made / "config.json").write_bytes((folder / "checkpoint" / "config.json").read_bytes())
    manifest = read(made / "neuron_port.json")
    manifest["weights"] = weights
    manifest["model"]["architecture"] = "LlamaForCausalLM"
    (made / "neuron_port.json").write_text(json.dumps(manifest))
    return model, made


@pytest.mark.parametrize("to", ["vllm", "optimum"])
def test_transformers_reads_the_export(llama: tuple[Any, Path], tmp_path: Path, to: Any) -> None:
    """vLLM and optimum-neuron read what transformers reads: the same tensors, through the index that we wrote."""
    import torch
    from transformers import AutoModelForCausalLM

    model, bundle = llama
    export_checkpoint(bundle, tmp_path / "out", to)
    index = read(tmp_path / "out" / "model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_nothing_of_ours_is_in_a_checkpoint(llama: tuple[Any, Path], tmp_path: Path) -> None:
    """config.json is the checkpoint's own, hints stand beside it, and no part of the bundle comes along."""
    export_checkpoint(llama[1], tmp_path / "out", "optimum")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "README.md", "neuron_export.json"} <= names
    assert not {"neuron_port.json", "graphs", "neff", "weights"} & names
    assert "neuron" not in read(tmp_path / "out" / "config.json")
    assert not list(tmp_path.glob(".*"))


def test_the_page_has_the_exact_command(llama: tuple[Any, Path], tmp_path: Path) -> None:
    """Shapes, degree and chip in the commands are the bundle's."""
    hints = neuron_hints(read(llama[1] / "neuron_port.json"))
    assert (
        export_command("vllm", hints)
        == "vllm serve . --tensor-parallel-size 1 --max-num-seqs 1 --max-model-len 3"
    )
    command = export_command("optimum", hints)
    assert "--batch_size 1 --sequence_length 3 --instance_type trn2 --tensor_parallel_size 1" in command
    export_checkpoint(llama[1], tmp_path / "out", "optimum")
    assert command in (tmp_path / "out" / "README.md").read_text()


def test_an_architecture_that_vllm_does_not_know_is_noted(bundle: Path, tmp_path: Path) -> None:
    """The folder is written; that the tool will refuse it is said."""
    manifest = read(bundle / "neuron_port.json")
    manifest["model"]["architecture"] = "OPTForCausalLM"
    (bundle / "neuron_port.json").write_text(json.dumps(manifest))
    notes = export_checkpoint(bundle, tmp_path / "out", "vllm")
    assert any("OPTForCausalLM is not among the architectures" in note for note in notes)


@pytest.mark.parametrize("to", ["vllm", "sagemaker"])
def test_random_weights_cannot_be_exported(bundle: Path, tmp_path: Path, to: Any) -> None:
    """Weights that were never real are refused, and nothing is written."""
    manifest = read(bundle / "neuron_port.json")
    manifest["weights"]["random"] = True
    (bundle / "neuron_port.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="random weights, which are not stored"):
        export_sagemaker(bundle, tmp_path / "out") if to == "sagemaker" else export_checkpoint(
            bundle, tmp_path / "out", to
        )
    assert not (tmp_path / "out").exists()


def test_absent_weights_cannot_be_exported(bundle: Path, tmp_path: Path) -> None:
    """A bundle that only refers to its weights names where they came from."""
    (bundle / "weights" / "model.safetensors").unlink()
    manifest = read(bundle / "neuron_port.json")
    manifest["weights"]["mode"] = "reference"
    (bundle / "neuron_port.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="by reference only") as caught:
        export_checkpoint(bundle, tmp_path / "out", "vllm")
    assert "--weights copy" in str(caught.value.hint)


def test_changed_weights_are_not_exported(bundle: Path, tmp_path: Path) -> None:
    """A weight file that is not the one in the lock is refused, and nothing half-written stays."""
    path = bundle / "weights" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="has changed since"):
        export_checkpoint(bundle, tmp_path / "out", "vllm")
    assert list(tmp_path.glob("*out*")) == []


def test_a_folder_with_something_in_it_is_kept(bundle: Path, tmp_path: Path) -> None:
    """Nothing of the user's is replaced."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="is not empty"):
        export_checkpoint(bundle, tmp_path / "out", "vllm")
    assert (tmp_path / "out" / "mine").exists()


# -------------------------------------------------------------------------------------------------- SageMaker

# A stand-in for `neuron-port serve`: answers with the path and body that it got; SIGTERM ends it with 0.
SERVER = """
import json, signal, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send(200, b"{}")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("stream"):
            return self.send(200, b"data: one\\n\\ndata: [DONE]\\n\\n", "text/event-stream")
        status = 400 if asked.get("bad") else 200
        return self.send(status, json.dumps({"path": self.path, "asked": asked}).encode())

    def log_message(self, *_):
        pass

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def model(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What SageMaker makes of model.tar.gz: /opt/ml/model."""
    export_sagemaker(compiled, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "model.tar.gz") as tar:
        assert {member.uname for member in tar.getmembers()} == {""}
        tar.extractall(tmp_path / "model", filter="data")
    (tmp_path / "server.py").write_text(SERVER)
    monkeypatch.setenv("NEURON_PORT_COMMAND", f"{sys.executable} {tmp_path / 'server.py'}")
    return tmp_path / "model"


@pytest.fixture
def container(model: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The archive's own server as SageMaker runs it, and its port."""
    port = 18080 + os.getpid() % 1000
    process = subprocess.Popen(
        [sys.executable, str(model / "code" / "inference.py")],
        env={**os.environ, "SAGEMAKER_BIND_TO_PORT": str(port)},
    )
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, data)
    answer = connection.getresponse()
    said = answer.status, answer.read()
    connection.close()
    return said


def ping_until(port: int, status: int) -> None:
    while True:
        try:
            if ask(port, "GET", "/ping")[0] == status:
                return
        except OSError:
            pass
        time.sleep(0.05)


def test_the_container_contract(container: tuple[subprocess.Popen[bytes], int]) -> None:
    """/ping says 200 when the model is ready; /invocations goes where the body belongs; SIGTERM ends it with 0."""
    process, port = container
    ping_until(port, 200)
    for body, path in (
        ({"messages": []}, "/v1/chat/completions"),
        ({"prompt": "x"}, "/v1/completions"),
        ({"input": "x"}, "/v1/embeddings"),
    ):
        status, said = ask(port, "POST", "/invocations", body)
        assert (status, json.loads(said)) == (200, {"path": path, "asked": body})
    assert ask(port, "POST", "/invocations", {"prompt": "x", "bad": True})[0] == 400
    assert ask(port, "POST", "/invocations", {"prompt": "x", "stream": True}) == (
        200,
        b"data: one\n\ndata: [DONE]\n\n",
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/invocations", b"no json", 400),
        ("POST", "/invocations", {"other": 1}, 400),
        ("POST", "/invocations", {"prompt": "x", "messages": []}, 400),
        ("POST", "/invocations", [1], 400),
        ("POST", "/elsewhere", {"prompt": "x"}, 404),
        ("GET", "/elsewhere", None, 404),
    ],
)
def test_bad_invocations(
    container: tuple[subprocess.Popen[bytes], int], method: str, path: str, body: Any, status: int
) -> None:
    """Each gets OpenAI's error shape, and the container stays."""
    _, port = container
    ping_until(port, 200)
    found, said = ask(port, method, path, body)
    assert found == status
    assert json.loads(said)["error"]["message"]
    assert ask(port, "GET", "/ping")[0] == 200


def test_the_toolkit_contract(model: Path) -> None:
    """model_fn, input_fn, predict_fn and output_fn answer as the container does, and pass refusals on."""
    spec = importlib.util.spec_from_file_location("inference", model / "code" / "inference.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    server = code.model_fn(str(model))
    try:
        body = code.input_fn('{"prompt": "x"}', "application/json")
        said = code.output_fn(code.predict_fn(body, server), "application/json")
        assert json.loads(said)["path"] == "/v1/completions"
        with pytest.raises(ValueError, match="bad"):
            code.predict_fn(b'{"prompt": "x", "bad": true}', server)
        with pytest.raises(ValueError, match="text/csv"):
            code.input_fn("x", "text/csv")
    finally:
        assert server.stop() == 0


def test_a_model_that_ends_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot start ends the container instead of being waited for."""
    monkeypatch.setenv("NEURON_PORT_COMMAND", "false")
    done = subprocess.run(
        [sys.executable, str(model / "code" / "inference.py")],
        env={**os.environ, "SAGEMAKER_BIND_TO_PORT": "0"},
    )
    assert done.returncode == 1


def test_a_portable_bundle_is_no_sagemaker_model(bundle: Path, tmp_path: Path) -> None:
    """What is not compiled is refused."""
    with pytest.raises(UsageError, match="is not compiled"):
        export_sagemaker(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sagemaker_takes_the_model(region: Region, compiled: Path, tmp_path: Path) -> None:
    """Upload, create_model with our container, an endpoint configuration and an endpoint, through moto."""
    export_sagemaker(compiled, tmp_path / "out")
    boto3.client("s3").upload_file(str(tmp_path / "out" / "model.tar.gz"), BUCKET, "sagemaker/model.tar.gz")
    sagemaker = boto3.client("sagemaker")
    container = {"Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/neuron-port:1",
                 "ModelDataUrl": f"s3://{BUCKET}/sagemaker/model.tar.gz"}  # fmt: skip
    sagemaker.create_model(
        ModelName="tiny",
        PrimaryContainer=container,
        ExecutionRoleArn="arn:aws:iam::123456789012:role/sagemaker",
    )
    assert (
        sagemaker.describe_model(ModelName="tiny")["PrimaryContainer"]["ModelDataUrl"]
        == container["ModelDataUrl"]
    )
    # moto knows ml.inf1 and no ml.inf2: the type is the one thing here that is not what a user writes.
    variant = {
        "VariantName": "all",
        "ModelName": "tiny",
        "InstanceType": "ml.inf1.xlarge",
        "InitialInstanceCount": 1,
    }
    sagemaker.create_endpoint_config(EndpointConfigName="tiny", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="tiny", EndpointConfigName="tiny")
    assert sagemaker.describe_endpoint(EndpointName="tiny")["EndpointStatus"] in ("Creating", "InService")


def test_instances_templates_need_no_packages() -> None:
    """What runs on instances and in containers imports the standard library only."""
    import ast

    for path in TEMPLATES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names), path.name
