"""The report of a results file: counts for each test file, totals, failures by reason, the tighter comparison."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

# What is not the simulator's to mend, each with the words that show it.
NOT_OURS = (
    ("private: nki.compiler.frontend and other parts of AWS's compiler", r"nki\.compiler|kernel_tracer"),
    (
        "memory: a golden value or an input over the memory limit",
        r"MemoryError|[Uu]nable to allocate|not enough memory|alloc_cpu",
    ),
    (
        "suite: test_gen_mask_tkg.py asks for an input by a name that it did not give",
        r"^KeyError: 'mask_out_hbm'",
    ),
    ("time: over the limit for one test", r"TimeLimitReached"),
    (
        "race: both cores of a test's own kernel write the same bytes in no order",
        r"test_\w+\.py:\d+: core \d writes",
    ),
    ("process died (memory)", r"^process died"),
)


def results_of(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last result of every test; one that started and has none died with its process."""
    results: dict[str, dict[str, Any]] = {}
    for line in lines:
        if not line.get("started"):
            results[line["test"]] = line
    for line in lines:
        if line.get("started") and line["test"] not in results:
            results[line["test"]] = {
                "test": line["test"], "outcome": "failed", "error": "", "message": "process died", "calls": 0,
                "simulated_seconds": 0.0, "seconds": 0.0, "outputs": [], "instructions": 0,
            }  # fmt: skip
    imports = {name for name in results if name.endswith("::(import)")}
    for name in imports:  # a file that imports by now
        if any(other != name and other.startswith(name.removesuffix("(import)")) for other in results):
            del results[name]
    return results


def reason_of(result: dict[str, Any]) -> str:
    """One line that is the same for failures with the same cause."""
    text = f"{result.get('error', '')}: {result.get('message', '')}"
    text = text.replace("InferenceException: ", "").replace("ValidationException: ", "")
    for name, pattern in NOT_OURS:
        if re.search(pattern, text + " ".join(result.get("trace", []))[-3000:]):
            return name
    first = text.splitlines()[0]
    first = re.sub(r"^(\w+: )?/\S*/([\w.]+:\d+): ", r"\1\2: ", first)
    first = re.sub(r"\d+(\.\d+)?", "N", re.sub(r"`[^`]*`", "`_`", first))
    return first[:170]


def report(lines: list[dict[str, Any]], *, verbose: bool = False) -> str:
    """The whole report as text."""
    results = results_of(lines)
    by_file: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, result in results.items():
        by_file[name.partition("::")[0].removeprefix("integration/nkilib/")].append(result)
    out = [f"{'test file':58} {'pass':>5} {'fail':>5} {'skip':>5} {'calls':>6} {'simulated s':>12}  reasons"]
    out += [_file_line(file, by_file[file]) for file in sorted(by_file)]
    out += _totals(list(results.values()))
    failed = [result for result in results.values() if result["outcome"] == "failed"]
    reasons = Counter(reason_of(result) for result in failed)
    out += ["", "failures by reason"] + [f"{count:6}  {reason}" for reason, count in reasons.most_common()]
    out += _tight(results)
    if verbose:
        out += ["", "failed tests"] + [f"{r['test']}\n        {reason_of(r)}" for r in failed]
    return "\n".join(out)


def _file_line(file: str, tests: list[dict[str, Any]]) -> str:
    counts = Counter(test["outcome"] for test in tests)
    seconds = sum(test.get("simulated_seconds", 0.0) for test in tests)
    calls = sum(test.get("calls", 0) for test in tests)
    reasons = Counter(reason_of(test) for test in tests if test["outcome"] == "failed")
    shown = "; ".join(f"{count}x {reason[:70]}" for reason, count in reasons.most_common(2))
    return f"{file:58} {counts['passed']:5} {counts['failed']:5} {counts['skipped']:5} {calls:6} {seconds:12.1f}  {shown}"


def _totals(tests: list[dict[str, Any]]) -> list[str]:
    counts = Counter(test["outcome"] for test in tests)
    not_ours = Counter(
        reason
        for test in tests
        if test["outcome"] == "failed"
        for reason in [reason_of(test)]
        if _is_not_ours(reason)
    )
    possible = counts["passed"] + counts["failed"] - sum(not_ours.values())
    seconds = sum(test.get("simulated_seconds", 0.0) for test in tests)
    processor = sum(test.get("simulated_processor_seconds", 0.0) for test in tests)
    calls = sum(test.get("calls", 0) for test in tests)
    instructions = sum(test.get("instructions", 0) for test in tests)
    share = 100 * counts["passed"] / possible if possible else 0.0
    return [
        "",
        f"{len(tests)} tests: {counts['passed']} passed, {counts['failed']} failed, "
        f"{counts['skipped']} skipped by the suite",
        f"of {possible} that fit the limits and need no private part, {counts['passed']} passed: {share:.1f} %",
        f"{calls} kernel calls, {instructions} instructions, {seconds:.1f} s of simulation "
        f"({processor:.1f} s of processor time)",
    ]


def _is_not_ours(reason: str) -> bool:
    return any(reason == name for name, _ in NOT_OURS)


def _tight(results: dict[str, dict[str, Any]]) -> list[str]:
    outputs = [(name, one) for name, result in results.items() for one in result.get("outputs", [])]
    if not outputs:
        return []
    tight = sum(one["tight"] for _, one in outputs)
    loose = [(name, one) for name, one in outputs if not one["tight"]]
    lines = [
        "",
        f"our tighter comparison: {tight} of {len(outputs)} outputs are within the noise of their dtypes",
    ]
    for name, one in sorted(loose, key=lambda pair: -pair[1].get("rms_relative", 0.0))[:20]:
        shown = {key: value for key, value in one.items() if key != "tight"}
        lines.append(f"    {name.rpartition('::')[2][:90]}  {shown}")
    return lines
