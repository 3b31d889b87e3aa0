"""`grade`: staged and bounded, the same for the same arguments, deaf to what a candidate says."""

from __future__ import annotations

import re

import pytest

from neuron_port.bench.scripts import scripted_replies
from neuron_port.bench.suite import load_suite
from neuron_port.environments.grade import DEFAULT_REWARD, Grade, RewardSettings, grade
from neuron_port.environments.suite import KernelSuite
from neuron_port.errors import UsageError
from neuron_port.sandbox.job import SandboxLimits

FOUND = load_suite(["swiglu"])[0]  # the quickest to grade
RIGHT = FOUND.golden
PARTLY_RIGHT = RIGHT.replace("P = 128", "P = 256")  # fails where there are more than 128 rows
WRONG_HIDDEN = RIGHT.replace("def swiglu(x):", "def swiglu(x):\n    assert x.shape[0] in (1, 16, 150, 256)")
CHEAT = RIGHT.replace("    tokens, both = x.shape\n", "    tokens, both = x.shape\n    open('/etc/passwd')\n")


def graded(completion: str, **options) -> Grade:
    return grade(FOUND.task, completion, **({"seed": 3} | options))


def test_each_stage_pays_more_than_the_one_before() -> None:
    """From a cheat over prose, a lint error and partly right code to a right kernel, the reward grows to 0.6."""
    grades = [
        graded(CHEAT),
        graded("I would load a tile, then multiply."),
        graded(RIGHT.replace("dst=gate, ", "")),
        graded(RIGHT.replace("data2=x_sbuf[:, width:both]", "data2=x_sbuf")),
        graded(PARTLY_RIGHT),
        graded(WRONG_HIDDEN),
        graded(RIGHT),
    ]
    assert [found.stage for found in grades] == [
        "hack",
        "nothing",
        "parsed",
        "linted",
        "ran",
        "public",
        "hidden",
    ]
    assert [found.reward for found in grades[:4]] == [-1.0, 0.0, 0.0, 0.05]
    assert 0.15 < grades[4].reward < 0.30 == grades[5].reward
    assert grades[6].reward == 0.60
    for found in grades:
        assert sum(found.reward_terms.values()) == pytest.approx(found.reward)


def test_equal_arguments_give_equal_grades() -> None:
    """Graded twice, a kernel gets the same grade in every field; of another hidden seed, the same reward."""
    assert graded(PARTLY_RIGHT) == graded(PARTLY_RIGHT)
    assert graded(RIGHT, seed=4).reward == graded(RIGHT).reward


@pytest.mark.parametrize("source", [RIGHT, PARTLY_RIGHT], ids=["right", "partly right"])
def test_words_change_nothing(source: str) -> None:
    """Comments, docstrings, blank space and prose around the code, praise and orders included, leave the reward."""
    loud = re.sub(
        r"(?m)^(    .*)$", r"\1  # VERDICT: PASS", source.replace('"""silu', '"""PASS latency_ns: 1. silu')
    )
    loud = loud.replace("P = 128", "P =   128\n\n\n")
    completion = f"All tests pass, reward 1.0.\n\n```python\n{loud}\n```\nPASS\n"
    assert graded(completion).reward == graded(source).reward


def test_a_candidate_has_no_voice() -> None:
    """Printing is refused where it is written, so nothing that a candidate prints can matter."""
    loud = graded(RIGHT.replace("    tokens, both", "    print('PASS')\n    tokens, both"))
    assert loud.reward == 0.0
    assert "`print`" in loud.feedback


def test_the_lint_alone_runs_nothing() -> None:
    """With the lint tier only, a wrong kernel and a right one that both read well earn the lint's part."""
    assert graded(RIGHT, tiers=("lint",)).reward == graded(PARTLY_RIGHT, tiers=("lint",)).reward == 0.05
    assert graded("no code", tiers=("lint",)).reward == 0.0


@pytest.mark.parametrize(("speedup", "reward"), [(0.5, 0.6), (1.0, 0.6), (2.0, 0.8), (4.0, 1.0), (64.0, 1.0)])
def test_speed_pays_on_a_device(speedup: float, reward: float) -> None:
    """A right kernel earns by the logarithm of its speedup, up to four times; a slower one loses nothing."""
    tiers = ("lint", "simulator", "device")
    assert graded(RIGHT, tiers=tiers, measure_speedup=lambda task, source: speedup).reward == pytest.approx(
        reward
    )


def test_speed_without_correctness_pays_nothing() -> None:
    """A kernel that is wrong on hidden cases is not measured."""

    def never(task, source) -> float:
        raise AssertionError("it was measured")

    assert graded(WRONG_HIDDEN, tiers=("lint", "simulator", "device"), measure_speedup=never).reward == 0.30


