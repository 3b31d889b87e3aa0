"""The last hurdle of a draft: its kernel inside a model, in place of the layers that it serves, judged by the logits.

The model is transformers' own with the same widths, one or two layers deep, random weights (or the real model, when it
is given). Prefill and a few decode steps run in float32 with the kernel in its sandbox; logits and caches are compared
with transformers' own forward, by the rule that the whole-model proofs use.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from neuron_port.checkpoint.architecture import build_model, build_skeleton
from neuron_port.drafting.folder import Provenance, Subject, write_draft
from neuron_port.drafting.spending.cost import Cost
from neuron_port.errors import UsageError
from neuron_port.execution import KernelOperator, simulated_operator
from neuron_port.grading.verdict import Verdict
from neuron_port.match.matcher import match
from neuron_port.match.probe import bound_weights
from neuron_port.parity.model import check_outputs, run_oracle
from neuron_port.registry import Registry
from neuron_port.simulator import SimulatorError
from neuron_port.simulator.target import find_target
from neuron_port.types import CaseResult, Match, ParityReport, Phase
from neuron_port.walk.calls import Call
from neuron_port.walk.cutpoints import intercept
from neuron_port.walk.families import programs_of
from neuron_port.walk.program import GraphShapes, Program
from neuron_port.walk.walker import walk

HIDDEN_LAYERS = 2
PROMPT_TOKENS = 11
DECODE_STEPS = 3
_ONE_AT_A_TIME = Lock()  # cut points are patched into modules and into transformers itself


def recheck_in_graph(
    model: PreTrainedModel | PreTrainedConfig,
    registry: Registry,
    drafts: Collection[str],
    *,
    target: str = "trn2",
    layers: int = HIDDEN_LAYERS,
) -> ParityReport:
    """Run a model with the kernels of `drafts` in place of every layer that they match.

    Args:
        model: a configuration, of which a shallow model with random weights is built; or a model in float32.
        registry: holds the drafts (and only what it holds is matched).
        drafts: names of those to try.
        layers: how deep the shallow model is.
    Raises:
        UsageError: none of the model's layers is served by them.
    """
    with _ONE_AT_A_TIME:
        return _recheck(_built(model, layers), registry, drafts, target)


def _recheck(
    model: PreTrainedModel, registry: Registry, drafts: Collection[str], target: str
) -> ParityReport:
    started = time.monotonic()
    session = _Session(model, registry, frozenset(drafts), target)
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(5)
    prompt = torch.randint(0, vocabulary, (1, PROMPT_TOKENS), generator=generator)
    truth = run_oracle(model, {"input_ids": prompt}, DECODE_STEPS + 1, cached_tokens=DECODE_STEPS)
    subject = f"{', '.join(sorted(drafts))} in {type(model).__name__}"
    try:
        prefill, decode = check_outputs(
            session, f"{PROMPT_TOKENS} tokens", truth, None, tier="simulator", decode_steps=DECODE_STEPS
        )
        cases = [*(_named(case, "prefill") for case in prefill), *(_named(case, "decode") for case in decode)]
    except SimulatorError as error:
        cases = [_refused(f"the simulator refused the kernel in {session.place}: {error}")]
    return ParityReport(
        subject=subject,
        oracle=f"transformers {transformers.__version__}, torch {torch.__version__}, cpu, float32",
        cases=tuple(cases),
        not_proven=("no Neuron device has run this kernel", f"the model had {_depth(model)} layers"),
        seconds=time.monotonic() - started,
    )


def graph_recheck(
    subject: Subject,
    model: PreTrainedModel | PreTrainedConfig,
    *,
    target: str = "trn2",
    layers: int = HIDDEN_LAYERS,
) -> Callable[[str], str]:
    """A function from a kernel's source to what is wrong with it inside the model; "" when nothing is.

    The model is built once, and may be tried with any number of kernels. It is as deep as the first layer that the
    kernel serves stands, and at least `layers`.
    """
    layers = max(layers, 1 + max((_depth_of(name) for name in _served(subject)[:1]), default=0))
    built: list[PreTrainedModel] = []

    def recheck(source: str) -> str:
        if not built:
            built.append(_built(model, layers))
        with tempfile.TemporaryDirectory() as folder:
            write_draft(Path(folder), subject, source, _provisional(target))
            report = recheck_in_graph(built[0], Registry(Path(folder)), [subject.task.name], target=target)
        return problem(report)

    return recheck


def _served(subject: Subject) -> tuple[str, ...]:
    return tuple(getattr(subject, "layers", ()))  # a function serves none


def _depth_of(layer: str) -> int:
    """`model.layers.3.mlp` stands at depth 3."""
    numbers = [int(part) for part in layer.split("#")[0].split(".") if part.isdigit()]
    return numbers[0] if numbers else 0


def problem(report: ParityReport) -> str:
    """One sentence on the first case that failed, or ""."""
    failed = next((case for case in report.cases if not case.passed), None)
    if failed is None:
        return ""
    figures = ", ".join(f"{name} {value:.3g}" for name, value in failed.metrics.items())
    limits = ", ".join(f"{name} {value:.3g}" for name, value in failed.limits.items())
    return f"{failed.name}: {failed.detail}" + (f" ({figures}; limit {limits})" if figures else "")


def _provisional(target: str) -> Provenance:
    """Of a kernel that is still being tried; its folder lives as long as the trial."""
    verdict = Verdict(passed=True, stage="hidden")
    return Provenance(model="", date="", cost=Cost(), verdict=verdict, oracle_key="", target=target)


def _built(model: PreTrainedModel | PreTrainedConfig, layers: int) -> PreTrainedModel:
    if isinstance(model, PreTrainedConfig):
        return shallow_model(model, layers)
    return model.eval()


def shallow_model(config: PreTrainedConfig, layers: int = HIDDEN_LAYERS) -> PreTrainedModel:
    """The model of `config`, at most `layers` deep, in float32, every parameter random (norms of one hide mistakes)."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    depth = int(text.num_hidden_layers)
    kept = min(depth, layers)
    for name, value in list(vars(text).items()):
        if (
            isinstance(value, list)
            and len(value) == depth
            and name.startswith(("layer", "mlp_layer", "no_rope"))
        ):
            setattr(text, name, value[:kept])
    text.num_hidden_layers = kept
    generator = torch.Generator().manual_seed(11)
    model = build_model(shallow, torch.float32)
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
        values = torch.empty(parameter.shape).normal_(generator=generator) * scale
        parameter.data = values if parameter.ndim > 1 else 1.0 + values
    result: PreTrainedModel = model.eval().requires_grad_(False)
    return result


