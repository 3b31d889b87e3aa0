"""A conversion with drafting: a scripted model writes the kernel of one layer, and the bundle has it as a draft."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from neuron_port.drafting.drafts import Shelf
from neuron_port.drafting.options import DraftOptions
from neuron_port.drafting.workshop import Workshop
from neuron_port.llm.choose import choose_model
from neuron_port.pipeline.convert import convert
from neuron_port.pipeline.drafting import Drafting
from neuron_port.pipeline.options import complete_options
from neuron_port.registry import Registry
from neuron_port.report import LiveView
from neuron_port.store import Store
from tests.drafting.layer_kernels import LAYER_NORM, kernel
from tests.llm.scripted_server import ScriptedServer
from tests.pipeline.command import run
from tests.pipeline.conftest import save

DRAFTED = "gpt2_layer_norm"
LAYER = "transformer.h.0.ln_1"


@pytest.fixture(scope="module")
def small_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer GPT-2 with random weights and an activation that no recipe serves."""
    from transformers import GPT2Config

    config = GPT2Config(
        n_embd=32, n_layer=1, n_head=4, vocab_size=96, n_positions=64, activation_function="laplace"
    )
    return save(config, tmp_path_factory.mktemp("small_gpt2") / "gpt2")


def test_a_drafted_kernel_serves_the_model(small_gpt2: Path, tmp_path: Path) -> None:
    """The layer norm is drafted, tried inside the model, proven layer by layer, and bundled as a draft."""
    right = f"```python\n{kernel(LAYER_NORM, DRAFTED)}\n```"
    options = complete_options(
        str(small_gpt2),
        buckets=(16,),
        cache_length=32,
        new_tokens=2,
        compiler_layers=("layer_norm",),
        output=tmp_path / "bundle",
        proof="kernels",
    )
    with ScriptedServer(lambda call: right) as server:
        model = choose_model(f"{server.url}#scripted", api_key="k", home=tmp_path)
        workshop = Workshop(home=tmp_path, model=model)
        drafting = Drafting(
            workshop=workshop,
            options=DraftOptions(drafts=1, repairs=0, plan=False),
            shelf=Shelf(folder=tmp_path / "drafts"),
            layers=(LAYER,),
        )
        try:
            with LiveView(Console(quiet=True), enabled=False) as view:
                conversion = convert(options, view, Store(tmp_path), drafting)
        finally:
            workshop.executor.close()
        purposes = [call.body["messages"][-1]["content"][:10] for call in server.calls]
    assert len(purposes) == 2  # the probe, and one draft
    assert Registry(tmp_path / "drafts")[DRAFTED].kernel.origin == "draft"
    served = [match for match in conversion.plan.matches if match.recipe == DRAFTED]
    assert {match.decision for match in served} == {"draft"}
    assert {name for match in served for name in match.layers} >= {LAYER, "transformer.ln_f"}
    assert all(report.passed for report in conversion.kernel_reports)
    assert any(DRAFTED in report.subject for report in conversion.kernel_reports)
    assert list((tmp_path / "bundle").rglob(f"*{DRAFTED}*"))


def test_a_dry_run_asks_nothing(small_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`draft MODEL --dry-run` lists what it would draft and the worst case; a short context is no obstacle."""
    monkeypatch.setenv("NEURON_PORT_HOME", str(tmp_path))
    with ScriptedServer([]) as server:
        done = run("draft", str(small_gpt2), "--dry-run", "--llm", f"{server.url}#scripted")
        assert not server.calls
    assert done.code == 0, done.stderr
    assert "gpt2_laplace_activation" in done.stdout
    assert "at worst" in done.stdout
