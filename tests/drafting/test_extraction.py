"""Code is found in replies as models write them, and hostile replies give a sentence, not a crash."""

from __future__ import annotations

import ast
import html

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_port.drafting.replies.extraction import ExtractionError, extract_code, normalised_digest
from neuron_port.drafting.replies.parts import fenced_blocks, without_thoughts

MODULE = '''"""Add one."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def add_one(x):
    """Add one to x."""
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    if x.shape[0] < 2 and x.shape[1] > 3:  # a & b
        return out
    return out
'''
OTHER = "import nki\n\n\ndef helper(x):\n    return x\n"
TABS = MODULE.replace("    ", "\t")


def fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}```\n"


@pytest.mark.parametrize(
    "reply",
    [
        MODULE,
        fenced(MODULE),
        fenced(MODULE, ""),
        fenced(MODULE, "Python"),
        fenced(MODULE, "py title=kernel.py"),
        f"Here it is.\n\n{fenced(MODULE)}\nIt adds one.\n",
        f"First the helper alone:\n{fenced(OTHER)}\nNow all:\n{fenced(MODULE)}",
        f"{fenced(MODULE)}\nCall it like this:\n```python\ny = add_one(x)\n```\n",
        f"{fenced(MODULE)}\n```bash\npip install nothing\n```\n```json\n{{}}\n```",
        f"~~~python\n{MODULE}~~~\n",
        f"````python\n{MODULE}````\n",
        f"<think>\n```python\ndef add_one(x): return wrong\n```\n</think>\n{fenced(MODULE)}",
        f"thoughts without an opening tag\n```python\ndef add_one(): 1\n```\n</think>\n{fenced(MODULE)}",
        f"<reasoning>hm</reasoning><think>hm</think>{fenced(MODULE)}",
        fenced(MODULE).replace("\n", "\r\n"),
        fenced(MODULE).replace("\n", "\r"),
        "\ufeff" + MODULE,
        "1. The kernel:\n\n   " + fenced(MODULE).replace("\n", "\n   "),
        fenced(MODULE).rstrip("`\n"),
    ],
    ids=[
        "bare", "fenced", "no language", "capitals", "attributes", "prose", "helper first", "usage after", "other blocks",
        "tildes", "four ticks", "thoughts", "lone close", "two tags", "crlf", "cr", "bom", "list item", "unclosed",
    ],
)  # fmt: skip
def test_the_module_is_found(reply: str) -> None:
    """However the module is wrapped, what comes out is the module."""
    assert extract_code(reply, "add_one").strip() == MODULE.strip()


@pytest.mark.parametrize(
    "code", [TABS, html.escape(MODULE), html.escape(TABS), MODULE.replace("  ", "\xa0 ")]
)
def test_spellings_that_do_not_parse_are_mended(code: str) -> None:
    """Entities and tabs are resolved where they keep the code from parsing, and the result is the same program."""
    found = extract_code(fenced(code), "add_one")
    assert ast.dump(ast.parse(found)) == ast.dump(ast.parse(MODULE))


def test_entities_that_parse_are_resolved() -> None:
    """`y = a &lt; b` is valid Python that means something else; it is read as the comparison that was meant."""
    start = "def add_one(x):\n"
    code = (
        MODULE.replace(start, f"{start}    y = a &lt; b\n").replace(" & ", " and ").replace(" < ", " &lt; ")
    )
    assert "y = a < b\n" in extract_code(fenced(code), "add_one")
    named = MODULE.replace(start, f"{start}    lt = 1 & 1\n    y = lt\n")
    assert "lt = 1 & 1\n" in extract_code(fenced(named), "add_one")


def test_entities_inside_of_good_code_stay() -> None:
    """A string that contains an entity is not changed when the code parses as it is."""
    code = MODULE.replace('"""Add one."""', '"""Add &lt;one&gt;."""')
    assert "&lt;one&gt;" in extract_code(fenced(code), "add_one")


def test_the_last_definition_counts() -> None:
    """Of two modules that define the entry point, the later one is taken; a broken later one does not hide it."""
    second = MODULE.replace("Add one to x.", "Add one, better.")
    assert "better" in extract_code(fenced(MODULE) + "Or rather:\n" + fenced(second), "add_one")
    broken = fenced("def add_one(x):\n    return (\n")
    assert extract_code(fenced(MODULE) + broken, "add_one").strip() == MODULE.strip()


