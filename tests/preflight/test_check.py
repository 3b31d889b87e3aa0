"""`check` from a model's name to the verdict: what fits, what does not, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from neuron_port.cli import commands, main
from neuron_port.errors import UsageError
from neuron_port.instances import instance
from neuron_port.preflight import findings
from neuron_port.preflight.check import check
from neuron_port.preflight.fitting import candidate
from neuron_port.preflight.records import CheckOptions, CheckReport
from neuron_port.preflight.roofline import machine_of
from neuron_port.preflight.sizing import Sizes
from neuron_port.preflight.support import support_of
from neuron_port.store import Store
from neuron_port.types import to_json
from tests.preflight.models import config_of, make_sizes


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def small(store: Store) -> CheckReport:
    """SmolLM2 on Inf2."""
    return check(CheckOptions(model="smollm2-135m", target="inf2"), store=store)


def test_a_small_model_fits_the_cheapest_type(small: CheckReport) -> None:
    """The verdict names the cheapest type first, and says that no device has confirmed the speed."""
    assert small.fits
    assert small.verdict.startswith("Fits on inf2.xlarge at one core, 2 replicas, $0.76 per hour")
    assert "predicted, no device has confirmed it" in small.verdict
    assert small.context == 4096
    assert small.anatomy.license == "Apache-2.0"


def test_speeds_stand_beside_gpus_with_their_sources(small: CheckReport) -> None:
    """Every figure of an instance says what it rests on; where no source has watts, joules are not invented."""
    kinds = {one.kind for one in small.speeds}
    assert kinds == {"neuron", "gpu"}
    for one in small.speeds:
        assert one.speed.source
        assert one.price.source
        assert (one.joules_per_token is None) == (one.power.confidence == "unknown")
    inf2 = next(one for one in small.speeds if one.instance == "inf2.xlarge")
    assert inf2.joules_per_token is None
    price = inf2.usd_per_hour / 3600 / inf2.decode_tokens_per_second * 1e6  # type: ignore[operator]
    assert inf2.usd_per_million_tokens == pytest.approx(price)


def test_the_report_is_plain_json(small: CheckReport) -> None:
    """The machine-readable report holds the verdict and loses nothing on the way through JSON."""
    values = json.loads(json.dumps(to_json(small)))
    assert values["verdict"] == small.verdict
    assert len(values["candidates"]) == len(small.candidates)


def test_a_large_model_does_not_fit_a_small_type(llama_70b: Sizes) -> None:
    """70B in bfloat16 needs more than an Inferentia2 has; a trn1.32xlarge runs it at 32, which the documents list."""
    shares = llama_70b.shares("trn1", 32)
    small = candidate(instance("trn1.2xlarge"), shares, 1)
    assert not small.fits
    assert small.reason.startswith("needs ")
    large = candidate(instance("trn1.32xlarge"), shares, 1)
    assert (large.fits, large.degree, large.replicas) == (True, 32, 1)


def test_a_listed_degree_wins_over_a_smaller_one(llama_70b: Sizes) -> None:
    """On inf2.48xlarge 70B would fit at 16 only, which the documents do not list: that is said."""
    found = candidate(instance("inf2.48xlarge"), llama_70b.shares("inf2", 24), 1)
    assert found.degree == 16
    assert "AWS's documents do not list this degree" in found.reason


def test_room_is_what_the_memory_holds(llama_70b: Sizes) -> None:
    """One sequence more than the room does not fit."""
    shares = llama_70b.shares("trn2", 64)
    found = candidate(instance("trn2.48xlarge"), shares, 1)
    share = next(one for one in shares if one.degree == found.degree)
    capacity = machine_of(instance("trn2.48xlarge")).capacity_bytes
    fixed = share.weight_bytes + share.scratch_bytes
    assert found.room is not None
    assert fixed + found.room * share.state_bytes <= capacity < fixed + (found.room + 1) * share.state_bytes


def test_a_model_that_no_plan_cuts_is_told_a_way_out(store: Store) -> None:
    """gpt-oss has no tensor-parallel plan and is too large for a core in bfloat16: int8 is named."""
    report = check(CheckOptions(model="gpt-oss-20b", target="trn2"), store=store)
    assert not report.fits
    assert report.verdict.startswith("Does not fit on any trn2 instance: needs 39.0 GiB of weights")
    assert "no tensor-parallel plan for the layers of GptOssForCausalLM" in report.verdict
    assert "With --weight-format int8 it fits on trn2.3xlarge" in report.verdict


def test_a_named_type_that_is_too_small_is_told_the_cheapest_that_is_not(store: Store) -> None:
    """The verdict says what is needed, what there is, and the cheapest type that runs it."""
    report = check(CheckOptions(model="mixtral-8x7b", target="inf2", instance="inf2.xlarge"), store=store)
    assert report.verdict.startswith(
        "Does not fit on inf2.xlarge: needs 87.0 GiB of weights and 512 MiB of state"
    )
    assert "has 32 GiB" in report.verdict
    assert "The cheapest inf2 that runs it: inf2.24xlarge at degree 8, $6.49 per hour." in report.verdict


def test_an_encoder_is_measured_in_inputs(store: Store) -> None:
    """BERT has texts per second, no decoding, and says what a million tokens are."""
    report = check(CheckOptions(model="bert-base", target="inf2", batch=8), store=store)
    assert report.context == 128
    assert "texts of 128 tokens per second" in report.verdict
    assert all(one.decode_tokens_per_second is None and one.items_per_second for one in report.speeds)
    assert any("answers in one pass" in note for note in report.notes)


def test_bert_is_within_a_third_of_what_aws_published() -> None:
    """AWS published 2,674 texts of 128 tokens per second for BERT base on inf2.xlarge, batch 8 (SDK 2.27)."""
    config = config_of("bert-base", architectures=["BertModel"])
    from neuron_port.preflight.check import _work
    from neuron_port.preflight.fitting import speed

    sizes = make_sizes(config, "bert-base", batch=8, context=128)
    found = speed(instance("inf2.xlarge"), 1, sizes, _work(sizes), 0)
    assert found.items_per_second == pytest.approx(2674, rel=0.34)


# -- what is refused before any work -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"target": "trn9"}, "Unknown target: `trn9`", "inf2, trn1, trn2"),
        ({"target": "inf2", "instance": "inf2.large"}, "Unknown instance type: `inf2.large`", "inf2.xlarge"),
        ({"target": "inf2", "instance": "trn1.2xlarge"}, "trn1.2xlarge has Trainium", "--target trn1"),
        ({"target": "inf2", "instance": "g5.xlarge"}, "g5.xlarge has A10G", "is compared with them"),
        ({"target": "inf2", "instance": "r7i.xlarge"}, "r7i.xlarge has no accelerator", "inf2.xlarge"),
        ({"target": "inf2", "batch": 0}, "The batch must be at least one: `0`", "--batch 1"),
        ({"target": "inf2", "context": 0}, "The context must be at least one token: `0`", "--context"),
        ({"target": "inf2", "context": 9000}, "longer than the 8192 positions", "--context 8192"),
        ({"target": "inf2", "weight_format": "int4"}, "Unknown weight format: `int4`", "int8"),
        ({"target": "inf2", "prices": {"inf2.big": 1.0}}, "Unknown instance type: `inf2.big`", "inf2."),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    options: dict[str, object], message: str, hint: str, store: Store
) -> None:
    """Each option that does not go together is named with its value, and the hint says what would."""
    with pytest.raises(UsageError) as caught:
        check(CheckOptions(model="smollm2-135m", **options), store=store)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_misspelt_model_gets_its_neighbour(store: Store) -> None:
    """`check` knows the same names as `convert`."""
    with pytest.raises(UsageError, match=r"Unknown model: `lama-3\.1-70b`"):
        check(CheckOptions(model="lama-3.1-70b", target="trn2"), store=store)


# -- findings ------------------------------------------------------------------------------------------------


def test_a_plain_model_has_no_refusal(llama_70b: Sizes) -> None:
    """The graphs of a Llama of real width are lowered and linted, and nothing is refused."""
    assert list(findings.lowered(llama_70b, "trn2")) == []


@pytest.mark.parametrize(("context", "codes"), [(64, set()), (256, {"NCC_EVRF056"})])
def test_a_graph_that_the_compiler_refuses_is_named_by_its_code(context: int, codes: set[str]) -> None:
    """GPT-2 with 64 learned positions: graphs of 64 slots are fine, those of 256 reach out of bounds."""
    from transformers import GPT2Config

    config = GPT2Config(n_positions=64, n_layer=2, n_embd=96, n_head=4, architectures=["GPT2LMHeadModel"])
    found = list(findings.lowered(make_sizes(config, "gpt2", context=context), "trn2"))
    assert {one.code for one in found} == codes
    assert all(one.severity == "refused" for one in found)


def test_kernels_are_disputed_on_inf2_and_not_on_trn2(llama_70b: Sizes) -> None:
    """The dispute over NKI on NeuronCore-v2 is told where it matters."""
    from neuron_port.preflight.check import _work

    work = _work(llama_70b)
    assert "NKI" in {one.code for one in findings.of_sizes(llama_70b, work, "inf2", None)}
    assert "NKI" not in {one.code for one in findings.of_sizes(llama_70b, work, "trn2", None)}


def test_gathered_experts_are_told_from_dense_ones(mixtral: Sizes, llama_70b: Sizes) -> None:
    """Without a kernel, a prompt's experts gather weights beyond a core's memory; a dense model gathers none."""
    from neuron_port.preflight.check import _work

    chosen = candidate(instance("trn2.48xlarge"), mixtral.shares("trn2", 64), 1)
    assert "NCC_EOOM001" in {one.code for one in findings.of_sizes(mixtral, _work(mixtral), "trn2", chosen)}
    chosen = candidate(instance("trn2.48xlarge"), llama_70b.shares("trn2", 64), 1)
    assert "NCC_EOOM001" not in {
        one.code for one in findings.of_sizes(llama_70b, _work(llama_70b), "trn2", chosen)
    }


def test_support_says_chip_and_architecture() -> None:
    """vLLM Neuron does not run on Inf2 whatever the model; on Trn2 it lists Llama and not Mixtral."""
    rows = {row.framework: row for row in support_of("inf2", "llama")}
    assert rows["vLLM Neuron 0.24 (without NxD)"].chip == "no"
    trn2 = {row.framework: row for row in support_of("trn2", "mixtral")}
    assert trn2["vLLM Neuron 0.24 (without NxD)"].architecture == "does not list `mixtral`"


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_prints_the_verdict_first(tiny_llama_folder: Path, store_folder: Path) -> None:
    """A folder is checked like a preset; the first line is the verdict, and no weights are read."""
    (folder := store_folder.parent / "config only").mkdir()
    (folder / "config.json").write_bytes((tiny_llama_folder / "config.json").read_bytes())
    done = CliRunner().invoke(commands, ["check", str(folder), "--target", "trn1"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("Fits on trn1.2xlarge")
    assert "no device has confirmed it" in done.output


def test_the_command_takes_prices_and_writes_a_page(
    tiny_llama_folder: Path, tmp_path: Path, store_folder: Path
) -> None:
    """A price of the reader's own is in the report, and the page holds the verdict and a picture."""
    page = tmp_path / "page.html"
    arguments = ["check", str(tiny_llama_folder), "--instance", "inf2.xlarge", "--price", "inf2.xlarge=36"]
    done = CliRunner().invoke(commands, [*arguments, "--json", "--html", str(page)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["options"]["target"] == "inf2"
    assert "$36.00 per hour" in report["verdict"]
    text = page.read_text()
    assert report["verdict"].split(":")[0] in text
    assert "data:image/svg+xml" in text


def test_a_price_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """`--price inf2.xlarge` lacks its number: exit code 2, one sentence."""
    with pytest.raises(SystemExit) as caught:
        main(["check", "smollm2-135m", "--price", "inf2.xlarge"])
    assert caught.value.code == 2
    assert "is not TYPE=USD" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_refused(
    tiny_llama_folder: Path, tmp_path: Path, store_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page in a folder that is not there: exit code 2, one sentence."""
    with pytest.raises(SystemExit) as caught:
        main(["check", str(tiny_llama_folder), "--html", str(tmp_path / "nowhere" / "page.html")])
    assert caught.value.code == 2
    assert "The page cannot be written" in capsys.readouterr().err
