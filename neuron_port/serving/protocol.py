"""What clients may ask, as OpenAI's interface names it. Strict: unknown fields and wrong types are refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field

from neuron_port.serving.errors import ApiError, unsupported

Request = TypeVar("Request", bound=pydantic.BaseModel)
Id = Annotated[int, Field(ge=0)]
Prompt = str | list[str] | list[Id] | list[list[Id]]
# Fields of OpenAI's interface that ask for something we do not do. Given with these values they ask for nothing.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "frequency_penalty": (0,), "function_call": ("none",), "functions": (),
    "logit_bias": ({},), "modalities": (["text"],), "parallel_tool_calls": (True, False), "prediction": (),
    "presence_penalty": (0,), "reasoning_effort": (), "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"), "store": (False,), "suffix": ("",), "tool_choice": ("none", "auto"),
    "tools": ([],), "verbosity": (), "web_search_options": (), "moderation": (), "prompt_cache_options": (),
    "prompt_cache_retention": (),
}  # fmt: skip
# Say who asks and why, and change nothing in the answer.
_IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key")


class _Strict(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Sampled(_Strict):
    """What completions and chats have in common."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None  # as vLLM has it; 0: all tokens
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class CompletionRequest(_Sampled):
    """POST /v1/completions."""

    prompt: Prompt
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn of a conversation, in text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """The message as chat templates take it; OpenAI's newer name for the system is theirs for the older one."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text} | ({"name": self.name} if self.name else {})


class ChatRequest(_Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class EmbeddingRequest(_Strict):
    """POST /v1/embeddings."""

    model: str
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


def parse(request: type[Request], body: bytes) -> Request:
    """The request in a body.

    Raises: ApiError (400) that names the first field that is wrong, unknown or asks for what is not supported.
    """
    try:
        fields = json.loads(body.decode())
        if b"\\u" in body:
            json.dumps(
                fields, ensure_ascii=False
            ).encode()  # raises for half a surrogate pair, which is no text
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    known = {name: value for name, value in fields.items() if name in request.model_fields}
    for name, value in fields.items():
        if name not in known and not (name in _IGNORED or value is None or value in _HARMLESS.get(name, ())):
            raise _unknown(name)
    _refuse_parts(fields.get("messages"))
    try:
        return request.model_validate(known)
    except pydantic.ValidationError as error:
        raise _invalid(error) from error


def _unknown(name: str) -> ApiError:
    if name in _HARMLESS:
        return unsupported(name, param=name)
    return ApiError(400, f"Unrecognized request argument: `{name}`", param=name, code="unknown_parameter")


def _refuse_parts(messages: Any) -> None:
    """Name pictures, sounds, tools and other contents of messages, rather than calling them mistyped."""
    if not isinstance(messages, list):
        return
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        place = f"messages.{number}"
        if message.get("role") in ("tool", "function"):
            raise unsupported(f"role: {message['role']}", param=f"{place}.role")
        for name in ("tool_calls", "function_call", "audio"):
            if message.get(name):
                raise unsupported(name, param=f"{place}.{name}")
        for name in ("tool_calls", "function_call", "audio", "refusal"):
            if not message.get(name, True):
                message.pop(name)  # what the openai client repeats of an earlier answer
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") not in ("text", None):
                raise unsupported(f"{part['type']}", param=f"{place}.content")


def _invalid(error: pydantic.ValidationError) -> ApiError:
    """The first finding, at the deepest place: of a union's branches the one that got furthest."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = found[0]
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return ApiError(400, f"You must provide a `{name}` parameter.", param=name, code="missing_parameter")
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or str(part).isidentifier())
    alternatives = list(
        dict.fromkeys(str(item["msg"]) for item in found if item["loc"][:1] == first["loc"][:1])
    )
    return ApiError(
        400, f"Invalid value for `{place or name}`: {'; or '.join(alternatives[:4])}", param=name,
        code="invalid_value",
    )  # fmt: skip


def prompts_of(prompt: Prompt, *, param: str) -> Sequence[str | list[int]]:
    """The prompts of a request, each a text or ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ApiError(400, f"`{param}` must not be empty.", param=param, code="invalid_value")
    if isinstance(prompt[0], int):
        return [[int(token) for token in prompt if isinstance(token, int)]]
    return [
        item if isinstance(item, str) else [int(token) for token in item]
        for item in prompt
        if not isinstance(item, int)
    ]
