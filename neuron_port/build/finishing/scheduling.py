"""Finishes graphs, some at once; an interrupt ends what runs and keeps what is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol

from .files import say
from .processes import Processes


class Engine(Protocol):
    """What the engines `hlo` and `trace` have in common."""

    jobs: int
    processes: Processes

    def finish_graph(self, graph: Mapping[str, Any]) -> str:
        """Finish one graph unless that is done already; return "" or the sentence of its failure."""


def finish_all(engine: Engine, graphs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Finish the graphs, `jobs` at once; return the failures."""
    failures = []
    with ThreadPoolExecutor(max_workers=engine.jobs) as pool:
        running = {pool.submit(engine.finish_graph, graph): graph["id"] for graph in graphs}
        try:
            for done in as_completed(running):
                if sentence := done.result():
                    say(sentence)
                    failures.append(sentence)
        except BaseException:  # an interrupt, or a fault of ours: no compiler may be left running behind
            engine.processes.stop()
            for waiting in running:
                waiting.cancel()
            raise
    return failures
