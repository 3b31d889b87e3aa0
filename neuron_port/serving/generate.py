"""POST /v1/completions and /v1/chat/completions: a request becomes sequences, their pieces an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from neuron_port.serving.answers import Answer
from neuron_port.serving.errors import ApiError, unsupported
from neuron_port.serving.generation import Generation, Piece, Stream
from neuron_port.serving.http import EventStream, read_body, unless_gone
from neuron_port.serving.protocol import ChatRequest, CompletionRequest, parse, prompts_of
from neuron_port.serving.sampling import Sampling
from neuron_port.serving.service import Service, check_ids

_COMPLETION_TOKENS = 16  # OpenAI's default for completions; chats go on as far as there is room


async def completions(request: Request) -> Response:
    """Continue texts."""
    service: Service = request.app.state.service
    asked = parse(CompletionRequest, await read_body(request, service.settings))
    service.check(asked.model, "generate")
    if asked.echo and asked.logprobs is not None:
        raise unsupported("echo together with logprobs", param="echo")
    given = prompts_of(asked.prompt, param="prompt")
    _check_choices(service, len(given) * (asked.n or 1))  # before any of them is tokenized
    prompts = [await service.text.encode(prompt) if isinstance(prompt, str) else prompt for prompt in given]
    most = asked.max_tokens or _COMPLETION_TOKENS
    generations = _generations(service, asked, prompts, most, asked.logprobs)
    answer = Answer(
        form="completion", model=service.name, text=service.text, logprobs=asked.logprobs is not None,
        echoes=_echoes(service, given, asked.n or 1) if asked.echo else (),
    )  # fmt: skip
    return await _respond(request, service, asked, answer, generations)


def _echoes(service: Service, prompts: Sequence[str | list[int]], choices: int) -> list[str]:
    """The text of the prompt of every choice."""
    texts = [prompt if isinstance(prompt, str) else service.text.decode(prompt) for prompt in prompts]
    return [text for text in texts for _ in range(choices)]


def _check_choices(service: Service, choices: int) -> None:
    """Raise ApiError (400) for a request that could never be taken whole."""
    if choices > service.engine.capacity:
        raise ApiError(
            400, f"The request has {choices} choices, the server takes {service.engine.capacity}.", param="n",
            code="too_many_choices",
        )  # fmt: skip


async def chat_completions(request: Request) -> Response:
    """Answer in a conversation."""
    service: Service = request.app.state.service
    asked = parse(ChatRequest, await read_body(request, service.settings))
    service.check(asked.model, "generate")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
    _check_choices(service, asked.n or 1)
    ids = await service.text.encode_chat([message.plain() for message in asked.messages])
    answer = Answer(form="chat", model=service.name, text=service.text, logprobs=bool(asked.logprobs))
    most = asked.max_completion_tokens or asked.max_tokens or service.engine.context
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    return await _respond(
        request, service, asked, answer, _generations(service, asked, [ids], most, logprobs)
    )


def _generations(
    service: Service,
    asked: CompletionRequest | ChatRequest,
    prompts: Sequence[list[int]],
    max_tokens: int,
    logprobs: int | None,
) -> list[Generation]:
    """One sequence for each choice of each prompt, all of them on one stream."""
    stream = Stream(
        asyncio.get_running_loop(), service.settings.stream_events * len(prompts) * (asked.n or 1)
    )
    default = service.default_sampling
    sampling = Sampling(
        temperature=default.temperature if asked.temperature is None else asked.temperature,
        top_p=default.top_p if asked.top_p is None else asked.top_p,
        top_k=default.top_k if asked.top_k is None else asked.top_k,
        seed=asked.seed,
        logprobs=logprobs,
    )
    param = "prompt" if isinstance(asked, CompletionRequest) else "messages"
    for ids in prompts:
        check_ids(ids, context=service.engine.context, vocabulary=service.text.vocabulary, param=param)
    return [
        Generation(
            ids, stream=stream, sampling=sampling, max_tokens=max_tokens, stops=asked.stops,
            end_tokens=service.text.end_tokens, decode=service.text.decode, choice=choice,
            timeout_seconds=service.settings.request_seconds,
        )
        for choice, ids in enumerate(ids for ids in prompts for _ in range(asked.n or 1))
    ]  # fmt: skip


async def _respond(
    request: Request,
    service: Service,
    asked: CompletionRequest | ChatRequest,
    answer: Answer,
    generations: list[Generation],
) -> Response:
    """Queue the sequences and answer, whole or as a stream."""
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "`stream_options` needs `stream` to be true.", param="stream_options")
    service.engine.submit(generations)
    stream = generations[0].stream
    if asked.stream:
        events = _chunks(answer, generations, with_usage)
        return EventStream(events, release=stream.cancel)
    try:
        pieces = await unless_gone(request.receive, _collect(stream, len(generations)))
    finally:
        stream.cancel()
    return JSONResponse(answer.whole(pieces, generations))


async def _collect(stream: Stream, choices: int) -> list[list[Piece]]:
    """All pieces of each choice."""
    pieces: list[list[Piece]] = [[] for _ in range(choices)]
    async for piece in stream.events(choices):
        pieces[piece.choice].append(piece)
    return pieces


async def _chunks(
    answer: Answer, generations: Sequence[Generation], with_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed answer."""
    lengths: dict[int, int] = {}
    async for piece in generations[0].stream.events(len(generations)):
        first = piece.choice not in lengths
        offset = lengths.get(piece.choice, 0)
        yield answer.chunk(piece, first=first, offset=offset, with_usage=with_usage)
        lengths[piece.choice] = offset + len(piece.text)
    if with_usage:
        yield answer.last_chunk(generations)
