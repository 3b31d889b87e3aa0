"""Serving: a bundle behind OpenAI's HTTP interface, with continuous batching over its static graphs.

    cli -> server (HTTP, signals) -> app (routes) -> generate, embed -> engine, embedding (threads) -> backends

    bundle.py       what is served: interfaces, weights, hashes        settings.py    how
    connection.py   time limits of a connection                   http.py        bodies, event streams
    protocol.py     what clients may ask                               answers.py     what they get
    worker.py       a thread that owns a backend                       generation.py  one sequence, one stream
    sampling.py     logits -> token                                    detokenizer.py tokens -> text
    backends/       XLA-CPU, NeuronCores, transformers

Needs neuron-port[serve]; nothing is imported before `serve` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from neuron_port.errors import NeuronPortError

if TYPE_CHECKING:
    from neuron_port.serving.settings import Settings

__all__ = ["serve"]


def serve(bundle: Path, settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Serve a bundle until a signal comes.

    Raises: StorageError, CheckpointError, UsageError for a bundle that cannot be served; NeuronPortError when the
        packages of neuron-port[serve] are missing or the model cannot be loaded.
    """
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise NeuronPortError(
            f"Serving needs `{error.name}`, which is not installed", hint="pip install neuron-port[serve]"
        ) from error
    from neuron_port.serving.bundle import open_bundle
    from neuron_port.serving.server import serve as run
    from neuron_port.serving.service import Service

    opened = open_bundle(bundle, verify=settings.verify)
    opened.weight_files()  # a bundle without its weights is refused before anything listens
    if settings.backend == "neuron":
        from neuron_port.serving.backends.neuron import NOT_VERIFIED, neff_files

        neff_files(opened)  # a bundle that is not compiled is refused before anything listens
        announce(NOT_VERIFIED)
    run(Service(opened, settings), announce=announce)
