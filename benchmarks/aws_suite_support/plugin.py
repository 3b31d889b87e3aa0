"""A pytest plugin inside the suite's process: stand-ins, a time limit for each test, and one JSON line per result.

Loaded with `-p`. A test that already has a result in the file is deselected, so a run can be stopped and resumed; a
line `started` without a result marks the test in which the process died.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.aws_suite_support import stand_ins
from benchmarks.aws_suite_support.comparison import compare

RESULTS = "AWS_SUITE_RESULTS"
SECONDS_PER_TEST = "AWS_SUITE_SECONDS_PER_TEST"
MEMORY_GIB = "AWS_SUITE_MEMORY_GIB"


class TimeLimitReached(BaseException):
    """A test ran longer than its limit; a BaseException, so that tests that expect failures do not swallow it."""


class Recorder:
    """Writes results as they come."""

    def __init__(self, path: Path, seconds_per_test: float) -> None:
        self.path = path
        self.seconds_per_test = seconds_per_test
        self.outputs: list[dict[str, Any]] = []
        self.done = {line["test"] for line in read_lines(path)}  # also those in which a process died

    def write(self, **line: Any) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Leave out what has a result."""
        kept = [item for item in items if item.nodeid not in self.done]
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.done])
        items[:] = kept
        self._watch_comparisons()
        _simulate_several_ranks()

    def _watch_comparisons(self) -> None:
        """Compare every output a second time, more tightly, where the suite compares it."""
        from test.utils.output_validator import OutputValidator

        inner = OutputValidator._compare_outputs
        recorder = self

        def compare_outputs(self: Any, actual: Any, golden: Any, *arguments: Any, **options: Any) -> Any:
            for name, expected in golden.items():
                if isinstance(expected, np.ndarray) and name in actual:
                    recorder.outputs.append(
                        {"name": name, **compare(actual[name], expected, stand_ins.CALLS.roundoff)}
                    )
            return inner(self, actual, golden, *arguments, **options)

        OutputValidator._compare_outputs = compare_outputs

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        """Run one test under its time limit and record it."""
        self.outputs = []
        self.report: dict[str, Any] = {"outcome": "passed"}
        stand_ins.CALLS.reset()
        self.write(test=item.nodeid, started=True)
        started = time.perf_counter()
        threads = set(threading.enumerate())
        try:
            return (yield)
        finally:
            self._stop_clocks()
            calls = stand_ins.CALLS
            left = [t.name for t in threading.enumerate() if t not in threads and not t.daemon]
            self.write(
                test=item.nodeid,
                seconds=round(time.perf_counter() - started, 3),
                calls=calls.count,
                simulated_seconds=round(calls.seconds, 4),
                simulated_processor_seconds=round(calls.processor_seconds, 4),
                instructions=calls.instructions,
                warnings=sorted(set(calls.warnings))[:20],
                outputs=self.outputs,
                threads_left=left,
                **self.report,
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Any:
        """Start the clock for the test itself."""
        # Processor time, so that other work on the machine decides nothing; and real time against deadlocks.
        signal.signal(signal.SIGPROF, self._stop)
        signal.signal(signal.SIGALRM, self._stop)
        signal.setitimer(signal.ITIMER_PROF, self.seconds_per_test)
        signal.setitimer(signal.ITIMER_REAL, 10 * self.seconds_per_test)
        try:
            return (yield)
        except TimeLimitReached as reached:
            pytest.fail(f"TimeLimitReached: {reached}", pytrace=False)
        finally:
            self._stop_clocks()

    def _stop(self, number: int, _: Any) -> None:
        clock = "processor time" if number == signal.SIGPROF else "real time (ten times the limit)"
        raise TimeLimitReached(f"{self.seconds_per_test} s of {clock}")

    def _stop_clocks(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        """Remember outcome and reason."""
        report = yield
        if report.outcome != "passed" and self.report["outcome"] == "passed":
            error = call.excinfo.value if call.excinfo else None
            self.report = {
                "outcome": report.outcome,
                "when": report.when,
                "error": type(error).__name__,
                "message": str(error)[:6000],
                "trace": _trace(call.excinfo),
            }
        return report


def _simulate_several_ranks() -> None:
    """Run tests of collectives: the suite's simulation mode has no ranks, its validation does."""
    from test.utils.common_dataclasses import PerRankLazyInputGenerator, normalize_golden_output
    from test.utils.test_orchestrator import INF_ARTIFACT_DIR_NAME, Orchestrator

    of_one_rank = Orchestrator._run_simulator_inference

    def run_simulator_inference(self: Any, test: Any) -> Any:
        ranks = test.inference_args.collective_ranks
        if ranks == 1:
            return of_one_rank(self, test)
        os.environ["NKI_NC_VERSION"] = test.compiler_input.platform_target.get_nc_gen()
        given = test.kernel_input
        per_rank = isinstance(given, PerRankLazyInputGenerator)
        inputs = [given.for_rank(rank) if per_rank else given for rank in range(ranks)]
        outputs = stand_ins.simulate_ranks(test.kernel_func, inputs, test.compiler_input.logical_nc_config)
        folder = Path(self.fs_config.artifacts_output_directory_path) / INF_ARTIFACT_DIR_NAME
        for rank, arrays in enumerate(outputs):
            golden = normalize_golden_output(test.validation_args.golden_output, rank)
            (folder / f"output_worker_{rank}").mkdir(parents=True, exist_ok=True)
            for name, array in zip(golden, arrays, strict=True):
                converted = np.asarray(array, dtype=golden[name].dtype)
                converted.tofile(folder / f"output_worker_{rank}" / f"{name}.bin")
        return str(folder)

    Orchestrator._run_simulator_inference = run_simulator_inference


def _trace(excinfo: Any) -> list[str]:
    """`file:line function` of the last frames, and of the error that caused this one."""
    lines: list[str] = []
    error = excinfo.value if excinfo else None
    while error is not None:
        frame = error.__traceback__
        frames = []
        while frame is not None:
            code = frame.tb_frame.f_code
            frames.append(f"{code.co_filename}:{frame.tb_lineno} {code.co_name}")
            frame = frame.tb_next
        lines += [*frames[-8:], f"{type(error).__name__}: {str(error)[:300]}"]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return lines


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a results file; a torn last line is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: Any) -> None:
    """Install the stand-ins before the suite's conftest asks for them, and limit memory."""
    limit = int(float(os.environ[MEMORY_GIB]) * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    config.pluginmanager.register(
        Recorder(Path(os.environ[RESULTS]), float(os.environ[SECONDS_PER_TEST])), "aws-suite-recorder"
    )


stand_ins.install()
