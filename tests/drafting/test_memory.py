"""The memory offers what helped, for the NKI and the verifier of today, and takes in admitted kernels only."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from neuron_port.drafting.memory.lessons import FrozenMemoryError, Memory, Recalled
from neuron_port.drafting.memory.records import (
    EXCERPT_LENGTH,
    NOTE_LENGTH,
    SOURCE_LENGTH,
    DeadEnd,
    Exemplar,
    Fix,
    Lever,
    MemoryRefusedError,
)
from neuron_port.errors import StorageError, UsageError
from neuron_port.grading.verdict import Verdict

ADMITTED = Verdict(passed=True, stage="admitted")
NORM = {"family": "norm", "primitives": ("activation", "tensor_tensor")}


def exemplar(task: str = "t1", source: str = "def kernel(): ...", **more: object) -> Exemplar:
    given = {
        **NORM,
        "target": "trn2",
        "summary": "RMS norm, a row for each partition.",
        "verdict": ADMITTED,
        **more,
    }
    return Exemplar(task=task, source=source, **given)  # type: ignore[arg-type]


def fix(note: str = "Allocate PSUM in f32.", error_class: str = "ConstraintError", **more: object) -> Fix:
    given = {**NORM, "task": "t1", "verdict": ADMITTED, **more}
    return Fix(error_class=error_class, note=note, **given)  # type: ignore[arg-type]


def open_memory(path: Path | None, **more: object) -> Memory:
    return Memory(path, **({"dialect": "0.6", "verifier_version": "1", **more}))  # type: ignore[arg-type]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with open_memory(tmp_path / "memory.sqlite") as memory:
        yield memory


def ids(recalled: tuple[Recalled, ...]) -> list[int]:
    return [lesson.id for lesson in recalled]


def test_lessons_of_all_kinds_come_back(tmp_path: Path) -> None:
    """What one process remembered another one is offered, each kind where it serves."""
    with open_memory(tmp_path / "memory.sqlite") as memory:
        kernel = memory.remember(exemplar())
        correction = memory.remember(fix(before="a\nb", after="c"))
        lever = memory.remember(
            Lever(
                **NORM,
                task="t1",
                note="Two buffers.",
                metric="DMA wait 9 -> 2 us, predicted",
                verdict=ADMITTED,
            )
        )
        dead_end = memory.remember(DeadEnd(**NORM, task="t1", note="Larger tiles do not fit."))
    with open_memory(tmp_path / "memory.sqlite") as memory:
        (found,) = memory.exemplars("norm", ["activation"])
        assert (found.id, found.source, found.target) == (kernel, "def kernel(): ...", "trn2")
        (note,) = memory.notes("norm", [], purpose="repair", error_class="ConstraintError")
        assert note.id == correction
        assert note.line == "Allocate PSUM in f32. Before: `a b` After: `c` (seen once, not proven)"
        assert ids(memory.notes("norm", [], purpose="optimize")) == [lever, dead_end]
        assert [row.kind for row in memory.rows()] == ["exemplar", "fix", "lever", "dead end"]


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(passed=True, stage="hidden"),
        Verdict(passed=False, stage="admitted"),
        Verdict(passed=False, stage="public", error_class="wrong values"),
        replace(ADMITTED, guard="repeat"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda verdict: exemplar(verdict=verdict),
        lambda verdict: fix(verdict=verdict),
        lambda verdict: Lever(**NORM, task="t", note="n", metric="m", verdict=verdict),
    ],
)
def test_only_admitted_kernels_enter(make: Callable[[Verdict], object], verdict: Verdict) -> None:
    """A kernel that was not admitted, or that ran into a guard, cannot even become a lesson; an admitted one can."""
    make(ADMITTED)
    with pytest.raises(MemoryRefusedError, match="Only admitted kernels are remembered"):
        make(verdict)


def test_refusal_says_why() -> None:
    """A cheat's refusal names the guard, a mistake's its error."""
    with pytest.raises(MemoryRefusedError, match="guard `repeat`"):
        exemplar(verdict=replace(ADMITTED, guard="repeat"))
    with pytest.raises(MemoryRefusedError, match="ends at stage `public` with `wrong values`"):
        exemplar(verdict=Verdict(passed=False, stage="public", error_class="wrong values"))


@pytest.mark.parametrize(
    "source", ["x = 1 \x00", "x = 1  # \u202e", "x\u200b = 1", "x" * (SOURCE_LENGTH + 1)]
)
def test_sources_that_hide_something_are_refused(source: str) -> None:
    """A kernel with control or formatting characters, or beyond all length, does not enter; it is not changed either."""
    exemplar(source="x = 1\n\ty = '\u00e9\u4e2d'")
    with pytest.raises(MemoryRefusedError):
        exemplar(source=source)


def test_texts_are_cut_and_cleaned(memory: Memory) -> None:
    """Notes lose control and formatting characters and what is beyond their length."""
    memory.remember(
        fix(note="a\x1b[31mb\u202ec\x00" + "x" * 2000, before="y" * 5000, error_class="E\x07rror")
    )
    (row,) = memory.rows()
    assert row.note.startswith("a[31mbcxx")
    assert row.note.endswith(" …")
    assert (len(row.note), len(row.before)) == (NOTE_LENGTH, EXCERPT_LENGTH)
    assert row.error_class == "Error"


def test_the_same_lesson_twice_is_one(memory: Memory) -> None:
    """A run that was killed after it learnt, and learns again, adds nothing."""
    first = memory.remember(fix())
    memory.tried([first], task="t2", run="r", purpose="repair", helped=True)
    assert memory.remember(fix()) == first
    assert [(row.id, row.successes) for row in memory.rows()] == [(first, 1)]


def test_provisional_until_it_helped_with_two_other_tasks(memory: Memory) -> None:
    """Helping its own task, or one other task twice, proves nothing; a second other task does."""
    lesson = memory.remember(fix(task="t1"))

    def provisional_after(task: str, run: str, helped: bool) -> bool:
        memory.tried([lesson], task=task, run=run, purpose="repair", helped=helped)
        return memory.rows()[0].provisional

    assert provisional_after("t1", "a", True)
    assert provisional_after("t2", "b", True)
    assert provisional_after("t2", "c", True)
    assert provisional_after("t3", "d", False)
    assert not provisional_after("t4", "e", True)


def test_what_helped_ranks_before_what_did_not(memory: Memory) -> None:
    """Of equally similar lessons the one with the better record is offered first."""
    poor, unknown, good = (memory.remember(fix(note=note)) for note in ("poor", "unknown", "good"))
    for run in "abc":
        memory.tried([good], task="t2", run=run, purpose="repair", helped=True)
        memory.tried([poor], task="t2", run=run, purpose="repair", helped=False)
    found = memory.notes("norm", NORM["primitives"], purpose="repair", error_class="ConstraintError")
    assert ids(found) == [good, unknown, poor]
    assert [lesson.score for lesson in found] == pytest.approx([4 / 5, 1 / 2, 1 / 5])


def test_draft_and_repair_count_apart(memory: Memory) -> None:
    """A correction that helps repairs and harms drafts ranks by what it is wanted for."""
    first, second = memory.remember(fix(note="first")), memory.remember(fix(note="second"))
    memory.tried([first], task="t2", run="a", purpose="draft", helped=False)
    memory.tried([first], task="t2", run="a", purpose="repair", helped=True)
    assert ids(memory.notes("norm", NORM["primitives"], purpose="draft")) == [second, first]
    assert ids(memory.notes("norm", NORM["primitives"], purpose="repair")) == [first, second]


def test_a_run_counts_once(memory: Memory) -> None:
    """A killed run that passes the same point again changes its one trial and adds none."""
    lesson = memory.remember(fix())
    memory.tried([lesson], task="t2", run="a", purpose="repair", helped=False)
    memory.tried([lesson], task="t2", run="a", purpose="repair", helped=True)
    (row,) = memory.rows()
    assert (row.successes, row.trials) == (1, 1)


def test_similar_kernels_come_first_and_strangers_not_at_all(memory: Memory) -> None:
    """Family and common instructions decide; a kernel that shares neither is not offered."""
    matmul = memory.remember(
        exemplar(source="matmul", family="matmul", primitives=("nc_matmul", "activation"))
    )
    norm = memory.remember(exemplar(source="norm"))
    memory.remember(exemplar(source="gather", family="gather", primitives=("iota",)))
    assert ids(memory.exemplars("norm", ["activation", "tensor_tensor"])) == [norm, matmul]
    assert ids(memory.exemplars("unheard of", ["unheard of"])) == []


def test_a_correction_of_the_same_error_fits_any_family(memory: Memory) -> None:
    """For a repair only corrections of that error are offered, those of other families last."""
    stranger = memory.remember(fix(note="stranger", family="gather", primitives=("iota",)))
    kin = memory.remember(fix(note="kin"))
    memory.remember(fix(note="other error", error_class="syntax"))
    found = memory.notes("norm", ["activation"], purpose="repair", error_class="ConstraintError")
    assert ids(found) == [kin, stranger]
    assert memory.notes("norm", ["activation"], purpose="repair", error_class="unheard of") == ()


def test_a_prompt_gets_two_kernels_and_four_notes(memory: Memory) -> None:
    """However much is known, a prompt is not filled with it."""
    for number in range(8):
        memory.remember(exemplar(source=f"# {number}"))
        memory.remember(fix(note=f"note {number}"))
    assert len(memory.exemplars("norm", [])) == 2
    assert len(memory.notes("norm", [], purpose="draft")) == 4


def test_tasks_can_be_held_out(memory: Memory) -> None:
    """A benchmark that holds a task out is not offered what was learnt from it."""
    memory.remember(exemplar(task="held out"))
    memory.remember(fix(task="held out"))
    other = memory.remember(exemplar(task="other"))
    assert ids(memory.exemplars("norm", [], without_tasks=["held out"])) == [other]
    assert memory.notes("norm", [], purpose="draft", without_tasks=["held out"]) == ()


def test_another_dialect_is_stale(tmp_path: Path) -> None:
    """What was learnt under another NKI version is listed as stale and not offered; back there, it is."""
    path = tmp_path / "memory.sqlite"
    with open_memory(path, dialect="0.5") as memory:
        memory.remember(fix())
    with open_memory(path) as memory:
        assert memory.notes("norm", [], purpose="draft") == ()
        assert memory.rows()[0].stale == "learnt under NKI 0.5"
        assert memory.remember(fix()) != memory.rows()[0].id
    with open_memory(path, dialect="0.5") as memory:
        assert len(memory.notes("norm", [], purpose="draft")) == 1


def test_a_newer_verifier_wants_kernels_verified_again(tmp_path: Path) -> None:
    """Kernels that an older verifier admitted are not offered until the new one admits them; notes stay."""
    path = tmp_path / "memory.sqlite"
    with open_memory(path) as memory:
        kernel = memory.remember(exemplar())
        memory.remember(fix())
    with open_memory(path, verifier_version="2") as memory:
        assert memory.exemplars("norm", []) == ()
        assert memory.rows()[0].stale == "admitted by verifier 1"
        assert len(memory.notes("norm", [], purpose="draft")) == 1
        with pytest.raises(MemoryRefusedError):
            memory.reverified(kernel, Verdict(passed=False, stage="ran"))
        assert memory.exemplars("norm", []) == ()
        memory.reverified(kernel, ADMITTED)
        assert ids(memory.exemplars("norm", [])) == [kernel]
    with open_memory(path, verifier_version="3") as memory:
        assert memory.remember(exemplar()) == kernel  # drafted and admitted again: the same lesson, fresh
        assert ids(memory.exemplars("norm", [])) == [kernel]


def test_forgetting(memory: Memory) -> None:
    """A lesson that a person deletes is gone with its history; its id is not given again."""
    first = memory.remember(fix())
    memory.tried([first], task="t2", run="a", purpose="repair", helped=True)
    memory.forget(first)
    assert memory.rows() == ()
    with pytest.raises(UsageError, match=f"no lesson `{first}`"):
        memory.forget(first)
    again = memory.remember(fix())
    assert again != first
    assert memory.rows()[0].trials == 0


def test_frozen_memory_is_read_as_it_was(tmp_path: Path) -> None:
    """A frozen memory offers what was there when it was opened and can be changed by nobody."""
    path = tmp_path / "memory.sqlite"
    with open_memory(path) as living:
        lesson = living.remember(exemplar())
        with open_memory(path, frozen=True) as frozen:
            living.remember(exemplar(source="later"))
            assert ids(frozen.exemplars("norm", [])) == [lesson]
            for change in (
                lambda: frozen.remember(fix()),
                lambda: frozen.forget(lesson),
                lambda: frozen.tried([lesson], task="t", run="r", purpose="draft", helped=True),
            ):
                with pytest.raises(FrozenMemoryError, match="is frozen"):
                    change()
        assert len(living.rows()) == 2


def test_frozen_memory_changes_no_byte(tmp_path: Path) -> None:
    """Reading a frozen memory leaves its folder as it was."""
    path = tmp_path / "memory.sqlite"
    with open_memory(path) as memory:
        memory.remember(exemplar())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with open_memory(path, frozen=True) as memory:
        assert len(memory.exemplars("norm", [])) == 1
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_frozen_memory_must_be_there(tmp_path: Path) -> None:
    """A frozen memory that does not exist is an error, and is not created; without a path it is empty."""
    with pytest.raises(StorageError, match="no memory at"):
        open_memory(tmp_path / "none.sqlite", frozen=True)
    assert list(tmp_path.iterdir()) == []
    with open_memory(None, frozen=True) as memory:
        assert memory.rows() == ()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, frozen: bool) -> None:
    """A file that is no database, or one with a broken page, is named with the cure."""
    path = tmp_path / "memory.sqlite"
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(StorageError, match="is damaged") as caught:
        open_memory(path, frozen=frozen)
    assert "Move the file away" in str(caught.value.hint)
    path.unlink()
    with open_memory(path) as memory:
        for number in range(50):
            memory.remember(fix(note=f"{number} " + "x" * 500))
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    path.write_bytes(bytes(content))
    with pytest.raises(StorageError, match="is damaged"):
        open_memory(path, frozen=frozen)


def test_a_newer_file_is_one_sentence(tmp_path: Path) -> None:
    """A memory of a later version is refused with both versions, and left as it is."""
    path = tmp_path / "memory.sqlite"
    open_memory(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StorageError, match="has version 9; this program reads version 1"):
        open_memory(path)


def test_another_program_s_database_is_left_alone(tmp_path: Path) -> None:
    """A database that is not a memory is refused and not written to."""
    path = tmp_path / "notes.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="another program"):
        open_memory(path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A folder where the file should be, or a file where a folder should be, is a StorageError."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "memory.sqlite"):
        with pytest.raises(StorageError):
            open_memory(path)


def test_processes_learn_at_once(tmp_path: Path) -> None:
    """Four processes that open a new memory and write to it together lose nothing."""
    program = (
        "import sys; from pathlib import Path; from neuron_port.drafting.memory.lessons import DeadEnd, Memory\n"
        "with Memory(Path(sys.argv[1]), dialect='0.6', verifier_version='1') as memory:\n"
        "    for number in range(10):\n"
        "        memory.remember(DeadEnd(family='f', primitives=(), task='t', note=f'{sys.argv[2]} {number}'))\n"
    )
    path = tmp_path / "memory.sqlite"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), str(number)],
            stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )
        for number in range(4)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    with open_memory(path) as memory:
        assert len({row.note for row in memory.rows()}) == 40
