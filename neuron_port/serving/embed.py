"""POST /v1/embeddings: texts become vectors, as numbers or as base64 of little-endian float32."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from neuron_port.serving.backends import Floats
from neuron_port.serving.embedding import EmbeddingJob
from neuron_port.serving.errors import ApiError, unsupported
from neuron_port.serving.http import read_body, unless_gone
from neuron_port.serving.protocol import EmbeddingRequest, parse, prompts_of
from neuron_port.serving.service import Service, check_ids

_TEXTS = 2048  # OpenAI's limit of one request


async def embeddings(request: Request) -> Response:
    """One vector for each text, in the order of the texts."""
    service: Service = request.app.state.service
    asked = parse(EmbeddingRequest, await read_body(request, service.settings))
    service.check(asked.model, "embed")
    if asked.dimensions is not None:
        raise unsupported("dimensions", param="dimensions")
    texts = prompts_of(asked.input, param="input")
    engine, jobs = service.embedding_engine, []
    if len(texts) > (most := min(_TEXTS, engine.capacity)):
        # Beyond the queue it could never be taken: "try again" would be wrong.
        raise ApiError(400, f"`input` has {len(texts)} texts, at most {most} go together.", param="input",
            code="invalid_value",
        )  # fmt: skip
    for text in texts:
        ids = await service.text.encode(text) if isinstance(text, str) else text
        check_ids(ids, context=engine.context, vocabulary=service.text.vocabulary, param="input")
        jobs.append(EmbeddingJob(ids, timeout_seconds=service.settings.request_seconds))
    engine.submit(jobs)
    try:
        vectors = await unless_gone(request.receive, _all_results(jobs))
    finally:
        for job in jobs:
            job.cancel()
    count = sum(len(job.ids) for job in jobs)
    entries = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector_H, asked.encoding_format)}
        for index, vector_H in enumerate(vectors)
    ]
    used = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": entries, "model": service.name, "usage": used})


async def _all_results(jobs: list[EmbeddingJob]) -> list[Floats]:
    """The jobs' vectors; the first failure is the request's."""
    return list(await asyncio.gather(*(job.result for job in jobs)))


def _encoded(vector_H: Floats, form: str | None) -> Any:
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(vector_H, "<f4").tobytes()).decode()
    return vector_H.tolist()
