"""What a recipe's kernel would cost on each target, as the latency model predicts it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from neuron_port.contributing.folder_checks import TARGETS
from neuron_port.contributing.records import Check, Say, judged, not_run
from neuron_port.contributing.sizes import elements
from neuron_port.contributing.trials import failure_text
from neuron_port.execution import to_numpy
from neuron_port.grading.oracle import TORCH_DTYPES
from neuron_port.parity.recipe_cases import case_inputs
from neuron_port.profiling.words import share_text, time_text
from neuron_port.recipe import Case
from neuron_port.registry import RegisteredRecipe
from neuron_port.simulator import load_kernel_source, run_kernel
from neuron_port.simulator.target import find_target
from neuron_port.simulator.timing import predict

COST_ROW = re.compile(r"\| [^|]+: [^|]+, \w+ \| (trn1|trn2|inf2) \|( [^|]+ \|){3} (memory|compute) \|")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The prediction for one case on one target; times in ns, `roofline_share` of 1 is as fast as can be."""

    target: str
    case: str
    sizes: str  # "T = 128, H = 768"
    dtype: str
    latency_ns: float
    device_ns: float
    roofline_share: float
    bound: str  # "memory" or "compute"


def check_cost(found: RegisteredRecipe, say: Say) -> tuple[Check, tuple[Cost, ...]]:
    """Predict the kernel on its largest ordinary case and on its largest of all, per target."""
    if found.is_draft:
        reason = "the kernel is a draft, which runs in the sandbox only: `neuron-port recipes adopt` makes it a recipe"
        return not_run("cost", reason), ()
    try:
        costs = predicted_costs(found, say)
    except Exception as error:  # the recipe's own code may raise anything
        return judged("cost", "", [failure_text(error, found)]), ()
    stale = stale_rows(found.source_text("README.md"), costs)
    problems = [f"README.md has other figures, put today's table there: `{row}`" for row in stale[:1]]
    facts = [asdict(cost) for cost in costs]
    return judged("cost", "", problems, facts, tried=f"predicted for {', '.join(TARGETS)}, see below"), costs


def predicted_costs(found: RegisteredRecipe, say: Say) -> tuple[Cost, ...]:
    """One record per case and target. trn1 and inf2 have the same core: what was computed for one is the other's."""
    known: dict[tuple[str, int], Cost] = {}
    costs = []
    for case in shown_cases(found):
        for target in TARGETS:
            generation = find_target(target).generation
            if f"gen{generation}" not in found.recipe.generations:
                continue
            if (case.name, generation) not in known:
                say(f"{case.name} on {target}")
                known[case.name, generation] = _predicted(found, case, target)
            values = asdict(known[case.name, generation])
            costs.append(Cost(**{**values, "target": target}))
    return tuple(costs)


def shown_cases(found: RegisteredRecipe) -> list[Case]:
    """The largest ordinary case, and the largest that is `large`: one small and one long problem."""
    cases = []
    for kind in ("ordinary", "large"):
        of_kind = [case for case in found.recipe.cases if case.kind == kind]
        if of_kind:
            cases.append(max(of_kind, key=lambda case: elements(found.recipe, case.sizes)))
    return cases


def _predicted(found: RegisteredRecipe, case: Case, target: str) -> Cost:
    recipe = found.recipe
    dtype = "bfloat16" if "bfloat16" in recipe.dtypes else recipe.dtypes[0]
    arrays = [
        None
        if tensor is None
        else to_numpy(tensor.to(TORCH_DTYPES[dtype]) if tensor.is_floating_point() else tensor)
        for tensor in case_inputs(recipe, case)
    ]
    while arrays and arrays[-1] is None:  # left to the kernel's own default
        arrays.pop()
    kernel = load_kernel_source(found.kernel.source, found.kernel.entry_point, f"{found.name}/kernel.py")
    timeline = predict(run_kernel(kernel, *arrays, target=target, **case.attributes))
    return Cost(
        target=target,
        case=case.name,
        sizes=", ".join(f"{name} = {value}" for name, value in case.sizes.items()),
        dtype=dtype,
        latency_ns=timeline.latency_ns,
        device_ns=timeline.device_ns,
        roofline_share=timeline.roofline_fraction,
        bound=timeline.roofline.bound,
    )


def stale_rows(page: str, costs: tuple[Cost, ...]) -> list[str]:
    """Rows of a page that have the form of the cost table and are none of today's. A page may have another form."""
    today = set(cost_table(costs).splitlines())
    return [line for line in page.splitlines() if COST_ROW.fullmatch(line) and line not in today]


def cost_table(costs: tuple[Cost, ...]) -> str:
    """The Markdown table that a recipe's README.md has."""
    rows = ["| case | target | latency of a call | on the device | share of the roofline | bound |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    rows += [
        f"| {cost.case}: {cost.sizes}, {cost.dtype} | {cost.target} | {time_text(cost.latency_ns)} "
        f"| {time_text(cost.device_ns)} | {share_text(cost.roofline_share)} | {cost.bound} |"
        for cost in costs
    ]
    return "\n".join(rows)
