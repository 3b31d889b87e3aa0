"""A real and very weak language model drives the loop: `python benchmarks/weak_model.py`.

llama-cpp-python serves SmolLM2 135M on loopback, and `neuron-port draft` asks it for a kernel under a small budget.
Such a model writes no kernel that is right. What is shown is that the loop ends cleanly all the same: within the budget,
with "no kernel" or one sentence of the endpoint, with a report, and with nothing asked twice when it is run again.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuron_port.checkpoint.presets import find_preset
from neuron_port.checkpoint.wheel import fetch
from neuron_port.store import Store

CONTEXT_TOKENS = 8192  # what SmolLM2 was trained for
START_SECONDS = 120.0
FUNCTION = '''"""A function of the benchmark's own."""


def scaled_add(x, y, scale):
    """x + scale * y, element by element."""
    return x + scale * y
'''
BUDGET_TOKENS = 40_000
LIMITS = [
    "--drafts",
    "2",
    "--repairs",
    "1",
    "--budget-tokens",
    f"{BUDGET_TOKENS}",
    "--max-output-tokens",
    "400",
]
# This server answers one request at a time: a second one makes it break off the first, whose tokens are then lost.
ONE_AT_A_TIME = ["--llm-concurrency", "1"]
SIZES = ["-i", "x=TxH", "-i", "y=TxH", "-s", "scale=2.0", "--size", "T=1..40", "--size", "H=32"]


def main() -> None:
    arguments = parse()
    gguf = arguments.gguf or gguf_of_preset()
    require_llama_cpp(arguments.python)
    with tempfile.TemporaryDirectory() as folder, serving(arguments, gguf, Path(folder)) as url:
        place = Path(folder)
        (place / "layer.py").write_text(FUNCTION)
        environment = {**os.environ, "NEURON_PORT_HOME": str(place / "home"), "OMP_NUM_THREADS": "1"}
        print(f"{gguf.name}, context of {arguments.context:,} tokens, llama-cpp-python on loopback")
        for turn in ("first run", "run again"):
            show(turn, place, draft(place, url, environment, arguments.more))
        calls(place)
        explain(environment)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="a Python that has llama-cpp-python[server]")
    parser.add_argument(
        "--gguf", type=Path, help="another model's file; default: SmolLM2 135M out of our preset's wheel"
    )
    parser.add_argument("--context", type=int, default=CONTEXT_TOKENS, help="tokens of the model's window")
    parser.add_argument(
        "--threads", type=int, default=1, help="of the server; more than are free slow it down"
    )
    parser.add_argument("more", nargs="*", help="further options of `neuron-port draft`, after --")
    return parser.parse_args()


def gguf_of_preset() -> Path:
    """The GGUF file of the preset smollm2-135m, out of the store or fetched by pip."""
    preset = find_preset("smollm2-135m")
    assert preset is not None
    home = Path(os.environ.get("NEURON_PORT_HOME") or Path.home() / ".cache" / "neuron-port")
    return fetch(preset.source, Store(home), lambda text: print(text, file=sys.stderr))


def require_llama_cpp(python: str) -> None:
    done = subprocess.run([python, "-c", "import llama_cpp.server.app"], capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(
            f"{python} has no llama_cpp server: `pip install 'llama-cpp-python[server]'`, or name another --python."
        )


@contextmanager
def serving(arguments: argparse.Namespace, gguf: Path, folder: Path) -> Iterator[str]:
    """The address of a server of the model, while the body runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        arguments.python, "-m", "llama_cpp.server", "--model", str(gguf), "--model_alias", "smollm2-135m",
        "--host", "127.0.0.1", "--port", str(port), "--n_ctx", str(arguments.context),
        "--n_threads", str(arguments.threads), "--n_threads_batch", str(arguments.threads), "--verbose", "False",
    ]  # fmt: skip
    log = folder / "server.log"
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models", server, log)
        yield f"http://127.0.0.1:{port}/v1#smollm2-135m"
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    sys.exit(f"The server did not start within {START_SECONDS:.0f} s:\n{log.read_text()[-2000:]}")


def draft(
    folder: Path, url: str, environment: dict[str, str], more: list[str]
) -> tuple[subprocess.CompletedProcess[str], float]:
    """`neuron-port draft` on the function, and the seconds that it took."""
    command = [
        sys.executable, "-m", "neuron_port.cli", "draft", f"{folder / 'layer.py'}:scaled_add", *SIZES,
        "--llm", url, "--output", str(folder / "drafts"), "--json", *LIMITS, *ONE_AT_A_TIME, *more,
    ]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done, time.monotonic() - started


def show(turn: str, folder: Path, ended: tuple[subprocess.CompletedProcess[str], float]) -> None:
    done, seconds = ended
    print(f"\n{turn}: exit code {done.returncode}, {seconds:.0f} s")
    if done.stdout.strip():
        (facts,) = json.loads(done.stdout)
        print(f"  outcome     {facts['outcome']}")
        print(f"  calls       {facts['calls']}, of them {asked(folder)} answered by the model so far")
        kept = "within" if facts["tokens"] <= BUDGET_TOKENS else "BEYOND"
        print(f"  tokens      {facts['tokens']:,}, {kept} the budget of {BUDGET_TOKENS:,}")
        print(f"  candidates  {facts['candidates']}; kernel: {facts['folder'] or 'none'}")
        print(f"  report      {Path(facts['page']).name}, {Path(facts['page']).stat().st_size:,} bytes")
    for line in done.stderr.splitlines():
        if line.startswith(("error", "  hint")) or "Traceback" in line:
            print(f"  {line}")


def asked(folder: Path) -> int:
    """How many replies are kept."""
    return len(list((folder / "home" / "replies").glob("*/*.json")))


def calls(folder: Path) -> None:
    """Every call of the first run: what it was for, the tokens that it was charged for, how long it took."""
    print("\ncalls (tokens include those of attempts that broke off):")
    for file in (folder / "home" / "drafting").glob("*/events.jsonl"):
        for event in map(json.loads, file.read_text().splitlines()):
            if event["kind"] in ("call paid", "call failed", "call lost"):
                cost = event["cost"]
                tokens = f"{cost['input_tokens']:>7,} in {cost['output_tokens']:>5,} out"
                ended = event.get("finish", event.get("error_class", ""))
                print(
                    f"  {event['purpose']:<8}{event['kind']:<12}{tokens} {cost['seconds']:>6.1f} s  {ended}"
                )


def explain(environment: dict[str, str]) -> None:
    """What `neuron-port explain` says of the run."""
    command = [sys.executable, "-m", "neuron_port.cli", "explain", "scaled_add"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    print(f"\nneuron-port explain scaled_add:\n{(done.stdout or done.stderr).rstrip()}")


if __name__ == "__main__":
    main()
