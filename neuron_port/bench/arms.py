"""The arms of the benchmark: what the loop is allowed on each, so that every arm adds one thing to the one before.

An arm is judged twice. As a whole: how often it ends with an admitted kernel, and at what cost. And by pass@k: how
often one of k independent drafts under its prompts is right as it stands; arms that differ only in what happens after
the first draft share these draws, and therefore the figure.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from neuron_port.drafting.options import MAX_OUTPUT_TOKENS, DraftOptions
from neuron_port.errors import UsageError

# Of independent draws. Between 0.2, which is best for pass@1, and 0.8, best for pass@100 (Chen et al. 2021,
# arXiv:2107.03374, section 3.3): all k are estimated from the same draws.
SAMPLE_TEMPERATURE = 0.6
DEFAULT_KS = (1, 4, 10)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to ask. `memory` and `source` say what prompts show besides, `repairs` whether failures are shown again."""

    name: str
    summary: str
    drafts: int = 4
    repairs: bool = True
    memory: bool = False
    source: bool = False


ARMS: tuple[Arm, ...] = (
    Arm(name="one-shot", summary="one draft, as it stands", drafts=1, repairs=False),
    Arm(name="best-of-4", summary="four drafts, the first that is right", repairs=False),
    Arm(name="repair", summary="and rounds of repair with evidence"),
    Arm(name="memory", summary="and lessons of earlier runs, frozen", memory=True),
    Arm(name="source", summary="and the GPU source", memory=True, source=True),
)


def find_arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of these names, in the order of `ARMS`.

    Raises:
        UsageError: an unknown name, or none.
    """
    known = {arm.name: arm for arm in ARMS}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}"
            raise UsageError(f"Unknown arm: `{name}`", hint=hint)
    if not names:
        raise UsageError("No arm is named", hint=f"Known: {', '.join(known)}")
    return tuple(arm for arm in ARMS if arm.name in names)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is run on every task, whatever the language model.

    Attributes:
        ks: of pass@k; as many independent drafts are drawn as the largest asks for.
        repeats: independent runs of every arm.
        repairs: rounds of repair, on arms that repair.
        plan: every run asks for a plan first, independent drafts included.
        hidden_seed: all runs are judged on the same hidden cases.
        frozen_memory: digest of the lessons that arms with memory show.
    """

    arms: tuple[Arm, ...] = ARMS
    ks: tuple[int, ...] = DEFAULT_KS
    repeats: int = 1
    repairs: int = 6
    plan: bool = True
    target: str = "trn2"
    max_output_tokens: int = MAX_OUTPUT_TOKENS
    hidden_seed: int
    frozen_memory: str = ""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or list(self.ks) != sorted(set(self.ks)):
            shown = ",".join(map(str, self.ks))
            raise UsageError(
                f"Not a list of k in ascending order from 1: `{shown}`", hint="For example --k 1,4,10."
            )
        if self.repeats < 1:
            raise UsageError(f"Every arm is run at least once: `{self.repeats}`", hint="Use --repeats 1.")

    @property
    def samples(self) -> int:
        """Independent drafts for each task and each kind of prompt."""
        return max(self.ks)

    def arm_options(self, arm: Arm, repeat: int, exclude: tuple[str, ...]) -> DraftOptions:
        """The options of one run of an arm on a task; `exclude` names the recipes that solve it."""
        if arm.drafts == 1 and not arm.repairs:
            return self.sample_options(arm, repeat, exclude)
        return self._options(arm, repeat, exclude, drafts=arm.drafts, repairs=self.repairs * arm.repairs)

    def sample_options(self, arm: Arm, number: int, exclude: tuple[str, ...]) -> DraftOptions:
        """The options of one independent draft under the arm's prompts, which nothing repairs."""
        temperatures = (SAMPLE_TEMPERATURE,)
        return self._options(arm, number, exclude, drafts=1, repairs=0, temperatures=temperatures)

    def _options(
        self,
        arm: Arm,
        repeat: int,
        exclude: tuple[str, ...],
        *,
        drafts: int,
        repairs: int,
        temperatures: tuple[float, ...] = DraftOptions.temperatures,
    ) -> DraftOptions:
        return DraftOptions(
            drafts=drafts,
            repairs=repairs,
            temperatures=temperatures,
            plan=self.plan,
            show_source=arm.source,
            exclude=exclude,
            target=self.target,
            max_output_tokens=self.max_output_tokens,
            repeat=repeat,
            hidden_seed=self.hidden_seed,
            frozen_memory=self.frozen_memory if arm.memory else "",
        )
