"""The development suite: every folder is a sound task, with a right kernel and a GPU source that agrees."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_port.bench.suite import TASKS_FOLDER, BenchTask, load_suite, rows_sum_to_one
from neuron_port.errors import UsageError
from neuron_port.grading.grader import Grader

SUITE = load_suite()
TILE = 128
each_task = pytest.mark.parametrize("found", SUITE, ids=lambda found: found.name)


def test_every_folder_is_a_task() -> None:
    """The suite holds a task for each folder, twelve or more, and each has a name of its own."""
    folders = {path.name for path in TASKS_FOLDER.iterdir() if not path.name.startswith((".", "_"))}
    assert {found.name for found in SUITE} == folders
    assert len({found.task.key for found in SUITE}) == len(SUITE) >= 12


def test_names_choose_tasks_in_order() -> None:
    """Given names, the suite has these tasks and no others."""
    assert [found.name for found in load_suite(["softmax", "gelu"])] == ["softmax", "gelu"]


def test_a_misspelt_name_gets_its_neighbour() -> None:
    """An unknown task is refused, with the name that was probably meant."""
    with pytest.raises(UsageError, match="Unknown benchmark task: `sofmax`") as refused:
        load_suite(["sofmax"])
    assert refused.value.hint == "Did you mean `softmax`?"


def test_a_broken_task_is_named_with_its_line(tmp_path: Path) -> None:
    """A task file that cannot be loaded is an error with file and line, never a task less."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "task.py").write_text("x = 1\ny = x / 0\n")
    with pytest.raises(UsageError, match=r"task\.py:2: ZeroDivisionError"):
        load_suite(folder=tmp_path)


def test_loading_imports_no_torch() -> None:
    """Listing the suite stays light."""
    check = "import sys; from neuron_port.bench.suite import load_suite; load_suite(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@each_task
def test_cases_reach_what_kernels_get_wrong(found: BenchTask) -> None:
    """There are at least three sizes, one of them small and one no multiple of 128, stress, and both dtypes."""
    cases = found.task.cases
    assert len({tuple(sorted(case.sizes.items())) for case in cases}) >= 3
    assert any(max(case.sizes.values()) <= TILE for case in cases)
    assert any(size > TILE and size % TILE for case in cases for size in case.sizes.values())
    assert any(case.kind == "stress" for case in cases)
    assert set(found.task.dtypes) == {"float32", "bfloat16"}
    for case in cases:
        assert set(case.sizes) <= set(found.task.sizes), (
            "every size has a range, so that hidden cases vary it"
        )
        assert all(value in found.task.sizes[name] for name, value in case.sizes.items())


@each_task
def test_the_golden_kernel_imports_only_nki_and_math(found: BenchTask) -> None:
    """A golden kernel runs unchanged where there is nothing but AWS's nki."""
    for node in ast.walk(ast.parse(found.golden)):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= {"nki", "math"}
        assert not isinstance(node, ast.ImportFrom)


@each_task
@pytest.mark.long
def test_the_golden_kernel_is_right(found: BenchTask) -> None:
    """Public and hidden cases pass, on Trn2's rules and on Inf2's; freezing the oracle shows a task with a point."""
    for target in ("trn2", "inf2"):
        verdict = Grader(found.task, target=target, hidden_seed=11).grade(found.golden)
        assert verdict.passed, f"{target}: {verdict.error_class}: {verdict.message} {verdict.evidence}"


@each_task
def test_the_source_is_ours_and_says_so(found: BenchTask) -> None:
    """The GPU source has origin and licence, in its header and in the task."""
    (source,) = found.task.sources
    assert source.license == "Apache-2.0"
    assert "Origin: written for neuron-port. License: Apache-2.0." in source.text


def test_the_gpu_sources_agree_with_the_references() -> None:
    """On Triton's CPU interpreter, every GPU source computes what the reference computes."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("check_source.py")
    done = subprocess.run(
        [sys.executable, str(script), *(found.name for found in SUITE)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_rows_that_sum_to_one_hold() -> None:
    """Weights that sum to 1 satisfy the invariant; a row that does not is named, and so is NaN."""
    numpy = pytest.importorskip("numpy")
    check = rows_sum_to_one().check
    weights = numpy.full((3, 4), 0.25, numpy.float32)
    assert check((), {}, (weights,)) == ""
    weights[1, 0] = 0.5
    assert check((), {}, (weights,)) == "1 rows do not sum to 1: row (1,) sums to 1.25"
    weights[1, 0] = numpy.nan
    assert "row (1,) sums to nan" in check((), {}, (weights,))
