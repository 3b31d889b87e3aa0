"""Proofs 2 and 3: whole sequences against transformers, output by output and token by token.

The same checks judge the emitted graphs on XLA-CPU (tier "xla-cpu") and the ported model with its kernels on the
simulator (tier "simulator"): both are a `Session`. The oracle is transformers' own forward with its own cache.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from neuron_port.parity.comparison import EPSILON
from neuron_port.types import CaseResult, Tier
from neuron_port.walk.program import takes
from neuron_port.walk.recurrent_cache import LIST_ARGUMENT, cache_argument

RELATIVE_LIMIT_FLOAT32 = (
    1e-4  # of the largest value of an output: thirty layers of float32 noise stay a tenth of it
)
R_RATIO_LIMIT = 1.2
# Spread of the logarithm of one prompt's R-ratio between honest ports (docs/log.md): after thirty layers the two
# errors that it divides are draws from the same distribution, so few prompts prove less and are judged more widely.
LOG_RATIO_SPREAD = 0.5
Progress = Callable[[int, int], None]


class Session(Protocol):
    """One sequence on the thing under test."""

    def start(self, sample: Mapping[str, torch.Tensor]) -> torch.Tensor: ...
    def advance(self, token: int) -> torch.Tensor: ...
    def caches(self) -> list[tuple[torch.Tensor, torch.Tensor]]: ...


@dataclass(frozen=True, kw_only=True)
class OracleRun:
    """What transformers does with one prompt.

    `logits[n]` [V] precedes `tokens[n]`; `caches` (per layer [G, L, D] keys and values) are those after the prompt
    and `cached_tokens` further tokens.
    """

    sample: Mapping[str, torch.Tensor]  # the prompt: the model's inputs by name, one row
    tokens: tuple[int, ...]
    logits: torch.Tensor  # [new tokens, V]
    prompt_caches: list[tuple[torch.Tensor, torch.Tensor]]
    final_caches: list[tuple[torch.Tensor, torch.Tensor]]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The text of the prompt; none of a sound or a picture."""
        ids = self.sample.get("input_ids")
        return () if ids is None else tuple(ids[0].tolist())

    @property
    def length(self) -> int:
        """How much of a bucket the prompt fills."""
        return int(next(iter(self.sample.values())).shape[-1])


def run_oracle(
    model: PreTrainedModel,
    sample: Mapping[str, torch.Tensor],
    new_tokens: int,
    forced: Sequence[int] | None = None,
    cached_tokens: int = 16,
) -> OracleRun:
    """Greedy (or teacher-forced with `forced`) generation by transformers' own forward.

    Args:
        cached_tokens: after how many appended tokens `final_caches` is taken.
    """
    if "decoder_input_ids" in sample:
        return _run_decoder(model, sample, new_tokens, forced)
    cache = None if takes(model, LIST_ARGUMENT) else DynamicCache(config=model.config)
    state = {LIST_ARGUMENT: None} if cache is None else {cache_argument(model): cache}
    # Places on several axes are for our graphs: the model finds its own, and goes on from them.
    given = {name: item for name, item in _in_dtype(sample, model.dtype).items() if name != "position_ids"}
    logits, tokens = [], []
    final_caches: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        out = model(**given, **state, use_cache=True)
        prompt_caches = _snapshot(cache)
        for number in range(new_tokens):
            logits.append(out.logits[0, -1].clone())
            tokens.append(int(forced[number] if forced is not None else logits[-1].argmax()))
            if number == cached_tokens:
                final_caches = _snapshot(cache)
            if (
                cache is None
            ):  # the model answers with its state instead of keeping it in the cache it was given
                state = {LIST_ARGUMENT: out.state}
            if number + 1 < new_tokens:
                out = model(input_ids=torch.tensor([[tokens[-1]]]), **state, use_cache=True)
    return OracleRun(
        sample=sample,
        tokens=tuple(tokens),
        logits=torch.stack(logits),
        prompt_caches=prompt_caches,
        final_caches=final_caches or _snapshot(cache),
    )


def _run_decoder(
    model: PreTrainedModel,
    sample: Mapping[str, torch.Tensor],
    new_tokens: int,
    forced: Sequence[int] | None,
) -> OracleRun:
    """An encoder-decoder model's answer, every token from the whole of what came before: no cache to go wrong."""
    given = dict(_in_dtype(sample, model.dtype))
    logits, tokens = [], []
    with torch.no_grad():
        for number in range(new_tokens):
            logits.append(model(**given, use_cache=False).logits[0, -1].clone())
            tokens.append(int(forced[number] if forced is not None else logits[-1].argmax()))
            ids = given["decoder_input_ids"]
            given["decoder_input_ids"] = torch.cat([ids, torch.tensor([[tokens[-1]]])], 1)
    return OracleRun(
        sample=sample, tokens=tuple(tokens), logits=torch.stack(logits), prompt_caches=[], final_caches=[]
    )


