"""Stage `kernels`: proof 1, every kernel against its layer's own forward, once for each signature."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from neuron_port.errors import RecipeError
from neuron_port.parity.kernel import verify_layer
from neuron_port.pipeline.planning import Plan
from neuron_port.pipeline.workbench import Workbench, code_digest, oracle_name, recipe_digest
from neuron_port.registry import RegisteredRecipe
from neuron_port.store import write_json
from neuron_port.types import Layer, Match, ParityReport, Phase, digest, from_json, to_json
from neuron_port.walk.walker import Capture, Walk, capture

STAGE = "kernel-proof"


class KernelProof:
    """Verifies the signatures of a plan one after the other; each result is kept as soon as it is there."""

    def __init__(self, work: Workbench, plan: Plan) -> None:
        self.work = work
        self.plan = plan
        self._captures: Mapping[tuple[Phase, str], Capture] | None = None
        self._code = code_digest("simulator", "parity", "match/probe", "walk", "execution")

    def run(self, progress: Callable[[str, int, int], None]) -> tuple[list[ParityReport], int]:
        """The reports in plan order, and how many of them were made now."""
        wanted = [match for match in self.plan.matches.matches if match.recipe is not None]
        reports, made = [], 0
        for number, match in enumerate(wanted):
            walk_number, layer = self._first_layer(match)
            progress(f"{match.recipe} · {layer.name}", number, len(wanted))
            report, reused = self._verify(match, walk_number, layer)
            reports.append(report)
            made += not reused
        return reports, made

    def _first_layer(self, match: Match) -> tuple[int, Layer]:
        for number, graph in enumerate(self.plan.graphs):
            for layer in graph.layers:
                if layer.signature == match.signature and layer.name == match.layers[0]:
                    return number, layer
        raise AssertionError(f"plan names a layer that its graphs lack: {match.layers[0]}")

    def _verify(self, match: Match, walk_number: int, layer: Layer) -> tuple[ParityReport, bool]:
        work = self.work
        assert match.recipe is not None
        found = work.registry[match.recipe]
        key = digest(
            work.checkpoint.revision,
            match.signature,
            recipe_digest(found),
            work.options.target,
            work.options.tensor_parallel,
            self.plan.graphs[walk_number].batch,
            [str(dtype) for dtype in work.proof_dtypes],
            [prompt.text for prompt in work.options.prompts[:1]],
            work.full_proof,
            oracle_name(),
            self._code,
        )

        def write(folder: Path) -> None:
            walk = work.walks(work.dtype)[walk_number]
            with _python_errors_named(found):
                report = verify_layer(
                    layer,
                    walk.calls[match.signature],
                    match,
                    found,
                    read_weight=lambda name, first: work.first_part(
                        name, work.reader.get(name, torch.float32, first=first)
                    ),
                    target=work.options.target,
                    dtypes=work.proof_dtypes,
                    oracle=oracle_name(),
                    capture=self._capture(walk, layer),
                )
            write_json(folder / "report.json", to_json(report))

        _, reused = work.store.build(STAGE, key, write)
        return from_json(ParityReport, work.store.read_json(STAGE, key, "report.json")), reused

    def _capture(self, walk: Walk, layer: Layer) -> Capture | None:
        """The layer's real inputs for the first prompt, where the whole model can be run and the graph has one row.

        A rank by itself has none: what its layers are given depends on the other ranks.
        """
        options = self.work.options
        if not self.work.full_proof or walk.graph.batch != 1 or options.tensor_parallel != 1:
            return None
        if self._captures is None:
            first_layers = {match.layers[0] for match in self.plan.matches.matches}
            self._captures = capture(
                self.work.model(torch.float32),
                first_layers,
                self.work.sample(0),
                cache_length=self.work.options.cache_length,
            )
        return self._captures.get((walk.graph.phase, layer.name))


@contextmanager
def _python_errors_named(found: RegisteredRecipe) -> Iterator[None]:
    """Turn a Python error inside the recipe's kernel into one line that names file and line, as for its other files."""
    try:
        yield
    except Exception as error:
        kernel_file = f"{found.name}/kernel.py"  # the name under which the simulator runs it
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == kernel_file
        ]
        if isinstance(error, SyntaxError) and error.filename == kernel_file:
            lines.append(error.lineno)
        if not lines:
            raise
        place = f"{found.folder / 'kernel.py'}:{lines[-1]}"
        raise RecipeError(f"{place}: {type(error).__name__}: {error}") from error
