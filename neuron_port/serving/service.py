"""What the endpoints share: the bundle, its text, the engine that serves it, and the checks of every request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from neuron_port.serving.backends import BackendName, Embedder, Generator, load_embedder, load_generator
from neuron_port.serving.bundle import Bundle, Task
from neuron_port.serving.embedding import EmbeddingEngine
from neuron_port.serving.engine import Engine
from neuron_port.serving.errors import ApiError
from neuron_port.serving.metrics import Metrics
from neuron_port.serving.sampling import Sampling
from neuron_port.serving.settings import Settings
from neuron_port.serving.text import Text
from neuron_port.serving.worker import Worker


class Service:
    """One served model. Loading goes on in the engine's thread after the worker's `start`.

    Args:
        make_generator, make_embedder: load a backend for a bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        *,
        make_generator: Callable[[Bundle, BackendName], Generator] = load_generator,
        make_embedder: Callable[[Bundle, BackendName], Embedder] = load_embedder,
    ) -> None:
        self.bundle = bundle
        self.settings = settings
        self.name = settings.model_name or bundle.name
        self.created = int(time.time())
        self.metrics = Metrics(model=self.name, backend=settings.backend)
        self.default_sampling = _default_sampling(bundle)
        self._text: Text | None = None
        self._make_generator, self._make_embedder = make_generator, make_embedder
        self.worker: Worker[Any] = (
            Engine(self._load_generator, max_queue=settings.max_queue, metrics=self.metrics)
            if bundle.task == "generate"
            else EmbeddingEngine(self._load_embedder, max_queue=settings.max_queue, metrics=self.metrics)
        )

    @property
    def text(self) -> Text:
        """The tokenizer, once the model is loaded."""
        assert self._text is not None, "the model is not loaded"
        return self._text

    @property
    def engine(self) -> Engine:
        assert isinstance(self.worker, Engine)
        return self.worker

    @property
    def embedding_engine(self) -> EmbeddingEngine:
        assert isinstance(self.worker, EmbeddingEngine)
        return self.worker

    def check(self, model: str, task: Task) -> None:
        """Raise ApiError unless this is the model, it is ready, and it does what the endpoint is for."""
        if model != self.name:
            raise model_not_found(model, self.name)
        if task != self.bundle.task:
            does = {"generate": "generates text", "embed": "turns texts into embeddings"}
            where = {"generate": "/v1/completions", "embed": "/v1/embeddings"}
            raise ApiError(
                400,
                f"The model `{self.name}` {does[self.bundle.task]}: use {where[self.bundle.task]}.",
                param="model",
                code="unsupported_model",
            )
        self.worker.check_ready()

    def _load_generator(self) -> Generator:
        self._text = Text(self.bundle)
        return self._make_generator(self.bundle, self.settings.backend)

    def _load_embedder(self) -> Embedder:
        self._text = Text(self.bundle)
        return self._make_embedder(self.bundle, self.settings.backend)


def model_not_found(model: str, known: str) -> ApiError:
    return ApiError(
        404, f"The model `{model}` does not exist; this server has `{known}`.", param="model",
        code="model_not_found",
    )  # fmt: skip


def check_ids(ids: Sequence[int], *, context: int, vocabulary: int, param: str) -> None:
    """Raise ApiError (400) for a prompt that is empty, too long, or has ids that the model does not know."""
    problem, code = None, "invalid_value"
    if not ids:
        problem = "the text has no tokens"
    elif len(ids) > context:
        problem, code = (
            f"the model holds {context} tokens, the text has {len(ids)}",
            "context_length_exceeded",
        )
    elif (largest := max(ids)) >= vocabulary:
        problem = f"token {largest} is unknown; the model's last one is {vocabulary - 1}"
    if problem:
        raise ApiError(400, f"Invalid `{param}`: {problem}.", param=param, code=code)


def _default_sampling(bundle: Bundle) -> Sampling:
    """What the model's generation_config.json asks for where it samples; otherwise OpenAI's defaults."""
    wanted = bundle.json_file("generation_config.json")
    if not wanted.get("do_sample"):
        return Sampling()
    return Sampling(
        temperature=float(wanted.get("temperature") or 1.0),
        top_p=float(wanted.get("top_p") or 1.0),
        top_k=int(wanted.get("top_k") or 0),
    )
