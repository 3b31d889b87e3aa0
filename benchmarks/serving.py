"""Serves a bundle on XLA-CPU to concurrent clients, beside transformers' `generate` on the same prompts.

    python benchmarks/serving.py BUNDLE [--clients 16] [--requests 64] [--tokens 48] [--same-length] [--soak 1000]

Four things are shown, in one run on one machine:

    right       every streamed completion is transformers' greedy one, to the last character
    fast        tokens per second and time to first token, beside generate one by one and in batches
    whole       with --soak N: N more requests over the same connections, each compared again
    graceful    SIGTERM in the middle of running streams: all of them end well, and the server exits with 0

The comparisons do the same work: the same prompts, each to its own length. A batch of `generate` runs until its longest
sequence ends, which is what a server without continuous batching would do. Times depend on what else the machine does,
so only ratios within one run mean anything; processor seconds are printed beside wall seconds for the same reason.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it (neuron_port/cli)

TOPICS = (
    "The capital of France is", "Water boils at", "Once upon a time, in a village by the sea,", "def fibonacci(n):",
    "The three primary colours are", "Photosynthesis is the process by which", "My favourite book is",
    "In 1969, the first man on the moon", "To make bread you need", "The opposite of hot is",
    "A haiku about rain:", "The sum of two and two is", "Dear Sir or Madam,", "The quick brown fox",
    "An engine turns heat into", "List of planets: Mercury, Venus,",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One completion to make."""

    prompt: str
    tokens: int


@dataclass(frozen=True)
class Timing:
    """How one way of serving all jobs went; first-token times are from the start of the run's clock for each client."""

    name: str
    wall_seconds: float
    processor_seconds: float
    tokens: int
    first_token_seconds: Sequence[float]

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.wall_seconds