def _in_dtype(sample: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: item.to(dtype) if item.is_floating_point() else item for name, item in sample.items()}


def _snapshot(cache: Cache | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of every layer that has them, [G, L, D]; a layer with a window keeps its last tokens alone."""
    found = []
    for layer in cache.layers if cache is not None else ():
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if torch.is_tensor(keys) and torch.is_tensor(values):
            found.append((keys[0].clone(), values[0].clone()))
    return found


def check_outputs(
    session: Session,
    name: str,
    truth: OracleRun,
    baseline: OracleRun | None,
    *,
    tier: Tier,
    decode_steps: int,
    progress: Progress = lambda done, total: None,
) -> tuple[list[CaseResult], list[CaseResult]]:
    """Teacher-force one prompt and compare every output; returns the cases of prefill and of decode.

    Args:
        truth: the float32 oracle.
        baseline: the oracle in 16 bit for a 16-bit session (R-ratio), None for a float32 session.
        decode_steps: tokens appended; at most those of `truth`.
    """
    judge = OutputJudge(tier, name)
    logits = session.start(truth.sample)
    progress(1, decode_steps + 1)
    expected = baseline.prompt_caches if baseline else None
    prefill = [judge("logits", [logits], [truth.logits[0]], [baseline.logits[0]] if baseline else None)]
    if truth.prompt_caches:
        prefill += _compare_caches(judge, session.caches(), truth.prompt_caches, expected)
    ours = []
    for number in range(decode_steps):
        ours.append(session.advance(truth.tokens[number]))
        progress(number + 2, decode_steps + 1)
    steps = slice(1, decode_steps + 1)
    decode = [
        judge("logits", ours, list(truth.logits[steps]), list(baseline.logits[steps]) if baseline else None)
    ]
    expected = baseline.final_caches if baseline else None
    if truth.final_caches:
        decode += _compare_caches(judge, session.caches(), truth.final_caches, expected)
    return prefill, decode


def _compare_caches(
    judge: OutputJudge,
    ours: list[tuple[torch.Tensor, torch.Tensor]],
    truth: list[tuple[torch.Tensor, torch.Tensor]],
    baseline: list[tuple[torch.Tensor, torch.Tensor]] | None,
) -> list[CaseResult]:
    results = []
    for side, output in enumerate(("key caches", "value caches")):
        other = [layer[side] for layer in baseline] if baseline else None
        kept = [
            layer[side][:, -expected[side].shape[1] :] for layer, expected in zip(ours, truth, strict=True)
        ]
        results.append(judge(output, kept, [layer[side] for layer in truth], other))
    return results


@dataclass(frozen=True)
class OutputJudge:
    """Compares a list of tensors (layers, or steps) and reports the worst."""

    tier: Tier
    name: str

    def __call__(
        self,
        output: str,
        ours: list[torch.Tensor],
        truth: list[torch.Tensor],
        baseline: list[torch.Tensor] | None,
    ) -> CaseResult:
        lengths_agree = len(ours) == len(truth) and all(
            a.shape == b.shape for a, b in zip(ours, truth, strict=False)
        )
        assert lengths_agree, f"{output}: {[a.shape for a in ours]} beside {[b.shape for b in truth]}"
        errors = [(a.double() - b.double()).abs().max().item() for a, b in zip(ours, truth, strict=True)]
        relative = [
            error / max(b.abs().max().item(), torch.finfo(torch.float32).tiny)
            for error, b in zip(errors, truth, strict=True)
        ]
        metrics = {"max_abs": max(errors), "relative_max": max(relative)}
        limits = {"relative_max": RELATIVE_LIMIT_FLOAT32}
        if baseline is not None:  # judged over all prompts together, by `pooled_r_ratio`
            metrics |= _noise_metrics(ours, truth, baseline)
            limits = {}
        finite = all(bool(torch.isfinite(a).all()) for a in ours)
        passed = finite and all(metrics[key] <= limit for key, limit in limits.items())
        worst = max(range(len(relative)), key=relative.__getitem__)
        unit = "step" if output == "logits" else "layer"
        return CaseResult(
            name=f"{self.name} · {output}",
            kind="captured",
            tier=self.tier,
            dtype=str(ours[0].dtype).removeprefix("torch."),
            shapes=tuple(tuple(tensor.shape) for tensor in ours[:1]),
            seed=None,
            metrics=metrics,
            limits=limits,
            passed=passed,
            detail=f"worst at {unit} {worst} of {len(ours)}" if finite else "non-finite values",
        )


def _noise_metrics(
    ours: list[torch.Tensor], truth: list[torch.Tensor], baseline: list[torch.Tensor]
) -> dict[str, float]:
    """L2 norms over all tensors together: our error, the baseline's error (at least one rounding), and their ratio."""
    error = _distance(ours, truth)
    size = math.sqrt(sum(b.double().norm().item() ** 2 for b in truth))
    noise = max(_distance(baseline, truth), 0.25 * EPSILON[ours[0].dtype] * size)
    return {"error_l2": error, "noise_l2": noise, "r_ratio": error / noise}


def _distance(ours: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    return math.sqrt(
        sum((a.double() - b.double()).norm().item() ** 2 for a, b in zip(ours, truth, strict=True))
    )


def pooled_r_ratio(cases: Sequence[CaseResult], output: str) -> CaseResult:
    """One verdict over all prompts: sqrt(sum of squared errors) / sqrt(sum of squared legal errors).

    After thirty layers rounding noise is chaotic: the ratio of one prompt's two errors is a draw between 0.6 and 1.5
    even for an honest port, so a single prompt proves little and all of them together do.
    """
    names = {case.name.split(" · ")[0] for case in cases}
    prompts, kind = len(names), cases[0].name.split(" ")[0]  # "prompt", or "sample" where no text goes on
    limit = R_RATIO_LIMIT * math.exp(2 * LOG_RATIO_SPREAD / math.sqrt(prompts))
    error = math.sqrt(sum(case.metrics["error_l2"] ** 2 for case in cases))
    noise = math.sqrt(sum(case.metrics["noise_l2"] ** 2 for case in cases))
    ratio = error / noise
    return replace(
        cases[0],
        name=f"all {kind}s · {output}",
        metrics={"r_ratio": ratio, "relative_max": max(case.metrics["relative_max"] for case in cases)},
        limits={"r_ratio": limit},
        passed=all(case.passed for case in cases) and ratio <= limit,
        detail=f"over {prompts} {kind}s (the limit is {R_RATIO_LIMIT} and two standard errors); single ones from "
        f"{min(case.metrics['r_ratio'] for case in cases):.2f} to {max(case.metrics['r_ratio'] for case in cases):.2f}",
    )


def check_greedy(
    session: Session,
    name: str,
    truth: OracleRun,
    decode_text: Callable[[Sequence[int]], str],
    *,
    tier: Tier,
    progress: Progress = lambda done, total: None,
) -> CaseResult:
    """Greedy continuation on the session beside the oracle's: every token must be equal, and every logit close.

    A session that leaves the oracle's path goes on along its own, so that the report can show both texts.
    """
    tokens: list[int] = []
    errors: list[float] = []
    logits = session.start(truth.sample)
    for number in range(len(truth.tokens)):
        tokens.append(int(logits.argmax()))
        if tokens[:-1] == list(truth.tokens[:number]):  # same history: the logits are comparable
            scale = truth.logits[number].abs().max().item()
            errors.append((logits.double() - truth.logits[number].double()).abs().max().item() / scale)
        progress(number + 1, len(truth.tokens))
        if number + 1 < len(truth.tokens):
            logits = session.advance(tokens[-1])
    equal = next(
        (n for n, (a, b) in enumerate(zip(tokens, truth.tokens, strict=True)) if a != b), len(tokens)
    )
    detail = {
        "prompt": decode_text(truth.prompt_ids),
        "reference_text": decode_text(truth.tokens),
        "ported_text": decode_text(tokens),
        "reference_tokens": list(truth.tokens),
        "ported_tokens": tokens,
    }
    metrics = {"different_tokens": float(len(tokens) - equal), "relative_max": max(errors)}
    limits = {"different_tokens": 0.0, "relative_max": RELATIVE_LIMIT_FLOAT32}
    return CaseResult(
        name=name,
        kind="captured",
        tier=tier,
        dtype=str(logits.dtype).removeprefix("torch."),
        shapes=tuple(tuple(tensor.shape) for tensor in truth.sample.values()),
        seed=None,
        metrics=metrics,
        limits=limits,
        passed=all(metrics[key] <= limit for key, limit in limits.items()),
        detail=json.dumps(detail),
    )
