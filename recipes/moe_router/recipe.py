"""Router of a mixture of experts: a projection to one logit per expert, and the choice of the best.

Matches modules with one matrix [E, H] (E at most 512) that take tokens [.., H] and return, in any order, the logits
[T, E], the scores [T, C] and the indices [T, C] of the chosen experts; or the logits and the scores of all experts
[T, E], zero where one is not chosen. Scores are softmax or sigmoid, perhaps divided by their sum and scaled. A correction
[E] may count for the choice alone, and the choice may be limited to the best groups of experts. A linear bias may be
there. The order of unsorted indices means nothing: outputs are compared sorted by index.
Sizes: T = tokens, H = hidden, E = experts, C = choices, G = groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from neuron_port.recipe import Binding, Case, Recipe, Size, Tolerance
from neuron_port.types import WeightSource

MOST_EXPERTS = 512  # the logits of 128 tokens fill one bank of PSUM
MOST_GROUPS_KEPT = 8
NEGLIGIBLE = 1e-30  # of a score: float32's softmax has underflowed here, or is about to


def bind(call: Any) -> tuple[Binding, ...]:
    """Accept a module with one matrix [E, H] whose outputs have the shapes of a router's."""
    module = call.module
    if call.operation != "module" or module is None or len(call.inputs) not in (1, 2):
        return ()
    x = call.inputs[0]
    stored = {name: tensor for name, tensor in _stored(module) if tensor.is_floating_point()}
    matrices = [name for name, tensor in stored.items() if tensor.ndim == 2 and tensor.shape[0] > 1]
    if x.dtype not in RECIPE.dtypes or len(matrices) != 1:
        return ()
    experts, hidden = stored.pop(matrices[0]).shape
    if hidden != x.shape[-1] or not 1 < experts <= MOST_EXPERTS:
        return ()
    if any(tensor.numel() != experts for tensor in stored.values()) or len(stored) > 2:
        return ()
    if len(call.inputs) == 2 and call.inputs[1].size != experts:
        return ()
    described = _outputs(call, experts)
    if described is None:
        return ()
    bindings = []
    for extras, choice in product(
        _extras(list(stored), module), _choices(call, experts, described["choices"])
    ):
        weights = {"weight": WeightSource(name=matrices[0], transform="transpose")} | extras
        if choice["group_rule"] == "two" and choice["function"] == "softmax":
            continue
        bindings.append(Binding(weights=weights, attributes=described | choice))
    return tuple(bindings)


