"""What Prometheus is told. Names begin with `neuron_port_`; times are in seconds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self, *, model: str, backend: str) -> None:
        self._registry = CollectorRegistry()
        self.ready = self._gauge("ready", "1 when requests are taken, 0 while loading, draining or failed.")
        self.rows = self._gauge("rows", "Sequences that can run at the same time.")
        self.running = self._gauge("running_sequences", "Sequences that are being generated.")
        self.waiting = self._gauge("waiting_sequences", "Sequences in the queue.")
        self.requests = Counter(
            "neuron_port_requests", "HTTP requests, by route and status.", ["route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts taken in.")
        self.generated_tokens = self._counter("generated_tokens", "Tokens generated.")
        self.finished = Counter(
            "neuron_port_finished_sequences", "Sequences that ended, by how.", ["reason"],
            registry=self._registry,
        )  # fmt: skip
        self.refused = self._counter("refused_requests", "Requests refused because the queue was full.")
        self.failed_steps = self._counter("failed_steps", "Steps that ended with an exception.")
        self.queue_seconds = self._histogram("queue_seconds", "From a request's arrival to its row.", _WAITS)
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _WAITS
        )
        self.inter_token_seconds = self._histogram(
            "inter_token_seconds", "Between a sequence's tokens.", _STEPS
        )
        self.prefill_seconds = self._histogram("prefill_seconds", "One prefill on the backend.", _STEPS)
        self.decode_seconds = self._histogram("decode_seconds", "One decode step of all rows.", _STEPS)
        self.embed_seconds = self._histogram(
            "embed_seconds", "One batch of texts through an encoder.", _STEPS
        )
        information = Gauge(
            "neuron_port_model_info",
            "The model and the backend.",
            ["model", "backend"],
            registry=self._registry,
        )
        information.labels(model=model, backend=backend).set(1)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"neuron_port_{name}", help_text, registry=self._registry)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(f"neuron_port_{name}", help_text, registry=self._registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"neuron_port_{name}", help_text, buckets=buckets, registry=self._registry)
