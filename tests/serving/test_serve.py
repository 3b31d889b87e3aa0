"""The server over HTTP with a backend whose every token depends on all before it: streams, queue, failures, draining."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from neuron_port.errors import UsageError
from neuron_port.serving.server import Stop, run
from neuron_port.serving.service import Service
from neuron_port.serving.settings import Settings
from tests.serving.conftest import HashingGenerator, Running, expected_text, fake_bundle

Serve = Callable[..., Running]


def streamed(client: openai.OpenAI, prompt: str, count: int, **options: Any) -> str:
    chunks = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=count, temperature=0, stream=True, **options
    )
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that other threads do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_sixteen_clients_never_get_each_others_tokens(serve: Serve) -> None:
    """200 streams of 16 clients over 4 rows: each text is the one that its prompt alone leads to."""
    server = serve(HashingGenerator(), max_queue=64)
    prompts = [f"{'word ' * (number % 7)}number {number}" for number in range(200)]
    counts = [1 + number % 23 for number in range(200)]
    client = server.client()
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda job: streamed(client, *job), zip(prompts, counts, strict=True)))
    assert texts == [expected_text(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]


def test_whole_and_streamed_answers_are_the_same(serve: Serve) -> None:
    """The same request with and without streaming has one text, one finish reason and one usage."""
    client = serve(HashingGenerator(end_after=20)).client()
    whole = client.completions.create(model="tiny", prompt="hello", max_tokens=30, temperature=0)
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt="hello",
            max_tokens=30,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert whole.choices[0].text == expected_text("hello", 30, end_after=20)
    assert whole.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 16)  # 15 letters and the end


@pytest.mark.parametrize("count", [3, 16, 17, 40])
def test_prompts_longer_than_a_bucket_go_on_token_by_token(serve: Serve, count: int) -> None:
    """Prompts below, at and beyond the largest bucket (16) are continued alike."""
    client = serve().client()
    assert streamed(client, "x" * count, 5) == expected_text("x" * count, 5)


def test_the_caches_end_is_a_finish_reason(serve: Serve) -> None:
    """A completion that reaches the last cache slot ends with `length`; all slots were used."""
    client = serve(HashingGenerator(context=32)).client()
    answer = client.completions.create(model="tiny", prompt="x" * 30, max_tokens=50, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text == expected_text("x" * 30, 3)


def test_stop_strings_end_a_completion(serve: Serve) -> None:
    """The text ends before the stop, and the row does not go on."""
    client = serve().client()
    full = expected_text("hello", 20)
    answer = client.completions.create(
        model="tiny", prompt="hello", max_tokens=20, temperature=0, stop=full[7:9]
    )
    assert answer.choices[0].text == full[: full.index(full[7:9])]
    assert answer.choices[0].finish_reason == "stop"


def test_choices_prompts_and_echo(serve: Serve) -> None:
    """Two prompts with two choices each are four choices in order; echo puts the prompt before them."""
    client = serve().client()
    answer = client.completions.create(
        model="tiny", prompt=["ab", "cde"], n=2, max_tokens=4, temperature=0, echo=True
    )
    wanted = [prompt + expected_text(prompt, 4) for prompt in ("ab", "ab", "cde", "cde")]
    assert [choice.text for choice in answer.choices] == wanted
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5


def test_token_prompts_and_logprobs(serve: Serve) -> None:
    """Ids are taken as prompts; log-probabilities have one entry for each token of the text."""
    client = serve().client()
    answer = client.completions.create(
        model="tiny", prompt=list(b"hello"), max_tokens=4, temperature=0, logprobs=2
    )
    text, logprobs = answer.choices[0].text, answer.choices[0].logprobs
    assert text == expected_text("hello", 4)
    assert logprobs is not None
    assert logprobs.tokens == list(text)
    assert logprobs.text_offset == [0, 1, 2, 3]
    assert all(len(best) == 2 for best in logprobs.top_logprobs or [])
    assert logprobs.token_logprobs == pytest.approx([0.0] * 4, abs=1e-5)


def test_chat_goes_through_the_models_template(serve: Serve) -> None:
    """The prompt is what the tokenizer's template makes of the messages; the first chunk has the role."""
    client = serve(HashingGenerator(context=256)).client()
    messages: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    rendered = "<|system|>Be kind.<|end|><|user|>hi<|end|><|assistant|>"
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=6, temperature=0
    )
    assert answer.choices[0].message.content == expected_text(rendered, 6)
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=6,
            temperature=0,
            stream=True,
            logprobs=True,
            top_logprobs=1,
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected_text(rendered, 6)
    told = [entry for chunk in chunks for entry in (chunk.choices[0].logprobs.content or [])]  # type: ignore[union-attr]
    assert "".join(entry.token for entry in told) == expected_text(rendered, 6)