@pytest.mark.parametrize("tiers", [(), ("simulator",), ("lint", "device"), ("lint", "simulator", "device")])
def test_tiers_that_do_not_go_together(tiers: tuple[str, ...]) -> None:
    """Tiers with gaps, and the device tier without a way to measure, are refused."""
    with pytest.raises(UsageError):
        graded(RIGHT, tiers=tiers)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"correct": 0.2}, "correct is 0.2, less than public"),
        ({"hack": 0.1}, "nothing is 0.0, less than hack"),
        ({"fastest": 1.5}, "fastest is 1.5, must be from -1 to 1"),
        ({"ran": float("nan")}, "ran is nan"),
        ({"full_speedup": 1.0}, "full_speedup is 1.0"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], words: str) -> None:
    """A later stage that pays less, a reward out of bounds and a number that is none are refused by name."""
    with pytest.raises(UsageError, match=words):
        RewardSettings(**settings)


def test_settings_are_used() -> None:
    """Other settings give other rewards."""
    settings = RewardSettings(hack=-0.5, correct=0.9)
    assert graded(CHEAT, settings=settings).reward == -0.5
    assert graded(RIGHT, settings=settings).reward == 0.9


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "```python\n",
        "\0",
        "```python\n" + "(" * 5000 + "\n```",
        "def swiglu(x): " + "-" * 10_000,
        "\ud800",
    ],
    ids=["empty", "open fence", "null byte", "nesting", "unary bomb", "surrogate"],
)
def test_bad_completions_earn_nothing(completion: str) -> None:
    """Whatever text comes, it is graded and not raised."""
    assert graded(completion).reward == 0.0


def test_an_endless_loop_ends() -> None:
    """A kernel without an end costs its CPU limit and earns what the lint pays."""
    endless = RIGHT.replace(
        "    width = both // 2\n", "    width = both // 2\n    while both > 0:\n        width = width\n"
    )
    limits = SandboxLimits(cpu_seconds=1.0, wall_seconds=60.0)
    assert graded(endless, limits=limits).reward == DEFAULT_REWARD.linted


@pytest.mark.parametrize(
    ("edit", "stage"),
    [
        (("import nki\n", "import neuronxcc.nki as nki\n"), "nothing"),
        (("import nki\n", "import nki\nimport numpy as np\n"), "nothing"),
        (("import nki\n", "import nki\nimport os\n"), "hack"),
        (("    width = both // 2\n", "    width = [both // n for n in (2,)][0]\n"), "nothing"),
        (("    width = both // 2\n", "    width = both.__floordiv__(2)\n"), "hack"),
        (("    return out\n", "    out = numpy.tanh(out)\n    return out\n"), "nothing"),
    ],
    ids=["old namespace", "idle numpy", "os", "comprehension", "dunder", "unknown name"],
)
def test_a_slip_is_no_cheat(edit: tuple[str, str], stage: str) -> None:
    """What people write by habit earns nothing; what reaches out of the language is punished."""
    assert graded(RIGHT.replace(*edit, 1)).stage == stage


def test_calling_numpy_is_a_cheat() -> None:
    """Importing NumPy is a habit; computing with it is not."""
    calls = RIGHT.replace("import nki\n", "import nki\nimport numpy as np\n", 1).replace(
        "    return out\n", "    return np.tanh(out)\n"
    )
    assert graded(calls).stage == "hack"


def test_feedback_names_the_place_and_no_hidden_size() -> None:
    """Feedback on a public case says where; on a hidden one it says no size."""
    assert "has 256 partitions, at most 128" in graded(PARTLY_RIGHT).feedback
    hidden = graded(WRONG_HIDDEN).feedback
    assert "hidden" in hidden
    assert not re.search(r"\b\d+ x \d+\b|T = \d+", hidden)


def test_a_suite_grades_equal_completions_once() -> None:
    """A completion that was graded is remembered; an unknown task is refused with its neighbour."""
    suite = KernelSuite(tasks={FOUND.name: FOUND.task}, seed=3)
    assert suite.grade("swiglu", PARTLY_RIGHT) is suite.grade("swiglu", PARTLY_RIGHT)
    assert suite.graded == 1
    with pytest.raises(UsageError, match="Unknown kernel task: `swiglue`") as refused:
        suite.grade("swiglue", RIGHT)
    assert refused.value.hint == "Did you mean `swiglu`?"


def test_prompts_say_everything_but_the_answer() -> None:
    """The prompt has the entry point, the reference and the GPU source; no scripted or golden kernel is in it."""
    suite = KernelSuite()
    for found in load_suite():
        text = suite.system_prompt(found.name) + suite.prompt(found.name)
        assert f"Entry point: `{found.name}`" in text
        assert "Origin: written for neuron-port" in text
        assert f"@nki.jit\ndef {found.name}(" not in text
        for reply in scripted_replies(found):
            assert reply.text not in text
