"""Every documented error code of neuronx-cc has a cause and a cure; what has none is said to have none."""

from __future__ import annotations

import pytest

from neuron_port.build.finishing.compiler import explain
from neuron_port.build.finishing.error_codes import ERROR_CODES, KERNEL_CODES, LIST, NOTED_CODES
from neuron_port.build.finishing.processes import TIMED_OUT

# The files of aws-neuron-sdk, compiler/error-codes, July 2026.
_TEXT = """
    EARG001 EBIR023 EBVF030 EHCA005 EMOD025 EOOM001 EOOM002 ESFH002 ESPP004 ESPP047 EUOC002 EVRF001 EVRF004 EVRF005
    EVRF006 EVRF007 EVRF009 EVRF010 EVRF011 EVRF013 EVRF015 EVRF016 EVRF017 EVRF018 EVRF019 EVRF022 EVRF031 EVRF035
    EVRF036 EVRF037 EVRF038 EVRF039 EVRF040 EVRF041 EVRF042 EVRF043 EVRF044 EVRF045 EVRF046 EVRF047 EVRF048 EVRF049
    EVRF050 EVRF051 EVRF052 EVRF053 EVRF054 EVRF055 EVRF056 EVRF057 EVRF058 EVRF059 EVRF060 EVRF061 EVRF062 EVRF063
    EVRF064 EVRF065 EXSP001 EXTP004
"""
DOCUMENTED = _TEXT.split()


def test_the_table_has_every_documented_code_and_no_other() -> None:
    """Sixty codes are documented, and each has an entry; a code that nobody documents has none."""
    assert len(DOCUMENTED) == 60
    assert sorted(ERROR_CODES) == sorted(DOCUMENTED)
    assert not set(NOTED_CODES) & set(DOCUMENTED)
    assert set(KERNEL_CODES) <= set(ERROR_CODES) | set(NOTED_CODES)


@pytest.mark.parametrize("code", [*DOCUMENTED, *NOTED_CODES])
def test_a_code_is_translated(code: str) -> None:
    """A log with the code yields a sentence of ours and a cure, never the raw log."""
    outcome = explain(1, f"2026-08-01 ERROR [NCC_{code}] internal words")
    assert outcome.codes == (code,)
    assert outcome.cause.endswith(f"(NCC_{code})")
    assert "internal words" not in outcome.cause + outcome.cure
    assert len(outcome.cure) > 20


def test_an_unknown_code_says_so_and_links_the_list() -> None:
    """A code without an entry is named as such, with what the compiler said and where the list is."""
    outcome = explain(70, "ERROR: [NCC_EVRF999] something new")
    assert "NCC_EVRF999, for which there is no entry here" in outcome.cause
    assert "something new" in outcome.cause
    assert LIST in outcome.cure


def test_the_known_code_counts_where_several_stand() -> None:
    """A log with an unknown and a known code is explained by the known one."""
    assert explain(70, "[NCC_EVRF999] a\n[NCC_EVRF004] b").cause.endswith("(NCC_EVRF004)")


@pytest.mark.parametrize(
    ("status", "log", "words"),
    [
        (-9, "", "ran out of memory"),
        (137, "", "ran out of memory"),
        (70, "walrus_driver failed with -9", "ran out of memory"),
        (1, "OSError: [Errno 28] No space left on device", "the disk is full"),
        (-11, "", "signal 11 (SIGSEGV)"),
        (139, "", "signal 11 (SIGSEGV)"),
        (-6, "", "signal 6 (SIGABRT)"),
        (TIMED_OUT, "tiling", "--timeout-minutes"),
    ],
)
def test_signals_and_limits_are_translated(status: int, log: str, words: str) -> None:
    """Being killed, crashing, a full disk and the time limit each have words of their own."""
    assert words in explain(status, log).cause


def test_an_unknown_failure_quotes_the_compiler() -> None:
    """A failure that we have no words for shows the last line that speaks of an error."""
    outcome = explain(70, "info\nERROR: assertion failed: tile\nbye")
    assert "ERROR: assertion failed: tile" in outcome.cause
