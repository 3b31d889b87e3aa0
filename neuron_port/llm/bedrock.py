"""Amazon Bedrock through boto3's `converse_stream` and `converse`; region and credentials as boto3 finds them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import boto3
import botocore.config
import botocore.exceptions
import urllib3.exceptions

from neuron_port.llm.chat_format import Heard, folded
from neuron_port.llm.errors import LanguageModelError, MissingKeyError, ModelNotFoundError
from neuron_port.llm.failures import Endpoint, estimated_usage
from neuron_port.llm.messages import MayRetry, Message, OnText, Price, Reply, Request, Usage
from neuron_port.llm.quirks import ModelQuirks, QuirkMemory, rejected_parameter
from neuron_port.llm.retry import RetryPolicy, Say, with_retries
from neuron_port.llm.settings import (
    CONNECT_TIMEOUT_SECONDS,
    IDLE_TIMEOUT_SECONDS,
    PROBE_OUTPUT_TOKENS,
    TOTAL_TIMEOUT_SECONDS,
)

# Bedrock's error codes as the HTTP statuses that mean the same.
# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html#API_runtime_Converse_Errors
STATUSES = {
    "ThrottlingException": 429,
    "TooManyRequestsException": 429,
    "ServiceQuotaExceededException": 402,
    "AccessDeniedException": 403,
    "UnrecognizedClientException": 401,
    "InvalidSignatureException": 401,
    "ExpiredTokenException": 401,
    "ResourceNotFoundException": 404,
    "ValidationException": 400,
    "ModelTimeoutException": 408,
    "ModelErrorException": 500,
    "ModelStreamErrorException": 500,
    "InternalServerException": 500,
    "ServiceUnavailableException": 503,
    "ModelNotReadyException": 503,
}
STOP_REASONS = {"max_tokens": "length", "guardrail_intervened": "content_filter"}
KEY_CURE = (
    "Give boto3 credentials that may call bedrock:InvokeModel: `aws configure`, a role, "
    "or AWS_BEARER_TOKEN_BEDROCK."
)
NETWORK_ERRORS = (
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.HTTPClientError,
    urllib3.exceptions.HTTPError,
)


class BedrockModel:
    """A `LanguageModel` on Amazon Bedrock. Thread-safe; `close` frees its connections.

    Args:
        model: a model's id or an inference profile's: "anthropic.claude-...", "us.amazon.nova-pro-v1:0".
        known_models: names to suggest when there is none of that id.
        endpoint_url: for tests and private endpoints; None: AWS's own for the region.
    """

    def __init__(
        self,
        model: str,
        *,
        price: Price | None,
        quirks: QuirkMemory,
        known_models: tuple[str, ...] = (),
        endpoint_url: str | None = None,
        retry: RetryPolicy | None = None,
        say: Say | None = None,
        idle_timeout_seconds: float = IDLE_TIMEOUT_SECONDS,
        total_timeout_seconds: float = TOTAL_TIMEOUT_SECONDS,
    ) -> None:
        self._model = model
        self._price = price
        # By the model alone: regions and private endpoints lead to the same models.
        self._quirks = ModelQuirks(quirks, "bedrock", model, say)
        self._known_models = known_models
        self._endpoint_url = endpoint_url
        self._retry = retry or RetryPolicy()
        self._say = say
        self._idle_timeout_seconds = idle_timeout_seconds
        self._total_timeout_seconds = total_timeout_seconds
        self._lock = threading.Lock()
        self._client: Any = None
        self._endpoint = Endpoint(url="Amazon Bedrock", model=model, key_cure=KEY_CURE)

    @property
    def name(self) -> str:
        return f"bedrock:{self._model}"

    @property
    def price(self) -> Price | None:
        return self._price

    def complete(
        self, request: Request, *, on_text: OnText | None = None, may_retry: MayRetry | None = None
    ) -> Reply:
        """One reply. After a failed attempt `on_text` hears the new attempt's text from its start."""
        return with_retries(lambda: self._attempt(request, on_text), self._retry, self._say, may_retry)

    def probe(self) -> Reply:
        """A reply of a few tokens."""
        question = Message(role="user", content="Reply with the word OK.")
        request = Request(messages=(question,), max_output_tokens=PROBE_OUTPUT_TOKENS, purpose="probe")
        return with_retries(lambda: self._attempt(request, None), self._retry.hurried(), self._say)

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _connect(self) -> Any:
        """The boto3 client, made once: making one costs tenths of a second, and it may be shared by threads."""
        with self._lock:
            if self._client is None:
                settings = botocore.config.Config(
                    retries={"total_max_attempts": 1},
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    read_timeout=self._idle_timeout_seconds,
                )
                # A session of its own: boto3's default session may not be shared by threads.
                session = boto3.session.Session()
                self._client = session.client(
                    "bedrock-runtime", endpoint_url=self._endpoint_url, config=settings
                )
                where = self._endpoint_url or f"Amazon Bedrock in {self._client.meta.region_name}"
                self._endpoint = Endpoint(url=where, model=self._model, key_cure=KEY_CURE)
            return self._client

    def _attempt(self, request: Request, on_text: OnText | None) -> Reply:
        """Ask once; again at once without a parameter that the model rejects. Each can be rejected only once."""
        try:
            client = self._connect()
        except botocore.exceptions.NoRegionError:
            raise LanguageModelError(
                f"No AWS region is set for `{self.name}`.",
                hint="Set AWS_REGION, for instance to us-east-1, or run `aws configure`.",
            ) from None
        except botocore.exceptions.BotoCoreError as error:
            raise LanguageModelError(
                f"boto3 cannot be set up for `{self.name}`{self._endpoint.quote(str(error))}.",
                hint="Check AWS_PROFILE and the files in ~/.aws.",
            ) from None
        rejected = self._quirks.rejected
        while True:
            sent, parameters = self._parameters(request, rejected)
            try:
                reply = self._ask(client, request, parameters, on_text, stream="stream" in sent)
            except botocore.exceptions.ClientError as error:
                code = error.response.get("Error", {}).get("Code", "")
                message = error.response.get("Error", {}).get("Message", str(error))
                name = rejected_parameter(message, None, sent) if code == "ValidationException" else None
                if name is None:
                    metadata = error.response.get("ResponseMetadata", {})
                    raise self._from_code(code, message, metadata) from None
                self._quirks.tell(f"{self.name} does not take `{name}`; asking again without.")
                rejected = rejected | {name}
                continue
            self._quirks.learn(rejected)
            return reply

    def _parameters(self, request: Request, rejected: frozenset[str]) -> tuple[list[str], dict[str, Any]]:
        """The names of what can be rejected, and the arguments of the call."""
        messages = folded(request.messages) if "system" in rejected else request.messages
        inference: dict[str, Any] = {"maxTokens": request.max_output_tokens}
        sent = [name for name in ("stream",) if name not in rejected]
        if request.temperature is not None and "temperature" not in rejected:
            inference["temperature"] = request.temperature
            sent.append("temperature")
        parameters: dict[str, Any] = {
            "modelId": self._model,
            "inferenceConfig": inference,
            "messages": [
                {"role": message.role, "content": [{"text": message.content}]}
                for message in messages
                if message.role != "system"
            ],
        }
        system = [{"text": message.content} for message in messages if message.role == "system"]
        if system:
            parameters["system"] = system
            sent.append("system")
        return sent, parameters

    def _ask(
        self,
        client: Any,
        request: Request,
        parameters: Mapping[str, Any],
        on_text: OnText | None,
        *,
        stream: bool,
    ) -> Reply:
        started = time.monotonic()
        heard = Heard(on_text)
        try:
            if stream:
                self._read_stream(client.converse_stream(**parameters), heard, request, started)
            else:
                self._read_whole(client.converse(**parameters), heard)
        except botocore.exceptions.EventStreamError as error:  # a ClientError, but in the middle of a reply
            details = error.response.get("Error", {})
            code = str(details.get("Code", ""))
            ours = self._from_code(code[:1].upper() + code[1:], str(details.get("Message", error)), {})
            ours.usage = estimated_usage(request.messages, heard.text)
            raise ours from None
        except NETWORK_ERRORS as error:
            self._fail(error, request, heard)
        if heard.finish is None:
            usage = heard.usage or estimated_usage(request.messages, heard.text)
            raise self._endpoint.truncated(heard.text, usage, "the stream ended without a stop reason")
        return Reply(
            text=heard.text,
            usage=heard.usage or estimated_usage(request.messages, heard.text),
            finish=heard.finish,
            model=self._model,
            seconds=time.monotonic() - started,
        )

    def _read_whole(self, response: Mapping[str, Any], heard: Heard) -> None:
        message = response.get("output", {}).get("message")
        if message is None:
            raise self._endpoint.malformed("JSON without a message")
        for block in message.get("content", []):
            heard.add(block.get("text", ""))
        heard.usage = _usage(response.get("usage"))
        heard.finished(STOP_REASONS.get(response.get("stopReason", ""), "stop"))

    def _read_stream(
        self, response: Mapping[str, Any], heard: Heard, request: Request, started: float
    ) -> None:
        events = response["stream"]
        try:
            for event in events:
                heard.add(event.get("contentBlockDelta", {}).get("delta", {}).get("text", ""))
                if "messageStop" in event:
                    heard.finished(STOP_REASONS.get(event["messageStop"].get("stopReason", ""), "stop"))
                heard.usage = _usage(event.get("metadata", {}).get("usage")) or heard.usage
                if time.monotonic() - started > self._total_timeout_seconds:
                    usage = estimated_usage(request.messages, heard.text)
                    raise self._endpoint.slow(self._total_timeout_seconds, usage)
        finally:
            events.close()

    def _from_code(self, code: str, message: str, metadata: Mapping[str, Any]) -> LanguageModelError:
        headers = {name.lower(): value for name, value in metadata.get("HTTPHeaders", {}).items()}
        status = STATUSES.get(code) or metadata.get("HTTPStatusCode") or 500
        if (status == 400 and "model identifier" in message) or status == 404:
            found = self._endpoint.model_not_found(self._known_models, message)
            hint = found.hint if found.hint and found.hint.startswith("Did you mean") else None
            cure = "Check the id, the region, and that your account has access to the model in the Bedrock console."
            return ModelNotFoundError(found.message, hint=f"{hint} {cure}" if hint else cure)
        return self._endpoint.from_status(status, message, headers=headers)

    def _fail(self, error: Exception, request: Request, heard: Heard) -> NoReturn:
        """Raise our error for one of the network's or boto3's."""
        began = estimated_usage(request.messages, heard.text)
        ours: LanguageModelError
        if isinstance(
            error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.CredentialRetrievalError)
        ):
            ours = MissingKeyError("boto3 finds no AWS credentials for Amazon Bedrock.", hint=KEY_CURE)
        elif isinstance(error, botocore.exceptions.ConnectTimeoutError):
            ours = self._endpoint.unreachable("no answer to the attempt to connect")
        elif isinstance(error, (botocore.exceptions.ReadTimeoutError, urllib3.exceptions.ReadTimeoutError)):
            ours = self._endpoint.silent(self._idle_timeout_seconds, began)
        elif isinstance(error, (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError)):
            ours = self._endpoint.unreachable(str(error))
        elif heard.text or isinstance(error, urllib3.exceptions.HTTPError):
            ours = self._endpoint.truncated(heard.text, began, str(error))
        else:
            ours = self._endpoint.malformed(f"what boto3 cannot read: {error}")
        raise ours from None


def _usage(given: Mapping[str, Any] | None) -> Usage | None:
    """Bedrock counts tokens read from its cache apart from the input's; ours are a part of them."""
    if not given:
        return None
    cached = given.get("cacheReadInputTokens") or 0
    return Usage(
        input_tokens=given["inputTokens"] + cached,
        output_tokens=given["outputTokens"],
        cached_input_tokens=cached,
    )