class _Session:
    """One sequence through the model, layer by layer in torch but for the calls that a draft serves."""

    def __init__(
        self, model: PreTrainedModel, registry: Registry, drafts: frozenset[str], target: str
    ) -> None:
        self.model = model
        self.registry = registry
        self.drafts = drafts
        self.target = target
        self.cache_length = PROMPT_TOKENS + DECODE_STEPS + 1
        self.length = 0
        self.place = ""
        self._caches: list[torch.Tensor] = []
        self._programs: dict[Phase, Program] = {}
        self._operators: dict[str, KernelOperator] = {}
        self._weights: dict[str, dict[str, torch.Tensor]] = {}
        self._matches = self._matched()

    def _matched(self) -> dict[Phase, dict[str, Match]]:
        """The decisions for the layers that the drafts serve, by phase and layer name."""
        skeleton = build_skeleton(self.model.config, torch.float32)
        walks = [
            walk(skeleton, "in graph", program)
            for program in programs_of(skeleton, self._shapes(PROMPT_TOKENS))
        ]
        names = [name for name, _ in skeleton.named_parameters()]
        generation = f"gen{find_target(self.target).generation}"
        plan = match(walks, self.registry, target=self.target, generation=generation, parameters=names)
        found: dict[Phase, dict[str, Match]] = {
            step.graph.phase: {
                name: decided
                for name, decided in plan.by_layer(step.graph).items()
                if decided.recipe in self.drafts
            }
            for step in walks
        }
        served = {decided.recipe for by_name in found.values() for decided in by_name.values()}
        missing = sorted(self.drafts - {name for name in served if name})
        if missing:
            reasons = {m.reason for m in plan.matches if missing[0] in m.reason}
            raise UsageError(
                f"No layer of this {type(self.model).__name__} is served by: `{missing[0]}`"
                + (f" ({'; '.join(sorted(reasons))})" if reasons else ""),
                hint="Give the configuration that it was drafted for, or more layers.",
            )
        return found

    def start(self, sample: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run the prompt; logits [V] of what follows it."""
        ids = sample["input_ids"]
        self.length = ids.shape[1]
        self._programs = {
            program.phase: program for program in programs_of(self.model, self._shapes(self.length))
        }
        self._caches = list(self._programs["prefill"].states.values())
        return self._step("prefill", ids, self.length - 1)

    def advance(self, token: int) -> torch.Tensor:
        """Append `token`; logits [V] of what follows it."""
        self.length += 1
        return self._step("decode", torch.tensor([[token]]), self.length - 1)

    def _shapes(self, length: int) -> GraphShapes:
        return GraphShapes(batch=1, buckets=(length,), cache_length=self.cache_length)

    def _step(self, phase: Phase, ids: torch.Tensor, position: int) -> torch.Tensor:
        matches = self._matches[phase]
        positions = torch.tensor([position], dtype=torch.int32)
        with torch.no_grad(), intercept(self.model, lambda call: self._handle(call, matches)):
            logits, *self._caches = self._programs[phase].step((ids, positions), tuple(self._caches))
        result: torch.Tensor = logits[0]
        return result

    def _handle(self, call: Call, matches: Mapping[str, Match]) -> Any:
        decided = matches.get(call.name)
        if decided is None or decided.recipe is None:
            return call.run()
        self.place = f"`{call.name}`"
        recipe = self.registry[decided.recipe].recipe
        operator = self._operator(decided.recipe)
        if call.name not in self._weights:
            bound = bound_weights(call.module, decided.weights)
            self._weights[call.name] = {role: tensor.contiguous() for role, tensor in bound.items()}
            operator.share_weights(self._weights[call.name].values())
        weights = self._weights[call.name]
        return recipe.forward(operator, weights, decided.attributes, *call.args, **call.kwargs)

    def _operator(self, name: str) -> KernelOperator:
        if name not in self._operators:
            self._operators[name] = simulated_operator(self.registry[name], self.target)
        return self._operators[name]

    def caches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(keys, values) of each layer for the tokens seen so far, [G, L, D] each, as transformers lays them out."""
        pairs = zip(self._caches[::2], self._caches[1::2], strict=True)
        return [
            (keys[0, :, :, : self.length].transpose(1, 2), values[0, :, : self.length])
            for keys, values in pairs
        ]


def _named(case: CaseResult, phase: str) -> CaseResult:
    return replace(case, name=f"{phase}, {case.name}")


def _refused(reason: str) -> CaseResult:
    return CaseResult(
        name="in the model",
        kind="captured",
        tier="simulator",
        dtype="float32",
        shapes=(),
        seed=None,
        metrics={},
        limits={},
        passed=False,
        detail=reason,
    )


def _depth(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().num_hidden_layers)
