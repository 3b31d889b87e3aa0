"""Any endpoint that speaks OpenAI's chat completions, through the `openai` package.

The package's own retries are off; `retry.py` decides. Replies are streamed where the endpoint can, so that silence is
noticed and progress is heard. Each call has its own connection: nothing is shared between threads or outlives a call.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import httpx
import openai

from neuron_port.llm.chat_format import (
    Heard,
    complaint_in,
    complaint_of,
    folded,
    status_in,
    text_of,
    usage_of,
)
from neuron_port.llm.deadline import Deadline, OutOfTimeError
from neuron_port.llm.errors import LanguageModelError
from neuron_port.llm.failures import Endpoint, estimated_usage
from neuron_port.llm.messages import MayRetry, Message, OnText, Price, Reply, Request
from neuron_port.llm.quirks import LIMITS, ModelQuirks, QuirkMemory, rejected_parameter
from neuron_port.llm.retry import RetryPolicy, Say, with_retries
from neuron_port.llm.settings import (
    CONNECT_TIMEOUT_SECONDS,
    IDLE_TIMEOUT_SECONDS,
    OPENAI_URL,
    PROBE_OUTPUT_TOKENS,
    TOTAL_TIMEOUT_SECONDS,
)
from neuron_port.types import digest


class OpenAICompatible:
    """A `LanguageModel` behind an OpenAI-compatible endpoint. Thread-safe.

    Args:
        model: the name that is sent.
        endpoint: its address, and how to speak about it.
        base_url: where requests go; it may hold a user name and password that `endpoint.url` leaves out.
        name: what was asked for, as `LanguageModel.name`.
        quirks: where rejected parameters are remembered.
        say: hears a sentence for each wait and each parameter that is left out.
        idle_timeout_seconds, total_timeout_seconds: of one attempt: without a byte, and altogether.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        base_url: str,
        api_key: str,
        name: str,
        price: Price | None,
        quirks: QuirkMemory,
        retry: RetryPolicy | None = None,
        say: Say | None = None,
        idle_timeout_seconds: float = IDLE_TIMEOUT_SECONDS,
        total_timeout_seconds: float = TOTAL_TIMEOUT_SECONDS,
    ) -> None:
        self._endpoint = endpoint
        self._base_url = base_url
        self._api_key = api_key
        self._name = name
        self._price = price
        self._quirks = ModelQuirks(quirks, endpoint.url, endpoint.model, say)
        self._retry = retry or RetryPolicy()
        self._say = say
        self._idle_timeout_seconds = idle_timeout_seconds
        self._total_timeout_seconds = total_timeout_seconds

    @property
    def name(self) -> str:
        return self._name

    @property
    def price(self) -> Price | None:
        return self._price

    def complete(
        self, request: Request, *, on_text: OnText | None = None, may_retry: MayRetry | None = None
    ) -> Reply:
        """One reply. After a failed attempt `on_text` hears the new attempt's text from its start."""
        return self._complete(request, on_text, self._retry, may_retry)

    def probe(self) -> Reply:
        """A reply of a few tokens. A reasoning model may use them up before its first word: that is no failure."""
        question = Message(role="user", content="Reply with the word OK.")
        request = Request(messages=(question,), max_output_tokens=PROBE_OUTPUT_TOKENS, purpose="probe")
        return self._complete(request, None, self._retry.hurried())

    def models(self) -> tuple[str, ...]:
        """The names that the endpoint lists; none when it lists none, or does not answer that."""
        with self._client() as client:
            return _listed_models(client)

    def _complete(
        self,
        request: Request,
        on_text: OnText | None,
        retry: RetryPolicy,
        may_retry: MayRetry | None = None,
    ) -> Reply:
        key = request.key(self._name)
        with self._client() as client:
            return with_retries(
                lambda: self._attempt(client, request, key, on_text), retry, self._say, may_retry
            )

    def _client(self) -> openai.OpenAI:
        timeout = httpx.Timeout(
            self._idle_timeout_seconds, connect=min(CONNECT_TIMEOUT_SECONDS, self._idle_timeout_seconds)
        )
        hooks: dict[str, list[Callable[..., Any]]] = {"response": [Deadline(self._total_timeout_seconds)]}
        return openai.OpenAI(
            base_url=self._base_url,
            api_key=self._api_key,
            max_retries=0,
            timeout=timeout,
            # A connection on which something went wrong is not used again.
            http_client=openai.DefaultHttpxClient(
                event_hooks=hooks, limits=httpx.Limits(max_keepalive_connections=0)
            ),
        )

    def _attempt(self, client: openai.OpenAI, request: Request, key: str, on_text: OnText | None) -> Reply:
        """Ask once; again at once without a parameter that the endpoint rejects. Each can be rejected only once."""
        rejected = self._quirks.rejected
        while True:
            sent, parameters = self._parameters(request, rejected)
            try:
                reply = self._ask(client, request, parameters, _idempotency_key(key, rejected), on_text)
            except _EmptyStreamError:
                name = "stream"
            except openai.APIStatusError as error:
                name = self._rejected_in(error, client, sent, rejected)
            else:
                self._quirks.learn(rejected)
                return reply
            self._quirks.tell(f"{self._name} does not take `{name}`; asking again without.")
            rejected = rejected | {name}

    def _rejected_in(
        self, error: openai.APIStatusError, client: openai.OpenAI, sent: list[str], rejected: frozenset[str]
    ) -> str:
        """The parameter that the endpoint complains of; our error when it complains of something else."""
        message, code, parameter = complaint_of(error.response.text)
        if error.status_code in (400, 422):
            name = rejected_parameter(message, parameter, sent)
            # Without any token limit the worst case of a call would have no bound.
            if name is not None and not rejected | {name} >= set(LIMITS):
                return name
        raise self._endpoint.from_status(
            error.status_code,
            message,
            code=code,
            headers={name.lower(): value for name, value in error.response.headers.items()},
            models=lambda: _listed_models(client),
        ) from None  # the cause may quote the key

    def _parameters(self, request: Request, rejected: frozenset[str]) -> tuple[list[str], dict[str, Any]]:
        """The names of what can be rejected, and the arguments of the call."""
        preferred = LIMITS if self._base_url.rstrip("/") == OPENAI_URL else tuple(reversed(LIMITS))
        limit = next(name for name in preferred if name not in rejected)
        parameters: dict[str, Any] = {"model": self._endpoint.model, limit: request.max_output_tokens}
        if request.temperature is not None and "temperature" not in rejected:
            parameters["temperature"] = request.temperature
        if "stream" not in rejected:
            parameters["stream"] = True
            if "stream_options" not in rejected:
                parameters["stream_options"] = {"include_usage": True}
        messages = folded(request.messages) if "system" in rejected else request.messages
        parameters["messages"] = [{"role": message.role, "content": message.content} for message in messages]
        has_system = any(message.role == "system" for message in messages)
        return [*parameters, *["system"] * has_system], parameters

    def _ask(
        self,
        client: openai.OpenAI,
        request: Request,
        parameters: Mapping[str, Any],
        idempotency_key: str,
        on_text: OnText | None,
    ) -> Reply:
        started = time.monotonic()
        heard = Heard(on_text)
        create: Any = client.chat.completions.with_raw_response.create
        waiting = self._idle_timeout_seconds if "stream" in parameters else self._total_timeout_seconds
        try:
            raw = create(
                **parameters,
                extra_headers={"Idempotency-Key": idempotency_key},
                timeout=httpx.Timeout(waiting, connect=min(CONNECT_TIMEOUT_SECONDS, waiting)),
            )
            response: httpx.Response = raw.http_response
            if "json" in response.headers.get("content-type", "") or "stream" not in parameters:
                response.read()
                self._read_whole(response.text, heard)
            elif "html" in response.headers.get("content-type", ""):
                response.read()
                raise self._endpoint.malformed(f"a web page: {response.text[:120]}")
            else:
                with raw.parse() as stream:
                    self._read_stream(stream, heard)
        except openai.APIStatusError:
            raise  # `_attempt` looks whether it names a parameter
        except (openai.APIError, httpx.HTTPError, ValueError) as error:
            self._fail(error, request, heard)
        if heard.finish is None:
            usage = heard.usage or estimated_usage(request.messages, heard.text)
            raise self._endpoint.truncated(heard.text, usage, "the stream ended without a finish")
        return Reply(
            text=heard.text,
            usage=heard.usage or estimated_usage(request.messages, heard.text),
            finish=heard.finish,
            model=heard.model or self._endpoint.model,
            seconds=time.monotonic() - started,
        )

    def _read_whole(self, text: str, heard: Heard) -> None:
        try:
            body = json.loads(text)
        except ValueError:
            what = "a web page" if text.lstrip().startswith("<") else "text that is not JSON"
            raise self._endpoint.malformed(f"{what}: {text[:120]}") from None
        if not isinstance(body, dict) or not body.get("choices"):
            if isinstance(body, dict) and body.get("error"):  # some servers put errors under status 200
                complaint, code, _ = complaint_in(body)
                raise self._endpoint.from_status(status_in(code), complaint, code=code)
            raise self._endpoint.malformed(f"JSON without choices: {text[:120]}")
        choice = body["choices"][0]
        message = choice.get("message") or {}
        heard.add(text_of(message.get("content")))
        heard.add(message.get("refusal") or "", refusal=True)
        heard.finished(choice.get("finish_reason") or "stop")
        heard.model = body.get("model")
        heard.usage = usage_of(body.get("usage"))

    def _read_stream(self, stream: Iterator[Any], heard: Heard) -> None:
        events = 0
        for chunk in stream:
            events += 1
            heard.model = getattr(chunk, "model", None) or heard.model
            usage = getattr(chunk, "usage", None)
            heard.usage = usage_of(usage.to_dict() if usage is not None else None) or heard.usage
            for choice in (getattr(chunk, "choices", None) or [])[:1]:
                delta = choice.delta
                heard.add(text_of(getattr(delta, "content", None)))
                heard.add(getattr(delta, "refusal", None) or "", refusal=True)
                if choice.finish_reason:
                    heard.finished(choice.finish_reason)
        if events == 0:
            raise _EmptyStreamError

    def _fail(self, error: Exception, request: Request, heard: Heard) -> NoReturn:
        """Raise our error for one of the network's or the package's; the cause is dropped, it may quote the key."""
        endpoint = self._endpoint
        cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
        began = estimated_usage(request.messages, heard.text)
        ours: LanguageModelError
        if isinstance(cause, OutOfTimeError):
            ours = endpoint.slow(self._total_timeout_seconds, began)
        elif isinstance(cause, httpx.ConnectTimeout):
            ours = endpoint.unreachable("no answer to the attempt to connect")
        elif isinstance(cause, httpx.TimeoutException):
            ours = endpoint.silent(self._idle_timeout_seconds, began)
        elif isinstance(cause, httpx.HTTPError) and (heard.text or "message body" in str(cause)):
            ours = endpoint.truncated(heard.text, began, str(cause))
        elif isinstance(error, openai.APIConnectionError) or isinstance(cause, httpx.HTTPError):
            ours = endpoint.unreachable(_root(cause or error))
        elif isinstance(error, openai.APIError):  # an error event in the middle of a stream
            message, code, _ = complaint_in({"error": error.body or error.message})
            ours = endpoint.from_status(status_in(code), message, code=code)
            ours.usage = began
        else:
            ours = endpoint.malformed(f"a stream that is not JSON: {error}", began)
        raise ours from None


class _EmptyStreamError(Exception):
    """A stream without one event. Some servers end it so, with status 200, where a plain request hears the reason."""


def _idempotency_key(key: str, rejected: frozenset[str]) -> str:
    """The same question asked again has the same key, after a crash too; other parameters make another question."""
    return f"neuron-port-{key}" + (f"-{digest(sorted(rejected))}" if rejected else "")


def _listed_models(client: openai.OpenAI) -> tuple[str, ...]:
    try:
        return tuple(model.id for model in client.models.list().data if model.id)
    except (openai.OpenAIError, httpx.HTTPError, ValueError, AttributeError, TypeError):
        return ()  # a list of names only serves to suggest some


def _root(error: BaseException) -> str:
    """The innermost reason: "Connection refused", not "Connection error"."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error)
