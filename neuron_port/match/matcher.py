"""Decides for every layer of a walk: recipe kernel, or the compiler's own lowering, and why.

Layers are offered to the recipes from the outside in, so a gated MLP is taken whole before its projections are
looked at. A recipe's `bind` narrows the candidates; the numeric probe alone decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from neuron_port.errors import RecipeError
from neuron_port.match.glue import only_moves_data
from neuron_port.match.probe import RELATIVE_LIMIT, probe
from neuron_port.recipe import Binding
from neuron_port.registry import RegisteredRecipe, Registry
from neuron_port.types import DIFFERENT, EXCLUDED, GLUE, Layer, Match, MatchPlan, digest
from neuron_port.walk.calls import Call
from neuron_port.walk.walker import Walk


def match(
    walks: list[Walk],
    registry: Registry,
    *,
    target: str,
    generation: str,
    parameters: Collection[str],
    refused: Collection[str] = (),
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> MatchPlan:
    """Match every signature of `walks` (prefill and decode).

    Args:
        parameters: names of all parameters of the model, for the proof that none is left out.
        refused: names of recipes that must not be used (the user's --compiler option).
    """
    unknown = [name for name in refused if name not in registry]
    if unknown:
        registry[unknown[0]]  # raises, with the near name
    decider = _Decider(registry, generation, frozenset(refused))
    decisions: dict[str, Match] = {}
    for walk in walks:
        covered: list[str] = []
        for number, layer in enumerate(walk.graph.layers):
            progress(layer.name, number, len(walk.graph.layers))
            if is_inside(layer, covered):
                continue
            decided = decider.decide(layer, walk.calls[layer.signature])
            if decided.recipe is not None:
                if layer.operation == "module":
                    covered.append(layer.name.split("#")[0])
            elif not is_elementary(layer, walk.graph.layers, number):
                continue  # a container: its children are decided one by one
            _add(decisions, decided, layer.name)
    matches = tuple(decisions.values())
    return MatchPlan(
        checkpoint=walks[0].graph.checkpoint,
        target=target,
        matches=matches,
        unused_parameters=tuple(sorted(set(parameters) - consumed_parameters(walks, matches))),
    )


def is_inside(layer: Layer, covered: Collection[str]) -> bool:
    """Whether the layer is part of a module (by its path) that a recipe has taken whole; its next call is not."""
    path = layer.name.split("#")[0]
    part = layer.operation != "module"
    return any((path == name and part) or path.startswith(f"{name}.") for name in covered)


def is_elementary(layer: Layer, layers: tuple[Layer, ...], number: int) -> bool:
    """A layer with no recorded call inside it (children follow their parent)."""
    if layer.operation != "module":
        return True
    path = layer.name.split("#")[0]
    return not any(is_inside(follower, [path]) for follower in layers[number + 1 : number + 2])


def consumed_parameters(walks: list[Walk], matches: tuple[Match, ...]) -> set[str]:
    """Names of the parameters that some decided layer uses, or the code between the layers."""
    decided = {name for match in matches for name in match.layers}
    of_layers = {
        f"{layer.name.split('#')[0]}.{parameter}"
        for walk in walks
        for layer in walk.graph.layers
        if layer.name in decided
        for parameter in layer.parameters
    }
    used = of_layers.union(*(walk.touched for walk in walks))
    homes = {home for walk in walks for name, home in walk.tied.items() if name in used}
    return used | homes


def _add(decisions: dict[str, Match], decided: Match, name: str) -> None:
    earlier = decisions.get(decided.signature)
    layers = earlier.layers if earlier else ()
    if name not in layers:  # the head has the same signature in prefill and decode
        layers = (*layers, name)
    values = {item: getattr(decided, item) for item in decided.__dataclass_fields__}
    decisions[decided.signature] = Match(**(values | {"layers": layers}))


# What torch and Python raise when a layer's call or parameters do not fit the recipe's terms: it is not that recipe.
# Anything else (a misspelt name in a reference) is a mistake in the recipe and must not look like a compiler layer.
MISFITS = (RuntimeError, ValueError, IndexError, TypeError)
_NOT_RUN = "does not run"


class _Decider:
    """Decides each signature once, and probes each (module, recipe) pair once for all token counts."""

    def __init__(self, registry: Registry, generation: str, refused: frozenset[str]) -> None:
        self.registry = registry
        self.generation = generation
        self.refused = refused
        self.decided: dict[str, Match] = {}
        self.evidence: dict[str, dict[str, float]] = {}

    def decide(self, layer: Layer, call: Call) -> Match:
        if layer.signature not in self.decided:
            self.decided[layer.signature] = self._decide(layer, call)
        return self.decided[layer.signature]

    def _decide(self, layer: Layer, call: Call) -> Match:
        refusals: dict[str, str] = {}
        for candidate in self.registry.for_operation(call.operation):
            bindings = candidate.recipe.bindings(call)
            if not bindings:
                continue
            reason = self._unsupported(candidate, layer)
            tried: list[tuple[float, str]] = []
            for binding in bindings if reason is None else ():
                evidence = self._probe(layer, call, candidate, binding)
                worst = max(evidence.values())
                if worst <= RELATIVE_LIMIT:
                    return _matched(layer, candidate, binding, evidence, worst)
                tried.append((worst, max(evidence, key=evidence.__getitem__)))
            refusals[candidate.name] = reason or _difference(*min(tried))
        reason = "; ".join(f"{name} {why}" for name, why in refusals.items())
        if only_moves_data(layer, call):
            reason = GLUE
        return Match(
            signature=layer.signature,
            layers=(),
            decision="compiler",
            recipe=None,
            weights={},
            attributes={},
            reason=reason or f"no recipe for `{layer.module_class}`",
            refusals=refusals,
        )

    def _unsupported(self, candidate: RegisteredRecipe, layer: Layer) -> str | None:
        recipe = candidate.recipe
        touched = (*layer.inputs, *layer.parameters.values())
        dtypes = {spec.dtype for spec in touched if spec.dtype.startswith(("float", "bfloat"))}
        if recipe.name in self.refused:
            return EXCLUDED
        if self.generation not in recipe.generations:
            return f"has no kernel for {self.generation}"
        if len(dtypes) > 1 and not recipe.mixed_dtypes:  # transformers promotes silently, from model to model
            return f"takes one dtype, these inputs are {' and '.join(sorted(dtypes))}"
        if not dtypes <= set(recipe.dtypes):
            return f"has no kernel for {', '.join(sorted(dtypes))}"
        return None

    def _probe(
        self, layer: Layer, call: Call, candidate: RegisteredRecipe, binding: Binding
    ) -> dict[str, float]:
        """A module computes the same for any number of tokens; functions are probed for every signature."""
        form = [(spec.dtype, len(spec.shape)) for spec in layer.inputs]
        shape = layer.inputs if layer.operation != "module" else ()
        key = digest(
            candidate.name,
            layer.operation,
            layer.module_class,
            form,
            sorted(call.kwargs),
            shape,
            dict(layer.parameters),
            dict(layer.attributes),
            binding.attributes,
            dict(binding.weights),
        )
        if key not in self.evidence:
            self.evidence[key] = _run_probe(call, candidate, binding)
        return self.evidence[key]


def _run_probe(call: Call, candidate: RegisteredRecipe, binding: Binding) -> dict[str, float]:
    try:
        return probe(call, candidate.recipe, candidate.reference, binding)
    except MISFITS as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return {f"{_NOT_RUN} ({message})": float("inf")}
    except Exception as error:
        raise RecipeError(
            f"Recipe `{candidate.name}` fails on `{call.name}`: {type(error).__name__}: {error}",
            hint=f"Correct reference.py or recipe.py in {candidate.folder}.",
        ) from error


def _difference(worst: float, where: str) -> str:
    """Why a probe refused: how far apart the two are and at which scale, or that the recipe cannot even be tried."""
    if worst != float("inf"):
        return f"{DIFFERENT}: relative difference {worst:.1e}, {where}"
    if where.startswith(_NOT_RUN):
        return f"{DIFFERENT}: {where}"
    return f"{DIFFERENT}: results of another shape, or finite in other places, {where}"


def _matched(
    layer: Layer, candidate: RegisteredRecipe, binding: Binding, evidence: dict[str, float], worst: float
) -> Match:
    agreement = f"to {worst:.0e}" if worst else "exactly"
    return Match(
        signature=layer.signature,
        layers=(),
        decision=candidate.kernel.origin,
        recipe=candidate.name,
        weights=dict(binding.weights),
        attributes=dict(binding.attributes),
        reason=f"numeric probe agrees {agreement} at {len(evidence)} input scales",
        evidence=evidence,
    )
