"""Real bundles behind the server: the tiny Llama's own graphs on XLA-CPU, as NEFFs of a stand-in, and in transformers."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import transformers
from rich.console import Console

from neuron_port.errors import CheckpointError, NeuronPortError, StorageError, UsageError
from neuron_port.serving.backends import load_generator
from neuron_port.serving.bundle import open_bundle
from neuron_port.serving.service import Service
from neuron_port.serving.settings import Settings
from tests.serving.conftest import Running, running
from tests.serving.tiny import write_llama

pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")
pytestmark = pytest.mark.slow
FAKES = Path(__file__).parents[1] / "build" / "fakes" / "nrtpy_environment"
ROWS, CONTEXT = 4, 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with four rows, buckets of 8 and 32 tokens, and 64 cache slots."""
    from neuron_port.pipeline.convert import convert
    from neuron_port.pipeline.options import complete_options
    from neuron_port.report import LiveView
    from neuron_port.store import Store

    place = tmp_path_factory.mktemp("bundles")
    options = complete_options(
        str(checkpoint), dtype="float32", batch=ROWS, buckets=(8, 32), cache_length=CONTEXT, prompts=("hi",),
        output=place / "tiny", new_tokens=2, proof="kernels",
    )  # fmt: skip
    with LiveView(Console(file=io.StringIO()), enabled=False) as view:
        convert(options, view, Store(place / "store"))
    return place / "tiny"


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def greedy(model: Any, checkpoint: Path) -> Callable[[str, int], str]:
    """transformers' own continuation of a text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)

    def continued(prompt: str, count: int) -> str:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.inference_mode():
            output = model.generate(ids, max_new_tokens=count, do_sample=False)
        return str(
            tokenizer.decode(
                output[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    return continued


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    with running(Service(open_bundle(bundle), Settings(port=0, model_name="tiny"))) as server:
        yield server


def completed(client: openai.OpenAI, prompt: str, count: int) -> str:
    chunks = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=count, temperature=0, stream=True
    )
    return "".join(chunk.choices[0].text for chunk in chunks)


PROMPTS = [
    f"{'abcdefghij ' * (number % 5)}{number}" for number in range(20)
]  # 1 to 46 tokens: both buckets and more
JOBS = [(PROMPTS[number % 20], 3 + number % 15) for number in range(200)]


def test_200_streams_are_transformers_own(server: Running, greedy: Callable[[str, int], str]) -> None:
    """16 clients over the 4 rows of the chip's own graphs: every greedy text is transformers', none is lost or mixed."""
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda job: completed(server.client(), *job), JOBS))
    wanted = {job: greedy(*job) for job in set(JOBS)}
    assert len(set(wanted.values())) > 20, "a model that says one thing proves nothing"
    assert texts == [wanted[job] for job in JOBS]


def test_the_largest_sequence_fits(server: Running, greedy: Callable[[str, int], str]) -> None:
    """A prompt beyond the largest bucket, continued to the last cache slot, is still transformers' text."""
    prompt = "the quick brown fox jumps over the lazy dog "
    answer = server.client().completions.create(model="tiny", prompt=prompt, max_tokens=90, temperature=0)
    produced = CONTEXT - len(prompt) + 1
    assert answer.choices[0].text == greedy(prompt, produced)
    assert answer.choices[0].finish_reason == "length"


def test_states_stay_where_they_are(bundle: Path) -> None:
    """A decode step writes the caches in place: their memory is the same before and after."""
    generator: Any = load_generator(open_bundle(bundle), "xla-cpu")
    states = generator._runtime._states
    before = {name: buffer.unsafe_buffer_pointer() for name, buffer in states.items()}
    generator.prefill(1, [1, 2, 3])
    generator.decode([0, 4, 0, 0], [0, 3, 0, 0])
    assert {name: buffer.unsafe_buffer_pointer() for name, buffer in states.items()} == before


def test_an_empty_row_begins_from_zeros(bundle: Path) -> None:
    """A row can begin without a prefill, beside a running one, and gives what a prefill gives."""
    generator = load_generator(open_bundle(bundle), "xla-cpu")
    generator.prefill(0, [9, 8, 7])
    wanted = load_generator(open_bundle(bundle), "xla-cpu").prefill(0, [5, 6])
    generator.begin_empty(2)
    generator.decode([6, 0, 5, 0], [3, 0, 0, 0])
    found = generator.decode([5, 0, 6, 0], [4, 0, 1, 0])[2]
    assert abs(found - wanted).max() < 1e-4


def test_the_reference_backend_agrees(bundle: Path, greedy: Callable[[str, int], str]) -> None:
    """The same engine over transformers' model: texts as generate has them."""
    settings = Settings(port=0, model_name="tiny", backend="reference")
    with running(Service(open_bundle(bundle), settings)) as server, ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(lambda job: completed(server.client(), *job), JOBS[:12]))
    assert texts == [greedy(*job) for job in JOBS[:12]]


