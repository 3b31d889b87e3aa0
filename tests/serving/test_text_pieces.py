"""Text as it comes: whole characters, nothing taken back, stops that are never shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_port.serving.detokenizer import Detokenizer, StopStrings
from tests.serving.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def pieces_of(data: bytes, prompt: bytes = b"") -> list[str]:
    detokenizer = Detokenizer(decode, list(prompt))
    return [*(detokenizer.push(byte) for byte in data), detokenizer.flush()]


@given(st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_pieces_add_up_and_hold_whole_characters(text: str) -> None:
    """Fed byte by byte, a text comes out as it is, and no piece has half a character."""
    pieces = pieces_of(text.encode())
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@given(st.binary(max_size=40))
@settings(max_examples=60, deadline=None)
def test_broken_bytes_read_as_the_tokenizer_reads_them(data: bytes) -> None:
    """Bytes that are no text give what the tokenizer makes of them all together."""
    assert "".join(pieces_of(data)) == decode(list(data))


def test_a_character_waits_for_its_last_byte() -> None:
    """Of a character of four bytes nothing is given out before the fourth; at the end a half one is broken."""
    assert pieces_of("🙂".encode()) == ["", "", "", "🙂", ""]
    assert pieces_of("🙂".encode()[:2]) == ["", "", "\N{REPLACEMENT CHARACTER}"]


def test_endless_broken_bytes_do_not_hold_everything_back() -> None:
    """A model that produces only broken bytes is heard while it does so."""
    assert sum(map(len, pieces_of(b"\xff" * 20)[:-1])) >= 15


def test_the_prompt_is_context_and_not_output() -> None:
    """The prompt's last tokens are decoded with the first ones, and not given out again."""
    assert "".join(pieces_of(b" world", prompt=b"hello")) == " world"


@pytest.mark.parametrize(
    ("stops", "chunks", "text", "stopped"),
    [
        (["END"], ["abEN", "Dcd"], "ab", True),
        (["END"], ["abEN", "cd"], "abENcd", False),
        (["x", "bc"], ["abcx"], "a", True),
        (["aab"], ["a", "a", "a", "b"], "a", True),
        ([], ["END"], "END", False),
    ],
)
def test_stops_end_the_text_before_them(
    stops: list[str], chunks: list[str], text: str, stopped: bool
) -> None:
    """A stop is found across pieces; what only looked like its beginning is given out."""
    finder, out, found = StopStrings(stops), "", False
    for chunk in chunks:
        piece, found = finder.push(chunk)
        out += piece
        if found:
            break
    assert (out if found else out + finder.flush(), found) == (text, stopped)


def test_a_possible_stop_is_held_back() -> None:
    """What may be the beginning of a stop is not shown until it is known not to be."""
    finder = StopStrings(["###"])
    assert finder.push("hi #") == ("hi ", False)
    assert finder.push("#") == ("", False)
    assert finder.push("no") == ("##no", False)
