"""The zoo's architectures, lowered without any recipe, equal transformers on XLA-CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))  # where the zoo's package and its benchmark stand

import zoo_lowering  # noqa: E402
from zoo import ZOO, build, choose, write_checkpoint  # noqa: E402

from neuron_port.walk.known_values import KnownValues  # noqa: E402

# One for each thing that the others do not have: complex numbers, experts, batch norm and pooling, masked scatter.
QUICK = ("deepseek_v2", "mixtral", "resnet", "llava")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in ZOO]
)
def test_architecture_equals_transformers(name: str) -> None:
    """Every tensor of the plain forward is within 1e-5 of its largest element, and lint has nothing against it."""
    pytest.importorskip("jaxlib", reason="executing HLO needs neuron-port[verify]")
    row = zoo_lowering.measure(ZOO[name])
    assert row.failure is None
    assert row.passed, row.worst
    assert row.report is not None
    assert row.report.findings == ()


def test_a_wrong_weight_is_seen() -> None:
    """A result that is 2 % off in one place of one tensor is reported as that difference."""
    right = torch.linspace(-1, 1, 7)
    wrong = right.clone()
    wrong[0] *= 1.02
    assert zoo_lowering.worst_difference([right], [right]) == 0
    assert zoo_lowering.worst_difference([right, wrong], [right, right]) == pytest.approx(0.02)


def test_the_zoo_has_57_architectures() -> None:
    """Names are unique; a family or a name chooses, anything else is refused."""
    assert len(ZOO) == 57
    assert [entry.name for entry in choose(["speech", "bert"])] == ["bert", "whisper", "wav2vec2"]
    with pytest.raises(KeyError, match="Not in the zoo: spech"):
        choose(["spech"])


@pytest.mark.parametrize("name", ["llama", "qwen2_5_vl", "xlm_roberta"])
def test_checkpoint_describes_the_same_model(name: str, tmp_path: Path) -> None:
    """The configuration that is written names the architecture, and makes the model that the entry makes."""
    folder = write_checkpoint(ZOO[name], tmp_path / name)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["architectures"] == [ZOO[name].architecture]
    torch.manual_seed(0)
    read = getattr(transformers, ZOO[name].architecture)(transformers.AutoConfig.from_pretrained(folder))
    expected = build(ZOO[name]).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in read.state_dict().items())


class Split(torch.nn.Module):
    """Cuts x [N] into parts whose lengths a tensor of numbers gives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor([[1, 2], [3, 1]]).prod(-1)
        places = torch.arange(8)[torch.arange(8) % 3 == 0]
        if len(places) != 3 or lengths.tolist() != [2, 3]:
            raise ValueError("a constant has another value than it was given")
        return torch.stack([part.sum() for part in x.split(lengths.tolist())]) * places[:2]


def test_shapes_from_constants_are_known_during_the_export() -> None:
    """Inside `KnownValues` a split by a constant's values is exported; outside, torch refuses it."""
    x = torch.arange(5.0)
    with KnownValues():
        program = torch.export.export(Split(), (x,), strict=False)
    assert program.module()(x).tolist() == [0.0, 27.0]
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(Split(), (x,), strict=False)