def make_jobs(count: int, tokens: int, *, same_length: bool) -> list[Job]:
    """Prompts that all differ, with lengths from an eighth of `tokens` to all of it."""
    return [
        Job(
            prompt=f"{TOPICS[number % len(TOPICS)]}"
            if number < len(TOPICS)
            else f"({number}) {TOPICS[number % len(TOPICS)]}",
            tokens=tokens if same_length else max(1, tokens * (1 + number * 5 % 8) // 8),
        )
        for number in range(count)
    ]


# -- transformers ---------------------------------------------------------------------------------------------


class Transformers:
    """The bundle's model in transformers, greedy."""

    def __init__(self, bundle: Path) -> None:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        with tempfile.TemporaryDirectory() as scratch:
            for path in (*bundle.glob("*.json"), *(bundle / "weights").glob("*.safetensors")):
                if path.name != "derived.safetensors":
                    (Path(scratch) / path.name).symlink_to(path.resolve())
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                scratch, dtype=torch.float32
            ).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(bundle)
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token

    def run(self, jobs: Sequence[Job], batch: int) -> tuple[Timing, list[str]]:
        """All jobs, `batch` at a time, in order; all of them have come at the start."""
        texts, firsts, tokens = [], [], 0
        started, processor = time.perf_counter(), time.process_time()
        for first in range(0, len(jobs), batch):
            group = jobs[first : first + batch]
            moments: list[float] = []
            produced = self._generate(group, moments)
            firsts += [moments[0] - started] * len(group)
            for job, ids in zip(group, produced, strict=True):
                ended = [place for place, token in enumerate(ids) if token in self._ends]
                ids = ids[: min([job.tokens, *ended])]
                tokens += len(ids)
                texts.append(
                    self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                )
        timing = Timing(
            f"generate, {'one by one' if batch == 1 else f'batches of {batch}'}",
            time.perf_counter() - started, time.process_time() - processor, tokens, firsts,
        )  # fmt: skip
        return timing, texts

    @property
    def _ends(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}

    def _generate(self, group: Sequence[Job], moments: list[float]) -> list[list[int]]:
        """The new ids of each job of a group; `moments` gets the time of each step."""

        def noted(input_ids: Any, scores: Any, **_: Any) -> Any:
            moments.append(time.perf_counter())
            return scores

        given = self.tokenizer([job.prompt for job in group], return_tensors="pt", padding=True)
        with self._torch.inference_mode():
            output = self.model.generate(
                **given, max_new_tokens=max(job.tokens for job in group), do_sample=False,
                logits_processor=[noted], pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
        return [row[given["input_ids"].shape[1] :].tolist() for row in output]


# -- the server -----------------------------------------------------------------------------------------------


class Server:
    """`neuron-port serve` in a process of its own."""

    def __init__(self, bundle: Path, options: Sequence[str]) -> None:
        command = [sys.executable, "-m", "neuron_port.cli", "serve", str(bundle), "--port", "0", *options]
        self._lines: list[str] = []
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        ready = threading.Event()

        def read() -> None:
            for line in self.process.stderr or ():
                self._lines.append(line.rstrip())
                if "is ready" in line:
                    ready.set()
            ready.set()

        threading.Thread(target=read, daemon=True).start()
        ready.wait()
        found = re.search(r"http://\S+/v1", "\n".join(self._lines))
        if found is None or self.process.poll() is not None:
            raise SystemExit("\n".join(self._lines) or "the server did not start")
        self.url = found.group()

    def processor_seconds(self) -> float:
        """User and system time of the server so far (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=3600)

    def run(self, jobs: Sequence[Job], clients: int) -> tuple[Timing, list[str]]:
        """All jobs by `clients` concurrent streaming clients, each of which takes the next job when it is done."""
        client = self.client()
        model = client.models.list().data[0].id
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(jobs)):
            todo.put(number)
        texts, firsts = [""] * len(jobs), [0.0] * len(jobs)
        counts = [0] * len(jobs)
        failures: list[BaseException] = []

        def work() -> None:
            while True:
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    texts[number], moment, counts[number] = stream(client, model, jobs[number])
                    firsts[number] = moment - started
                except Exception as error:  # told below: a thread's exception would be lost
                    failures.append(error)
                    return

        before = self.processor_seconds()
        started = time.perf_counter()
        threads = [threading.Thread(target=work) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise SystemExit(f"{len(failures)} clients failed: {failures[0]!r}")
        seconds = time.perf_counter() - started
        used = self.processor_seconds() - before
        return Timing(f"neuron-port, {clients} clients", seconds, used, sum(counts), firsts), texts


def stream(client: Any, model: str, job: Job) -> tuple[str, float, int]:
    """(text, time of the first piece, tokens) of one streamed completion."""
    pieces, first, tokens = [], 0.0, 0
    chunks = client.completions.create(
        model=model, prompt=job.prompt, max_tokens=job.tokens, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    for chunk in chunks:
        first = first or time.perf_counter()
        if chunk.choices:
            pieces.append(chunk.choices[0].text)
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    return "".join(pieces), first, tokens


# -- what is shown --------------------------------------------------------------------------------------------


def compare(what: str, got: Sequence[str], wanted: Sequence[str], jobs: Sequence[Job]) -> bool:
    """Print how many texts are the reference's, and the first that is not."""
    wrong = [number for number, pair in enumerate(zip(got, wanted, strict=True)) if pair[0] != pair[1]]
    print(f"{what}: {len(got) - len(wrong)} of {len(got)} completions are transformers' own")
    for number in wrong[:3]:
        print(f"  prompt {jobs[number].prompt!r}\n    got    {got[number]!r}\n    wanted {wanted[number]!r}")
    return not wrong


def show(timings: Sequence[Timing]) -> None:
    """One line for each way of serving, and the first one's ratios to the others."""
    print(
        f"\n{'':34}{'wall s':>9}{'cpu s':>9}{'tokens/s':>10}{'first token s: mean':>21}{'median':>9}{'last':>9}"
    )
    for timing in timings:
        firsts = sorted(timing.first_token_seconds)
        mean, median, last = sum(firsts) / len(firsts), firsts[len(firsts) // 2], firsts[-1]
        print(
            f"{timing.name:34}{timing.wall_seconds:9.1f}{timing.processor_seconds:9.1f}"
            f"{timing.tokens_per_second:10.1f}{mean:21.2f}{median:9.2f}{last:9.2f}"
        )
    served, *others = timings
    for other in others:
        sooner = sum(other.first_token_seconds) / sum(served.first_token_seconds)
        throughput = served.tokens_per_second / other.tokens_per_second
        processor = other.processor_seconds / other.tokens / (served.processor_seconds / served.tokens)
        print(
            f"served against {other.name}: throughput x{throughput:.2f}, first token x{sooner:.2f} sooner, "
            f"processor time per token x{processor:.2f} less"
        )


def drain(server: Server, jobs: Sequence[Job], wanted: Sequence[str]) -> bool:
    """SIGTERM while streams run: all of them end as they should, and the server exits with 0."""
    client, texts = server.client(), [""] * len(jobs)
    model = client.models.list().data[0].id
    begun = threading.Semaphore(0)

    def work(number: int) -> None:
        job = jobs[number]
        for chunk in client.completions.create(
            model=model, prompt=job.prompt, max_tokens=job.tokens, temperature=0, stream=True
        ):
            if not texts[number]:
                begun.release()
            texts[number] += chunk.choices[0].text

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    begun.acquire()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    code = server.process.wait(120)
    print(f"exit code after SIGTERM: {code}")
    return compare("drained", texts, wanted, jobs) and code == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48, help="of the longest completion")
    parser.add_argument("--same-length", action="store_true", help="all completions have --tokens tokens")
    parser.add_argument("--soak", type=int, default=0, help="further requests, compared but not timed")
    options = parser.parse_args()
    jobs = make_jobs(options.requests, options.tokens, same_length=options.same_length)
    reference = Transformers(options.bundle)
    server = Server(options.bundle, ["--drain-seconds", "600"])
    try:
        reference.run(jobs[:1], 1)
        server.run(
            jobs[: options.clients], options.clients
        )  # the first calls of both pay for what is done once
        steps: list[Callable[[], tuple[Timing, list[str]]]] = [
            lambda: server.run(jobs, options.clients), lambda: reference.run(jobs, 1),
            lambda: reference.run(jobs, options.clients),
        ]  # fmt: skip
        (served, texts), (alone, wanted), (batched, _) = (step() for step in steps)
        good = compare("served", texts, wanted, jobs)
        show([served, alone, batched])
        if options.soak:
            numbers = [number % len(jobs) for number in range(options.soak)]
            _, again = server.run([jobs[number] for number in numbers], options.clients)
            good &= compare("soak", again, [wanted[number] for number in numbers], [jobs[n] for n in numbers])
        good &= drain(server, jobs[: options.clients], wanted[: options.clients])
    finally:
        server.process.kill()
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