def test_a_model_without_template_refuses_chats(serve: Serve, tmp_path: Any) -> None:
    """Where the tokenizer has no chat template, the refusal says what to use instead."""
    from tests.serving.tiny import write_tokenizer

    client = serve(folder=write_tokenizer(tmp_path, template=False)).client()
    with pytest.raises(openai.BadRequestError, match="no chat template") as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    assert refused.value.code == "no_chat_template"


def test_a_full_queue_refuses_and_recovers(serve: Serve) -> None:
    """Beyond rows and queue a request gets 429 with Retry-After; those that were taken are all answered."""
    gate = threading.Event()
    server = serve(HashingGenerator(rows=2, gate=lambda: gate.wait(20)), max_queue=2)
    client = server.client()
    with ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(streamed, client, f"prompt {number}", 5) for number in range(2)]
        until(lambda: server.service.worker._busy())
        until(lambda: not server.service.worker._waiting)
        taken += [pool.submit(streamed, client, f"prompt {number}", 5) for number in range(2, 4)]
        until(lambda: len(server.service.worker._waiting) == 2)
        with pytest.raises(openai.RateLimitError) as refused:
            streamed(client, "one too many", 5)
        assert refused.value.response.headers["retry-after"] == "1"
        gate.set()
        assert [future.result() for future in taken] == [expected_text(f"prompt {n}", 5) for n in range(4)]
    assert streamed(client, "later", 5) == expected_text("later", 5)


def test_a_client_that_leaves_frees_its_row(serve: Serve) -> None:
    """A disconnect in the middle of a stream, and one while waiting for a whole answer, end the sequence."""
    server = serve(HashingGenerator(rows=1, context=100_000, gate=lambda: time.sleep(0.002)))
    url, body = (
        f"{server.url}/completions",
        {"model": "tiny", "prompt": "x", "max_tokens": 90_000, "temperature": 0},
    )
    with httpx.stream("POST", url, json=body | {"stream": True}) as response:
        next(response.iter_lines())
    until(lambda: server.service.worker.idle)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body, timeout=0.5)
    until(lambda: server.service.worker.idle)
    assert streamed(server.client(), "next", 4) == expected_text("next", 4)