@pytest.fixture
def compiled(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle with NEFFs as the stand-in for nrtpy reads them, which itself is importable."""
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.delitem(sys.modules, "nrtpy", raising=False)
    folder = tmp_path / "compiled"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "neuron_port.json").read_text())
    manifest["state"] = "compiled"
    manifest["build"]["target"] = "trn2"
    for graph in manifest["graphs"]:
        home = folder / "graphs" / graph["id"]
        interface = json.loads((home / "io.json").read_text())
        described = {
            side: {item["name"]: (item["dtype"], item["shape"]) for item in interface[side]}
            for side in ("inputs", "outputs")
        } | {"aliases": {item["name"]: item["alias_of"] for item in interface["outputs"] if item["alias_of"]}}
        neff = folder / "neff" / "trn2" / f"{graph['id']}.neff"
        neff.parent.mkdir(parents=True, exist_ok=True)
        twin = (home / "graph.ref.hlo.pb").read_bytes()
        neff.write_bytes(bytes(1024) + json.dumps(described).encode() + b"\0" + twin)
        graph["neff"] = {"path": str(neff.relative_to(folder))}
    (folder / "neuron_port.json").write_text(json.dumps(manifest))
    return folder


def test_neffs_are_served_through_nrtpy(compiled: Path, greedy: Callable[[str, int], str]) -> None:
    """With the stand-in for nrtpy, which holds the caller to its documents, texts are transformers'."""
    settings = Settings(port=0, model_name="tiny", backend="neuron")
    with running(Service(open_bundle(compiled), settings)) as server, ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(lambda job: completed(server.client(), *job), JOBS[:12]))
    assert texts == [greedy(*job) for job in JOBS[:12]]


def test_a_portable_bundle_has_no_neffs(bundle: Path) -> None:
    """The backend `neuron` refuses a bundle that is not compiled, and says what compiles it."""
    with pytest.raises(UsageError, match="is `portable`") as refused:
        load_generator(open_bundle(bundle), "neuron")
    assert "neuron-port build" in (refused.value.hint or "")


def test_nrtpy_is_named_when_missing(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nrtpy is not installed the sentence says where it is."""
    monkeypatch.setitem(sys.modules, "nrtpy", None)
    with pytest.raises(NeuronPortError, match="needs nrtpy"):
        load_generator(open_bundle(compiled), "neuron")


def damaged(bundle: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "neuron_port.json").read_text())
    change(manifest)
    (folder / "neuron_port.json").write_text(json.dumps(manifest))
    return folder


def test_a_changed_file_is_found(bundle: Path, tmp_path: Path) -> None:
    """A bundle with a byte changed is refused by the file's name; --no-verify takes it as it is."""
    folder = tmp_path / "changed"
    shutil.copytree(bundle, folder)
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(StorageError, match=r"config\.json"):
        open_bundle(folder)
    assert open_bundle(folder, verify=False).task == "generate"


def test_random_weights_cannot_be_served(bundle: Path, tmp_path: Path) -> None:
    """Weights that were drawn are not stored: the sentence says so."""
    folder = damaged(bundle, tmp_path / "b", lambda manifest: manifest["weights"].update(random=True))
    with pytest.raises(CheckpointError, match="random weights"):
        open_bundle(folder).weight_files()


def test_split_weights_are_refused(bundle: Path, tmp_path: Path) -> None:
    """A bundle of several ranks is refused by their number."""
    folder = damaged(bundle, tmp_path / "b", lambda manifest: manifest["target"].update(tp=2))
    with pytest.raises(UsageError, match="split over 2 ranks"):
        open_bundle(folder)


# -- the command ----------------------------------------------------------------------------------------------


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "neuron_port.cli", "serve", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def test_the_command_serves_drains_and_exits(bundle: Path, greedy: Callable[[str, int], str]) -> None:
    """`neuron-port serve` asks for the key of the environment; SIGTERM lets running streams end, then it exits with 0."""
    process = start(bundle, "--port", 0, "--model-name", "tiny", NEURON_PORT_API_KEY="right-key")
    assert process.stderr is not None
    try:
        url = re.search(r"http://\S+/v1", process.stderr.readline())
        assert url is not None
        while "is ready" not in process.stderr.readline():
            assert process.poll() is None
        assert httpx.get(f"{url.group()}/models").status_code == 401
        with (
            openai.OpenAI(base_url=url.group(), api_key="right-key", max_retries=0) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            begun = threading.Event()

            def one(prompt: str) -> str:
                chunks = client.completions.create(
                    model="tiny", prompt=prompt, max_tokens=50, temperature=0, stream=True
                )
                text = ""
                for chunk in chunks:
                    begun.set()
                    text += chunk.choices[0].text
                return text

            texts = [pool.submit(one, f"p{number}") for number in range(4)]
            assert begun.wait(30)
            process.send_signal(signal.SIGTERM)
            assert [text.result() for text in texts] == [greedy(f"p{number}", 50) for number in range(4)]
        assert process.wait(30) == 0
        assert "right-key" not in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--backend", "neuron"], "is `portable`"), (["--host", "0.0.0.0"], "without an API key")],
)
def test_the_command_refuses_before_it_listens(arguments: list[str], said: str, bundle: Path) -> None:
    """What cannot be is one sentence and exit code 2, at once."""
    process = start(bundle, *arguments)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in text
    assert "/v1" not in text