def _stored(module: Any) -> Iterator[tuple[str, Any]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _outputs(call: Any, experts: int) -> dict[str, Any] | None:
    """What the layer's own results look like: their order, number of choices, and dtypes; None if no router's."""
    results = call.run()
    if not isinstance(results, tuple) or len(results) not in (2, 3):
        return None
    if any(getattr(result, "ndim", 0) != 2 for result in results):
        return None
    whole = [place for place, result in enumerate(results) if not result.is_floating_point()]
    if len(whole) == 1 and len(results) == 3:
        indices = results[whole[0]]
        others = [place for place in range(3) if place != whole[0]]
        of_all = [place for place in others if results[place].shape[1] == experts]
        chosen = [place for place in others if results[place].shape == indices.shape]
        if not of_all or not chosen or (of_all == chosen and len(chosen) == 1):
            return None
        logits = of_all[0]
        scores = next(place for place in chosen if place != logits)
        roles = {whole[0]: "indices", logits: "logits", scores: "scores"}
        choices, dense = indices.shape[1], False
    elif not whole and all(result.shape[1] == experts for result in results):
        choices = call.attributes.get("top_k", 0)
        logits, scores, dense = 1, 0, True
        roles = {logits: "logits", scores: "scores"}
        if not isinstance(choices, int) or not 0 < choices <= experts or len(results) != 2:
            return None
    else:
        return None
    narrow = call.inputs[0].dtype != "float32"
    return {
        "returns": ",".join(roles[place] for place in sorted(roles)),
        "choices": int(choices),
        "dense": dense,
        "float32_logits": narrow and "float32" in str(results[logits].dtype),
        "float32_scores": narrow and "float32" in str(results[scores].dtype),
    }


def _extras(names: list[str], module: Any) -> list[dict[str, WeightSource]]:
    """What the stored vectors may be: the bias of the projection, or the correction of the choice."""
    if not names:
        return [{}]
    if len(names) == 2:
        pairs = (names, names[::-1])
        return [{"bias": WeightSource(name=a), "correction": WeightSource(name=b)} for a, b in pairs]
    buffers = {name for name, _ in module.named_buffers()}
    roles = ("correction", "bias") if names[0] in buffers else ("bias", "correction")
    return [{role: WeightSource(name=names[0])} for role in roles]


def _choices(call: Any, experts: int, choices: int) -> Iterator[dict[str, Any]]:
    """Every way to score and choose that the module's own numbers allow, the likelier first."""
    numbers: Mapping[str, Any] = call.attributes
    likes_sigmoid = bool([name for name, _ in _stored(call.module) if "correction" in name])
    functions = ("sigmoid", "softmax") if likes_sigmoid else ("softmax", "sigmoid")
    scales = [float(value) for name, value in numbers.items() if "scal" in name and _is_number(value)]
    scales = [scale for scale in scales if scale not in (0.0, 1.0)][:1]
    normalized = next(
        (value for name, value in numbers.items() if "norm" in name and isinstance(value, bool)), True
    )
    for groups, kept, rule in _groupings(numbers, experts):
        for scale in (*scales, 1.0, 1.0 / choices):
            for function, normalize in product(functions, (normalized, not normalized)):
                yield {
                    "function": function, "normalize": normalize, "scale": scale,
                    "groups": groups, "groups_kept": kept, "group_rule": rule,
                }  # fmt: skip


def _groupings(numbers: Mapping[str, Any], experts: int) -> list[tuple[int, int, str]]:
    """(groups, groups kept, how a group is valued), from whole numbers whose names speak of groups."""
    named = {name: value for name, value in numbers.items() if "group" in name and type(value) is int}
    kept = [value for name, value in named.items() if "top" in name]
    groups = [value for name, value in named.items() if "top" not in name]
    found = [
        (many, few, rule)
        for many, few in zip(groups[:1], kept[:1], strict=False)
        if 1 < many <= experts and experts % many == 0 and few < many and few <= MOST_GROUPS_KEPT
        for rule in ("two", "max")
        if rule == "max" or experts // many > 1
    ]
    return [*found, (1, 1, "max")]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def forward(
    operator: Any, weights: Any, attributes: Any, hidden: Any, correction: Any = None
) -> tuple[Any, ...]:
    """Logits, scores and indices in the order in which the layer returns them."""
    options = {name: value for name, value in attributes.items() if name != "returns"}
    own = weights.get("correction", correction)
    logits, scores, indices = operator(
        hidden.reshape(-1, hidden.shape[-1]),
        weights["weight"],
        weights.get("bias"),
        None if own is None else own.reshape(-1),
        **options,
    )
    results = {"logits": logits, "scores": scores, "indices": indices.long()}
    return tuple(results[name] for name in attributes["returns"].split(","))


def comparable(results: list[Any]) -> list[Any]:
    """Scores and indices [T, C] in ascending order of indices; other results as they are.

    Experts of score zero are all -1: where softmax leaves nothing for them, any of them is as good as another.
    """
    whole = [result for result in results if not result.is_floating_point()]
    if len(whole) != 1:
        return results
    indices = whole[0]
    scores = [item for item in results if item.is_floating_point() and item.shape == indices.shape]
    if len(scores) == 1:
        indices = indices.masked_fill(scores[0].abs() < NEGLIGIBLE, -1)
    order = indices.argsort(dim=-1, stable=True)
    found = [indices if result is whole[0] else result for result in results]
    return [result.gather(-1, order) if result.shape == order.shape else result for result in found]


def inputs(sizes: Any, draw: Any) -> tuple[Any, ...]:
    """x [T, H], weight [H, E], and if sizes say so bias [E] and correction [E]."""
    experts = sizes["E"]
    return (
        draw.normal((sizes["T"], sizes["H"])),
        draw.weight((sizes["H"], experts)),
        draw.normal((experts,)) if sizes.get("bias") else None,
        draw.weight((1, experts)).reshape(-1) if sizes.get("correction") else None,
    )


def flops(x: tuple[int, ...], weight: tuple[int, ...], *others: Any) -> int:
    """Two per multiply-add of the projection."""
    return 2 * x[0] * weight[0] * weight[1]


MIXTRAL = {
    "function": "softmax", "choices": 2, "groups": 1, "groups_kept": 1, "group_rule": "max", "normalize": True,
    "scale": 1.0, "dense": False, "float32_logits": False, "float32_scores": False,
}  # fmt: skip
DEEPSEEK_V2 = MIXTRAL | {
    "choices": 6, "groups": 4, "groups_kept": 2, "normalize": False, "scale": 16.0, "float32_scores": True,
}  # fmt: skip
DEEPSEEK_V3 = MIXTRAL | {
    "function": "sigmoid", "choices": 8, "groups": 8, "groups_kept": 4, "group_rule": "two", "scale": 2.5,
    "float32_logits": True, "float32_scores": True,
}  # fmt: skip
GPT_OSS = MIXTRAL | {"choices": 4}
LLAMA4 = MIXTRAL | {"function": "sigmoid", "choices": 1, "normalize": False, "dense": True}


def _case(name: str, kind: Any, attributes: Mapping[str, Any], scale: float = 1.0, **sizes: int) -> Case:
    return Case(name=name, kind=kind, sizes=sizes, attributes=attributes, scale=scale)


RECIPE = Recipe(
    name="moe_router",
    summary="Router of a mixture of experts: logits, scores and indices of the chosen experts.",
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? correction, str function, int choices, int groups, "
    "int groups_kept, str group_rule, bool normalize, float scale, bool dense, bool float32_logits, "
    "bool float32_scores) -> (Tensor, Tensor, Tensor)",
    operation="module",
    bind=bind,
    forward=forward,
    sequence_axes=(-2,),
    scales=(1.0, 4.0, 3e-3),
    mixed_dtypes=True,
    comparable=comparable,
    inputs=inputs,
    flops=flops,
    tolerance=Tolerance(reduction_length="H"),
    # E and the number of choices and groups go together: they stay as the cases have them.
    sizes={"T": Size(least=1, most=32768), "H": Size(least=1, most=16384)},
    cases=(
        _case("one token of eight experts", "ordinary", MIXTRAL, T=1, H=256, E=8),
        _case("a prompt, four of 32 with bias", "ordinary", GPT_OSS, T=64, H=320, E=32, bias=1),
        _case("best groups by their best", "ordinary", DEEPSEEK_V2, T=20, H=256, E=40),
        _case("best groups by two, corrected", "ordinary", DEEPSEEK_V3, T=40, H=256, E=256, correction=1),
        _case("dense scores", "ordinary", LLAMA4, T=5, H=128, E=16),
        _case("corrected softmax", "ordinary", MIXTRAL | {"choices": 3}, T=9, H=128, E=12, correction=1),
        _case("not normalized", "ordinary", MIXTRAL | {"normalize": False}, T=9, H=128, E=12),
        _case("fewer than eight experts", "tail", MIXTRAL, T=130, H=193, E=3),
        _case("small groups", "tail", DEEPSEEK_V3 | {"choices": 2, "groups": 2, "groups_kept": 1},
              T=3, H=65, E=4, correction=1),
        _case("eleven of twelve", "tail", MIXTRAL | {"choices": 11}, T=7, H=33, E=12),
        _case("one feature", "tail", MIXTRAL, T=2, H=1, E=4),
        _case("small values", "stress", DEEPSEEK_V3, scale=1e-2, T=9, H=192, E=64, correction=1),
        _case("large values", "stress", GPT_OSS, scale=10.0, T=9, H=192, E=16, bias=1),
        _case("many tokens", "large", MIXTRAL | {"choices": 8}, T=600, H=256, E=128),
    ),
)  # fmt: skip