def test_a_client_that_does_not_read_is_given_up(serve: Serve) -> None:
    """The engine does not wait: beyond the bound of unread pieces the stream ends, and the others go on."""
    server = serve(HashingGenerator(rows=2, context=10_000_000), stream_events=64, send_seconds=60)
    body = {"model": "tiny", "prompt": "x", "max_tokens": 9_000_000, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{server.url}/completions", json=body, timeout=60):
        assert streamed(server.client(), "other", 4) == expected_text("other", 4)
        until(lambda: server.service.worker.idle, 60)
    assert (
        'finished_sequences_total{reason="slow client"} 1.0' in server.service.metrics.exposition().decode()
    )


def test_a_request_has_a_time_limit(serve: Serve) -> None:
    """Beyond `request_seconds` a request ends with 504, and its row is free."""
    server = serve(HashingGenerator(context=100_000, gate=lambda: time.sleep(0.01)), request_seconds=0.3)
    with pytest.raises(openai.InternalServerError, match=r"longer than 0.3 seconds") as late:
        server.client().completions.create(model="tiny", prompt="x", max_tokens=90_000)
    assert late.value.status_code == 504
    until(lambda: server.service.worker.idle)


def test_a_failing_step_fails_its_requests_alone(serve: Serve) -> None:
    """An exception in a step is a 500 for what was running; the next request is served as if nothing had been."""
    server = serve(HashingGenerator(broken=frozenset({2})))
    with pytest.raises(openai.InternalServerError, match="step of the model failed"):
        server.client().completions.create(model="tiny", prompt="x", max_tokens=9)
    assert streamed(server.client(), "after", 6) == expected_text("after", 6)


def test_an_error_in_a_stream_is_an_event(serve: Serve) -> None:
    """After the first piece an error comes as an event in OpenAI's shape, and the stream ends."""
    server = serve(HashingGenerator(broken=frozenset({2})))
    with pytest.raises(openai.APIError, match="step of the model failed"):
        streamed(server.client(), "x", 9)


def test_failing_again_and_again_is_said(serve: Serve) -> None:
    """After three failures in a row the server refuses with 503, is neither ready nor live, and still says why."""
    server = serve(HashingGenerator(broken=frozenset(range(100))))
    for _ in range(3):
        with pytest.raises(openai.InternalServerError):
            server.client().completions.create(model="tiny", prompt="x", max_tokens=9)
    with pytest.raises(openai.InternalServerError, match="the device has gone") as refused:
        server.client().completions.create(model="tiny", prompt="x", max_tokens=9)
    assert refused.value.status_code == 503
    health = httpx.get(f"{server.url}/../health")
    assert (health.status_code, health.json()["status"]) == (503, "failed")
    live = httpx.get(f"{server.url}/../health/live")
    assert (live.status_code, live.json()) == (503, {"status": "failed"})


def test_a_backend_that_cannot_be_loaded_ends_the_server(tokenizer_folder: Path) -> None:
    """Our own errors come out as they are, with their exit code; the server does not stay up for nothing."""

    def refuse(*_: object) -> Any:
        raise UsageError("the graphs are not for this machine")

    bundle = fake_bundle(tokenizer_folder, "decode")
    service = Service(bundle, Settings(port=0), make_generator=refuse)
    with pytest.raises(UsageError, match="not for this machine"):
        asyncio.run(run(service, Stop(), announce=lambda line: None))


def test_draining_finishes_what_runs_and_refuses_the_rest(serve: Serve) -> None:
    """Asked to stop, the server completes running and waiting streams; a new request gets 503."""
    gate = threading.Event()
    server = serve(HashingGenerator(rows=1, gate=lambda: gate.wait(20)))
    client = server.client()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(streamed, client, f"prompt {number}", 6) for number in range(2)]
        until(lambda: server.service.worker._busy() and len(server.service.worker._waiting) == 1)
        server.stop()
        until(lambda: server.service.worker.state == "draining")
        with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
            streamed(client, "late", 3)
        assert refused.value.status_code == 503
        assert httpx.get(f"{server.url}/../health").json()["status"] == "draining"
        gate.set()
        assert [future.result() for future in running] == [expected_text(f"prompt {n}", 6) for n in range(2)]


def test_metrics_tell_what_happened(serve: Serve) -> None:
    """Requests by route and status, tokens, and the times to first token and between tokens are counted."""
    server = serve()
    streamed(server.client(), "hello", 7)
    httpx.get(f"{server.url}/nothing")
    text = httpx.get(f"{server.url}/../metrics").text
    for line in (
        "neuron_port_generated_tokens_total 7.0",
        "neuron_port_prompt_tokens_total 5.0",
        'neuron_port_requests_total{route="/v1/completions",status="200"} 1.0',
        'neuron_port_requests_total{route="other",status="404"} 1.0',
        "neuron_port_time_to_first_token_seconds_count 1.0",
        "neuron_port_inter_token_seconds_count 6.0",
        "neuron_port_ready 1.0",
        "neuron_port_rows 4.0",
    ):
        assert line in text, line


def test_models_are_listed(serve: Serve) -> None:
    """The one model is listed and found by name; another name is 404."""
    client = serve().client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "neuron-port"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_events_are_plain_server_sent_events(serve: Serve) -> None:
    """Every event is one line of JSON after `data: `, and the last one is [DONE]."""
    server = serve()
    body = {"model": "tiny", "prompt": "x", "max_tokens": 3, "temperature": 0, "stream": True}
    response = httpx.post(f"{server.url}/completions", json=body)
    lines = [line for line in response.text.split("\n") if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines[:-1])
