"""A made-up conversion of a 30-layer llama, as irregular as a real one. No number in it was measured."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from typing import Any

from neuron_port.report.records import StageRecord
from neuron_port.types import (
    CaseResult,
    Checkpoint,
    GraphInput,
    GraphOutput,
    GraphSpec,
    Layer,
    LayerGraph,
    Match,
    MatchPlan,
    ParityReport,
    TensorSpec,
)

LAYERS, HIDDEN, MIDDLE, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 30, 576, 1536, 9, 3, 64, 49152
DTYPE = "bfloat16"
ORACLE = "transformers 5.23.0, torch 2.13.0, cpu, float32"


def spec(*shape: int, dtype: str = DTYPE) -> TensorSpec:
    return TensorSpec(shape=shape, dtype=dtype)


def checkpoint(**changes: Any) -> Checkpoint:
    weights = {"model.embed_tokens.weight": spec(VOCABULARY, HIDDEN)}
    for index in range(LAYERS):
        for name, shape in {
            "q_proj": (HIDDEN, HIDDEN),
            "k_proj": (192, HIDDEN),
            "v_proj": (192, HIDDEN),
        }.items():
            weights[f"model.layers.{index}.self_attn.{name}.weight"] = spec(*shape)
        weights[f"model.layers.{index}.mlp.down_proj.weight"] = spec(HIDDEN, MIDDLE)
    fields = {
        "name": "SmolLM2-135M-Instruct",
        "source": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "revision": "9f3c1d2ab4e87701",
        "directory": "/models/smollm2",
        "architecture": "LlamaForCausalLM",
        "config": {"hidden_size": HIDDEN},
        "weights": weights,
        "random_weights": False,
        "license": "Apache-2.0",
    }
    return Checkpoint(**{**fields, **changes})


def layer(
    name: str, operation: str, module_class: str, inputs: Any, outputs: Any, flops: int, hbm_bytes: int
) -> Layer:
    return Layer(
        name=name,
        operation=operation,
        module_class=module_class,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        parameters={},
        attributes={},
        flops=flops,
        hbm_bytes=hbm_bytes,
    )


def graph(phase: str) -> LayerGraph:
    """All 30 layers in running order; decode sees one token and 256 cache slots."""
    tokens = 128 if phase == "prefill" else 1
    context = 128 if phase == "prefill" else 256
    x = spec(1, tokens, HIDDEN)

    def linear(name: str, inside: int, outside: int) -> Layer:
        y = spec(1, tokens, outside)
        flops = 2 * tokens * inside * outside
        moved = 2 * (inside * outside + tokens * (inside + outside))
        return layer(name, "module", "Linear", [spec(1, tokens, inside)], [y], flops, moved)

    def norm(name: str) -> Layer:
        return layer(name, "module", "LlamaRMSNorm", [x], [x], 0, 4 * tokens * HIDDEN)

    table_bytes = 2 * tokens * HIDDEN
    ids = [spec(1, tokens, dtype="int64")]
    found = [layer("model.embed_tokens", "module", "Embedding", ids, [x], 0, table_bytes)]
    for index in range(LAYERS):
        at = f"model.layers.{index}"
        q, k = spec(1, HEADS, tokens, HEAD_DIM), spec(1, KV_HEADS, tokens, HEAD_DIM)
        keys = spec(1, KV_HEADS, context, HEAD_DIM)
        angles = spec(1, tokens, HEAD_DIM)
        attention = "attention" if phase == "prefill" else "attention_decode"
        found += [
            norm(f"{at}.input_layernorm"),
            linear(f"{at}.self_attn.q_proj", HIDDEN, HIDDEN),
            linear(f"{at}.self_attn.k_proj", HIDDEN, KV_HEADS * HEAD_DIM),
            linear(f"{at}.self_attn.v_proj", HIDDEN, KV_HEADS * HEAD_DIM),
            layer(
                f"{at}.self_attn#rope",
                "rope",
                "LlamaAttention",
                [q, k, angles, angles],
                [q, k],
                0,
                8 * q.size,
            ),
            layer(
                f"{at}.self_attn#{attention}",
                attention,
                "LlamaAttention",
                [q, keys, keys],
                [spec(1, tokens, HEADS, HEAD_DIM)],
                4 * HEADS * tokens * context * HEAD_DIM,
                4 * keys.size_bytes,
            ),
            linear(f"{at}.self_attn.o_proj", HIDDEN, HIDDEN),
            layer(f"{at}#add", "add", "LlamaDecoderLayer", [x, x], [x], 0, 6 * x.size),
            norm(f"{at}.post_attention_layernorm"),
            layer(
                f"{at}.mlp", "module", "LlamaMLP", [x], [x], 6 * tokens * HIDDEN * MIDDLE, 6 * HIDDEN * MIDDLE
            ),
            layer(f"{at}#add2", "add", "LlamaDecoderLayer", [x, x], [x], 0, 6 * x.size),
        ]
    last = spec(1, 1, HIDDEN)
    head_flops = 2 * HIDDEN * VOCABULARY
    found += [
        norm("model.norm"),
        layer("lm_head", "module", "Linear", [last], [spec(1, 1, VOCABULARY)], head_flops, head_flops),
    ]
    return LayerGraph(
        checkpoint="9f3c1d2ab4e87701", phase=phase, batch=1, sequence_length=tokens, layers=tuple(found)
    )


def plan(*graphs: LayerGraph) -> MatchPlan:
    recipes = {
        "Embedding": "embedding",
        "LlamaRMSNorm": "rms_norm",
        "Linear": "linear",
        "LlamaMLP": "gated_mlp",
        "rope": "rope",
        "attention": "attention",
        "attention_decode": "attention_decode",
        "add": "residual_add",
    }
    matches = {}
    for found in graphs:
        for signature, layers in found.groups().items():
            first = layers[0]
            recipe = recipes.get(first.operation) or recipes[first.module_class]
            decision, reason = (
                "recipe",
                f"The layer's own forward agrees with `{recipe}` on four scales of random input.",
            )
            evidence = {"0.001": 1.1e-7, "1": 1.9e-7, "30": 2.4e-7}
            if recipe == "embedding":
                decision, recipe, evidence = "compiler", None, {}
                reason = (
                    "Excluded with --compiler: one gather for the whole prompt, nothing for a kernel to win."
                )
            elif recipe == "residual_add":
                decision, recipe = "draft", "residual_add_draft_3"
                reason = "No recipe accepted the layer; the third draft passed public and hidden cases."
            matches[signature] = Match(
                signature=signature,
                layers=tuple(item.name for item in layers),
                decision=decision,
                recipe=recipe,
                weights={},
                attributes={},
                reason=reason,
                evidence=evidence,
            )
    return MatchPlan(
        checkpoint="9f3c1d2ab4e87701", target="trn2", matches=tuple(matches.values()), unused_parameters=()
    )


def kernel_report(match: Match, first: Layer, draw: random.Random) -> ParityReport:
    """Eight right cases in two dtypes and two sabotaged ones."""
    cases = []
    shapes = tuple(item.shape for item in first.inputs)
    kinds = [
        ("layer 0, as captured", "captured"),
        ("ordinary", "ordinary"),
        ("tail 577", "tail"),
        ("scale 30", "stress"),
    ]
    for dtype in ("float32", "bfloat16"):
        for index, (name, kind) in enumerate(kinds):
            error = 10 ** draw.uniform(-7.4, -6.1) if dtype == "float32" else 10 ** draw.uniform(-3, -2.5)
            limits = {"relative_l2": 2e-6} if dtype == "float32" else {"relative_l2": 8e-3, "r_ratio": 1.2}
            metrics = {"relative_l2": error, "max_abs": error * 4}
            if dtype == "bfloat16":
                metrics["r_ratio"] = draw.uniform(0.92, 1.08)
            cases.append(
                CaseResult(
                    name=name,
                    kind=kind,
                    tier="simulator",
                    dtype=dtype,
                    shapes=shapes,
                    seed=None if kind == "captured" else 100 + index,
                    metrics=metrics,
                    limits=limits,
                    passed=True,
                )
            )
        wrong = 10 ** draw.uniform(-3.4, 0)
        cases.append(
            CaseResult(
                name="last tile dropped",
                kind="sabotage",
                tier="simulator",
                dtype=dtype,
                shapes=shapes,
                seed=7,
                metrics={"relative_l2": max(wrong, 0.02) if dtype == "bfloat16" else wrong},
                limits={"relative_l2": 2e-6 if dtype == "float32" else 8e-3},
                passed=True,
                detail="refused by relative_l2",
            )
        )
    subject = f"{match.recipe} · {first.module_class} · {match.signature}"
    return ParityReport(subject=subject, oracle=ORACLE, cases=tuple(cases), seconds=draw.uniform(0.4, 9))


def graph_spec(phase: str) -> GraphSpec:
    tokens = 128 if phase == "prefill" else 1
    weights = [
        GraphInput(
            name=f"w{index}",
            role="weight",
            spec=item,
            source=name,
            transform="transpose" if "proj" in name else "none",
        )
        for index, (name, item) in enumerate(checkpoint().weights.items())
    ]
    caches = [
        GraphInput(name=f"{part}_cache_{index}", role="state", spec=spec(1, KV_HEADS, 256, HEAD_DIM))
        for index in range(LAYERS)
        for part in ("k", "v")
    ]
    given = [
        GraphInput(name="ids", role="input", spec=spec(1, tokens, dtype="int32")),
        GraphInput(name="positions", role="input", spec=spec(1, dtype="int32")),
    ]
    outputs = [GraphOutput(name="logits", role="output", spec=spec(1, VOCABULARY, dtype="float32"))]
    outputs += [
        GraphOutput(name=f"{item.name}_out", role="state", spec=item.spec, alias_of=item.name)
        for item in caches
    ]
    return GraphSpec(
        id=f"{phase}_b1_t256",
        phase=phase,
        batch=1,
        sequence_length=tokens,
        cache_length=256,
        inputs=(*weights, *given, *caches),
        outputs=tuple(outputs),
    )


def graph_report(found: GraphSpec, draw: random.Random) -> ParityReport:
    cases = tuple(
        CaseResult(
            name=item.name,
            kind="captured",
            tier="xla-cpu",
            dtype="float32",
            shapes=(item.spec.shape,),
            seed=None,
            metrics={"max_abs": 10 ** draw.uniform(-6.5, -5)},
            limits={"max_abs": 1e-4},
            passed=True,
        )
        for item in found.outputs
    )
    return ParityReport(subject=found.id, oracle=ORACLE, cases=cases, seconds=12.5)


def model_reports(draw: random.Random) -> tuple[ParityReport, ...]:
    prompts = {
        "capital": (
            "The capital of France is",
            " Paris, and the city has been the seat of the French government since",
        ),
        "proof": (
            "A proof is convincing when",
            " it can be checked by someone who does not want to believe it.",
        ),
        "code": (
            "def fibonacci(n):\n",
            "    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)",
        ),
    }
    reports = []
    for subject, dtype in (("float32 greedy", "float32"), ("bfloat16", "bfloat16")):
        cases = []
        for name, (prompt, text) in prompts.items():
            ported, tokens = text, list(range(24))
            ported_tokens = list(tokens)
            if dtype == "bfloat16" and name == "capital":
                ported = text.replace("seat of the French government", "home of its kings and their")
                ported_tokens[9:] = [900 + token for token in tokens[9:]]
            metrics = (
                {"logits_relative_l2": 3.1e-6}
                if dtype == "float32"
                else {"r_ratio": draw.uniform(0.96, 1.07)}
            )
            scale = -6.5 if dtype == "float32" else -2.6
            if subject == "bfloat16":
                metrics |= {
                    f"layer_{n}": 10 ** (scale + n * 0.012 + draw.uniform(0, 0.15)) for n in range(LAYERS)
                }
            detail = {
                "prompt": prompt,
                "reference_text": text,
                "ported_text": ported,
                "reference_tokens": tokens,
                "ported_tokens": ported_tokens,
            }
            limits = {"logits_relative_l2": 1e-4} if dtype == "float32" else {"r_ratio": 1.2}
            cases.append(
                CaseResult(
                    name=name,
                    kind="captured",
                    tier="simulator",
                    dtype=dtype,
                    shapes=((1, 24),),
                    seed=None,
                    metrics=metrics,
                    limits=limits,
                    passed=True,
                    detail=json.dumps(detail),
                )
            )
        reservations = (
            ("Greedy text in bfloat16 may part where two tokens are nearly equal.",)
            if dtype == "bfloat16"
            else ()
        )
        reports.append(
            ParityReport(
                subject=subject, oracle=ORACLE, cases=tuple(cases), not_proven=reservations, seconds=88
            )
        )
    return tuple(reports)


def conversion(**changes: Any) -> dict[str, Any]:
    """The keyword arguments of the report functions."""
    return {**_unchanged(), **changes}


@cache
def _unchanged() -> dict[str, Any]:
    draw = random.Random(1)
    graphs = (graph("prefill"), graph("decode"))
    chosen = plan(*graphs)
    first = {signature: layers[0] for item in graphs for signature, layers in item.groups().items()}
    specs = (graph_spec("prefill"), graph_spec("decode"))
    lint = {
        "opcodes": {
            "dot": 211,
            "add": 322,
            "multiply": 512,
            "reshape": 733,
            "transpose": 240,
            "broadcast": 610,
            "reduce": 61,
            "convert": 180,
            "custom-call": 301,
            "slice": 122,
            "concatenate": 60,
            "dynamic-update-slice": 60,
            "rsqrt": 61,
        },
        "findings": [
            {"code": "NCC_EVRF015", "message": "301 custom calls need the NKI kernels of this bundle"}
        ],
        "weight_bytes": 269060352,
    }
    return {
        "checkpoint": checkpoint(),
        "graphs": graphs,
        "plan": chosen,
        "kernel_reports": tuple(
            kernel_report(match, first[match.signature], draw)
            for match in chosen.matches
            if match.decision != "compiler"
        ),
        "graph_reports": tuple(graph_report(item, draw) for item in specs),
        "model_reports": model_reports(draw),
        "graph_specs": specs,
        "graph_lints": {specs[0].id: lint, specs[1].id: {**lint, "findings": []}},
        "stages": (
            StageRecord(name="fetch", seconds=0.04, reused=True, detail="269 MB, revision 9f3c1d2ab4e87701"),
            StageRecord(name="walk", seconds=1.9, reused=False, detail="2 phases, 333 layers, 20 signatures"),
            StageRecord(
                name="match", seconds=6.2, reused=False, detail="18 by recipe or draft, 2 by the compiler"
            ),
            StageRecord(name="verify", seconds=71.4, reused=False, detail="180 cases, 36 of them sabotage"),
            StageRecord(name="lower", seconds=9.7, reused=False, detail="2 graphs"),
            StageRecord(name="check graphs", seconds=25.1, reused=False, detail="122 outputs"),
            StageRecord(name="check model", seconds=176.0, reused=False, detail="6 prompts"),
        ),
        "target": "trn2",
        "dtype": "bfloat16",
        "bundle": "out/smollm2-135m-instruct.trn2.neuron",
    }


def failing(report: ParityReport, index: int, **changes: Any) -> ParityReport:
    """The same report with one case failed."""
    cases = list(report.cases)
    cases[index] = replace(cases[index], passed=False, **changes)
    return replace(report, cases=tuple(cases))


def sequence_case(name: str, dtype: str, metrics: dict[str, float], limits: dict[str, float]) -> CaseResult:
    return CaseResult(
        name=name,
        kind="captured",
        tier="simulator",
        dtype=dtype,
        shapes=((3, 5, 64),),
        seed=None,
        metrics=metrics,
        limits=limits,
        passed=True,
        detail="worst at layer 3 of 30",
    )


def sequence_graph_report(graph_id: str) -> ParityReport:
    """Two prompts in float32 with limits; in bfloat16 without, and a verdict for each output over both."""
    cases = []
    for number, error in ((1, 2e-6), (2, 5e-6)):
        for output, factor in (("logits", 1.0), ("key caches", 2.0)):
            metrics = {"max_abs": 10 * error, "relative_max": factor * error}
            cases.append(
                sequence_case(f"prompt {number} · {output}", "float32", metrics, {"relative_max": 1e-4})
            )
            metrics = {"max_abs": 0.3, "r_ratio": 0.4 + number}
            cases.append(sequence_case(f"prompt {number} · {output}", "bfloat16", metrics, {}))
    for output, ratio in (("logits", 0.9), ("key caches", 1.05)):
        cases.append(
            sequence_case(f"all prompts · {output}", "bfloat16", {"r_ratio": ratio}, {"r_ratio": 1.81})
        )
    return ParityReport(
        subject=graph_id,
        oracle=ORACLE,
        cases=tuple(cases),
        not_proven=("neuronx-cc has not compiled this graph",),
    )


def sequence_model_report() -> ParityReport:
    """Two teacher-forced prompts in bfloat16, measured by phase and output, and the verdicts over both."""
    cases = []
    for number in (1, 2):
        for phase in ("prefill", "decode"):
            for output in ("logits", "key caches"):
                ratio = 2.66 if (number, phase, output) == (1, "prefill", "logits") else 0.5 + number / 4
                name = f"prompt {number} · {output} · {phase}"
                cases.append(sequence_case(name, "bfloat16", {"error_l2": 3.0, "r_ratio": ratio}, {}))
    for output, ratio in (("logits", 1.12), ("key caches", 1.09)):
        cases.append(
            sequence_case(f"all prompts · {output}", "bfloat16", {"r_ratio": ratio}, {"r_ratio": 1.81})
        )
    return ParityReport(
        subject="bfloat16 teacher-forced",
        oracle=ORACLE,
        cases=tuple(cases),
        not_proven=("no Neuron device has run this model",),
    )


def sequences(**changes: Any) -> dict[str, Any]:
    """The conversion with whole-prompt reports in both dtypes, as the pipeline makes them."""
    graphs = tuple(sequence_graph_report(f"{phase}_b1_t256") for phase in ("prefill", "decode"))
    models = (_unchanged()["model_reports"][0], sequence_model_report())
    return conversion(graph_reports=graphs, model_reports=models, **changes)
