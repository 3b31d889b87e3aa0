"""The forms in which servers write the same thing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from neuron_port.llm.chat_format import complaint_of, folded, text_of
from neuron_port.llm.messages import Message


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"error": {"message": "m", "code": "c", "param": "p"}}, ("m", "c", "p")),
        ({"error": {"message": "m", "type": "t", "code": None}}, ("m", "t", None)),
        ([{"error": {"message": "m", "code": 429}}], ("m", "429", None)),
        ({"error": "m"}, ("m", None, None)),
        ({"detail": "m"}, ("m", None, None)),
        ({"object": "error", "message": "m", "code": 3051}, ("m", "3051", None)),
    ],
    ids=["OpenAI", "type", "Google", "Ollama", "FastAPI", "Mistral"],
)
def test_complaints(body: Any, complaint: tuple[str, str | None, str | None]) -> None:
    """An error's sentence, code and parameter are found wherever a server puts them."""
    assert complaint_of(json.dumps(body)) == complaint


def test_a_page_is_not_quoted() -> None:
    """A web page in place of an error is called that; other text is the complaint."""
    assert complaint_of("<html>long</html>")[0] == "a web page"
    assert complaint_of("upstream gone")[0] == "upstream gone"


def test_thinking_is_not_the_reply() -> None:
    """Of a message in parts, the text is the reply and the thinking is not."""
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]
    assert (text_of(parts), text_of("yes"), text_of(None)) == ("yes", "yes", "")


def test_system_text_is_folded_into_the_first_question() -> None:
    """All system messages stand before the first of the user's; the rest stays as it is."""
    said = [("system", "a"), ("system", "b"), ("user", "q"), ("assistant", "r"), ("user", "s")]
    messages = tuple(Message(role=role, content=text) for role, text in said)  # type: ignore[arg-type]
    assert [(message.role, message.content) for message in folded(messages)] == [
        ("user", "a\n\nb\n\nq"),
        ("assistant", "r"),
        ("user", "s"),
    ]
    assert folded(messages[2:]) == messages[2:]