@pytest.mark.parametrize(
    ("reply", "finish", "words"),
    [
        ("I am sorry, I cannot do this.", "stop", "holds no fenced `python` block"),
        ("", "stop", "holds no fenced `python` block"),
        ("<think>Let me see", "stop", "ended before its thoughts did"),
        (fenced(OTHER), "stop", "defines `helper`: the entry point must be a function called `add_one`"),
        (fenced("x = 1\n"), "stop", "defines no function: the entry point must be"),
        (fenced("class add_one: pass\n"), "stop", "must be a function called `add_one`"),
        (fenced(MODULE.replace("return out\n    return", "return (out\n    return")), "stop", "does not parse, line"),
        (fenced(MODULE.replace("def add_one(x):", "def add_one(x)")), "stop", "line 9: expected ':': `def add_one(x)`"),
        (MODULE.replace("def add_one(x):", "def add_one(x)"), "stop", "line 9: expected ':'"),
        (fenced(MODULE)[:-30], "length", "cut off at the token limit"),
        (MODULE, "length", "cut off at the token limit"),
        ("Let me think about tiles", "length", "cut off at the token limit"),
        (fenced(OTHER) + fenced(MODULE[MODULE.index("@nki") :]), "stop", "spread over 2 fenced blocks"),
        (fenced(MODULE), "refused", "filter refused"),
        ("x" * 1_000_001, "stop", "has 1000001 characters, at most 1000000"),
        (fenced("#" * 70_000 + "\ndef add_one(x): pass\n"), "stop", "bytes, at most 65,536"),
        (fenced(MODULE.replace("Add one to x.", "\\sum x")), "stop", "the escape `\\s`"),
    ],
)  # fmt: skip
def test_an_unusable_reply_is_refused_in_a_sentence(reply: str, finish, words: str) -> None:
    """The error says what is wrong with the reply, so that the model can be asked again."""
    with pytest.raises(ExtractionError) as raised:
        extract_code(reply, "add_one", finish)
    assert words in raised.value.message
    assert "\n" not in raised.value.message


def test_a_reply_cut_after_its_code_is_used() -> None:
    """The token limit does no harm when it falls into the prose behind a closed block."""
    assert extract_code(fenced(MODULE) + "This kernel wor", "add_one", "length").strip() == MODULE.strip()


BOMBS = {
    "parentheses": "(" * 50_000,
    "attributes": "x" + ".x" * 60_000,
    "sum": "1" + "+1" * 60_000,
    "minus": "-" * 100_000 + "1",
    "lambdas": "lambda:" * 20_000 + "1",
    "conditions": "a if b else " * 10_000 + "c",
    "calls": "f" + "()" * 60_000,
    "branches": "if a: pass\n" + "elif a: pass\n" * 10_000,
    "digits": "9" * 100_000,
    "null bytes": "a\0b",
    "surrogates": "a = '\ud800'",
    "brackets in formats": 'f"' + "{" * 2_000 + "}" * 2_000 + '"',
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_code_that_breaks_parsers_is_refused(bomb: str) -> None:
    """Deep nesting and odd bytes give an ExtractionError and still have a digest."""
    code = f"{bomb}\n\ndef add_one(x):\n    pass\n"
    assert len(normalised_digest(code)) == 16
    with pytest.raises(ExtractionError, match="does not parse"):
        extract_code(fenced(code), "add_one")


@settings(deadline=None)
@given(st.text(max_size=300) | st.text(alphabet="`~\n <>/thinkdef add_one(x):\tpas", max_size=300))
def test_any_text_is_code_or_an_error(reply: str) -> None:
    """No text makes extraction fail in another way, and what it returns defines the entry point."""
    try:
        code = extract_code(reply, "add_one")
    except ExtractionError:
        return
    assert "def add_one" in code


@pytest.mark.parametrize(
    "unit", ["<think>", "</think>", "```\n", "~~~python\n", "`", "<think></think>", "```\n~~~\n"]
)
def test_repeated_marks_take_linear_time(unit: str) -> None:
    """Ten thousand unmatched marks are walked once: as many steps as characters, not their square."""
    text = unit * 10_000
    without_thoughts(text)
    blocks = fenced_blocks(text)
    assert sum(len(block.text) for block in blocks) <= len(text)


# ---- digests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "same",
    [
        MODULE.replace("  # a & b", ""),
        "# a comment\n\n" + MODULE + "\n\n\n# the end\n",
        MODULE.replace('    """Add one to x."""\n', ""),
        MODULE.replace('"""Add one."""\n', ""),
        MODULE.replace("dtype=x.dtype, buffer", "dtype = x.dtype,\n        buffer"),
        MODULE.replace("return out\n    return", "return (out)\n    return"),
        TABS,
        MODULE.replace("\n", "\r\n"),
    ],
)
def test_appearance_does_not_change_the_digest(same: str) -> None:
    """Comments, blank space, docstrings and parentheses are not another kernel."""
    assert same != MODULE
    assert normalised_digest(same) == normalised_digest(MODULE)


@pytest.mark.parametrize(
    "other",
    [
        MODULE.replace("< 2", "< 3"),
        MODULE.replace("out", "result"),
        MODULE.replace("x.dtype", "nl.float32"),
        MODULE + "\nX = 'text'\n",
        MODULE.replace("return out\n    return out", "return out"),
        MODULE.replace("def add_one(x):", "def add_one(x)"),
    ],
)
def test_other_code_has_another_digest(other: str) -> None:
    """A number, a name, a dtype or a statement is another kernel."""
    assert other != MODULE
    assert normalised_digest(other) != normalised_digest(MODULE)


def test_code_that_does_not_parse_goes_by_its_text() -> None:
    """Blank space at line ends and empty lines do not matter there either."""
    broken = "def f(:\n    pass\n"
    assert normalised_digest(broken) == normalised_digest("def f(:  \n\n    pass")
    assert normalised_digest(broken) != normalised_digest("def g(:\n    pass\n")
