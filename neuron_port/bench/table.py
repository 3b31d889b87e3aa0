"""The results of a benchmark as text for a terminal: conditions, arms, tasks, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from neuron_port.bench.results import BenchResults
from neuron_port.drafting.spending.cost import dollars

ERRORS_SHOWN = 12
NOTHING = "-"


def results_text(results: BenchResults) -> str:
    """Everything that is published, in tables of plain text."""
    conditions = results.conditions
    parts = [
        "\n".join(f"{name:<11}{value}" for name, value in conditions.lines()),
        "\n".join(f"* {note}" for note in conditions.notes),
        _columns(rate_rows(results)),
        _columns(cost_rows(results)),
        _columns(task_rows(results)),
    ]
    errors = error_rows(results)
    if len(errors) > 1:
        parts.append(_columns(errors))
    parts += [f"{name}: left out: {reason}" for name, reason in results.rejected.items()]
    parts.append(results.rerun.line)
    return "\n\n".join(parts) + "\n"


def rate_rows(results: BenchResults) -> list[list[str]]:
    """How often each arm succeeds."""
    ks = results.conditions.ks
    rows = [["arm", "admitted", *(f"pass@{k}" for k in ks), "hidden failures", "repairs"]]
    for one in results.summaries:
        rates = [percent(one.pass_at.get(k)) for k in ks]
        repairs = _number(one.median_repair_rounds, "g")
        rows.append([one.arm, f"{one.admitted}/{one.runs}", *rates, percent(one.hidden_failures), repairs])
    return rows


def cost_rows(results: BenchResults) -> list[list[str]]:
    """What an admitted kernel takes; "per kernel" is all that the arm used, failed runs too, for each of them."""
    rows = [["arm", "tokens: median", "90 %", "per kernel", "dollars: median", "90 %", "per kernel"]]
    for one in results.summaries:
        tokens = (one.median_tokens, one.ninetieth_tokens, one.tokens_per_kernel)
        costs = (one.median_cost_usd, one.ninetieth_cost_usd, one.cost_per_kernel_usd)
        rows.append(
            [
                one.arm,
                *(_number(value, ",.0f") for value in tokens),
                *(NOTHING if usd is None else dollars(usd) for usd in costs),
            ]
        )
    return rows


def task_rows(results: BenchResults) -> list[list[str]]:
    """For each task and arm the runs that ended with an admitted kernel, and the independent drafts that are right."""
    arms = [summary.arm for summary in results.summaries]
    rows = [["task", *(f"{arm} (drafts)" for arm in arms)]]
    for task in dict.fromkeys(result.task for result in results.results):
        row = [task]
        for arm in arms:
            found = [result for result in results.of_arm(arm) if result.task == task]
            admitted = sum(result.admitted for result in found)
            row.append(f"{admitted}/{len(found)} ({found[0].samples_passed}/{found[0].samples})")
        rows.append(row)
    return rows


def error_rows(results: BenchResults) -> list[list[str]]:
    """How many candidates each class of error ended, by arm, most frequent first."""
    total = sum((summary.error_classes for summary in results.summaries), Counter[str]())
    rows = [["refused candidates", *(summary.arm for summary in results.summaries)]]
    for name, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:ERRORS_SHOWN]:
        rows.append([name, *(f"{summary.error_classes[name] or NOTHING}" for summary in results.summaries)])
    hidden = len(total) - ERRORS_SHOWN
    if hidden > 0:
        rows.append([f"and {hidden} other classes", *("" for _ in results.summaries)])
    return rows


def percent(part: float | None) -> str:
    return NOTHING if part is None else f"{100 * part:.0f} %"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
