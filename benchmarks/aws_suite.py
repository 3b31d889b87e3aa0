"""AWS's own kernel suite on our simulator: `python benchmarks/aws_suite.py PATH_OF_A_NKI_LIBRARY_CHECKOUT`.

Copies the checkout to a temporary folder, repairs what its public snapshot breaks (see aws_suite_support/repairs.py),
stands in for its private packages, and runs its fast tests in simulation mode, one process for each test file. Results
stream into a JSON-lines file; run it again with the same file to go on where it stopped. The checkout is not touched.

Needs in the environment, besides this project with its dev extra: fabric2 boto3 plotext pytest-html pytest-metadata
allpairspy typing_extensions aws-embedded-metrics filelock.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.aws_suite_support.plugin import (  # noqa: E402
    MEMORY_GIB,
    RESULTS,
    SECONDS_PER_TEST,
    read_lines,
)
from benchmarks.aws_suite_support.repairs import overlay  # noqa: E402
from benchmarks.aws_suite_support.report import report  # noqa: E402

RESTARTS = 20  # of one test file, each after a test in which the process died


def main() -> None:
    """Run and report."""
    arguments = _arguments()
    results = arguments.results.resolve()
    if arguments.fresh:
        results.unlink(missing_ok=True)
    if not arguments.report:
        with tempfile.TemporaryDirectory(prefix="aws-suite-") as temporary:
            folder = Path(temporary)
            for said in overlay(arguments.checkout.resolve(), folder):
                print(f"repaired: {said}", file=sys.stderr)
            run(folder, results, arguments)
    print(report(read_lines(results), verbose=arguments.verbose))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="path of a checkout of aws-neuron/nki-library")
    parser.add_argument("--jobs", type=int, default=1, help="test files that run at the same time")
    parser.add_argument(
        "--select", default="", help="only test files whose path contains one of these, by comma"
    )
    parser.add_argument("--keyword", default="", help="only tests that pytest -k selects")
    parser.add_argument("--platform", default="trn2", help="trn2 (default) or trn3")
    parser.add_argument("--large", action="store_true", help="also tests that the suite skips as large")
    parser.add_argument("--results", type=Path, default=Path("aws_suite.jsonl"), help="results, streamed")
    parser.add_argument("--fresh", action="store_true", help="start again instead of resuming")
    parser.add_argument("--report", action="store_true", help="only report what the results file holds")
    parser.add_argument("--seconds-per-test", type=float, default=45.0)
    parser.add_argument("--memory-gib", type=float, default=15.0, help="address space of each process")
    parser.add_argument("--verbose", action="store_true", help="list every failed test")
    return parser.parse_args()


def run(folder: Path, results: Path, arguments: argparse.Namespace) -> None:
    """Run the selected test files, `jobs` at a time."""
    wanted = [part for part in arguments.select.split(",") if part]
    files = sorted((folder / "test/integration").rglob("test_*.py"))
    files = [file for file in files if not wanted or any(part in str(file) for part in wanted)]
    lock = threading.Lock()

    def one(file: Path) -> None:
        relative = file.relative_to(folder)
        for _ in range(RESTARTS):
            log, died = _run_file(folder, relative, results, arguments)
            if not died:
                break
        with lock:
            print(f"{relative}: {log}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, files))


def _run_file(folder: Path, file: Path, results: Path, arguments: argparse.Namespace) -> tuple[str, bool]:
    """(last line of pytest, whether the process died before it finished)."""
    environment = dict(os.environ)
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(folder / "src"), str(folder)]),
        RESULTS: str(results),
        SECONDS_PER_TEST: str(arguments.seconds_per_test),
        MEMORY_GIB: str(arguments.memory_gib),
    }
    if arguments.large:
        environment["NKILIB_SIMULATION_RUN_ALL"] = "1"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, "1")
    command = [sys.executable, "-m", "pytest", str(file), "-p", "benchmarks.aws_suite_support.plugin"]
    command += ["--test-mode", "simulation", "-m", "fast", "--platform-target", arguments.platform]
    command += ["--force-local-cleanup", "-q", "--tb=short", "--no-header", "-p", "no:cacheprovider"]
    command += ["-k", arguments.keyword] if arguments.keyword else []
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode == 2:
        reasons = [line for line in lines if line.startswith("E  ")]
        _note_broken_file(results, file, reasons[-1][2:].strip() if reasons else "collection failed")
    died = done.returncode not in (0, 1, 2, 3, 4, 5)
    return (lines[-1] if lines else f"exit {done.returncode}"), died


def _note_broken_file(results: Path, file: Path, reason: str) -> None:
    import json

    line = {"test": f"{file.relative_to('test')}::(import)", "outcome": "failed", "when": "collect"}
    with results.open("a") as lines:
        lines.write(json.dumps(line | {"error": "ImportError", "message": reason, "trace": []}) + "\n")


if __name__ == "__main__":
    main()
