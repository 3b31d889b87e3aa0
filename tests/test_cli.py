"""The command line: what it prints where, and how it refuses what cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from neuron_port.cli import main
from tests.pipeline.command import SIZES, failed, run

PLAN_SIZES = ("--buckets", "16", "--cache-length", "32")


@pytest.fixture(autouse=True)
def _own_store(store_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test has an empty store and stands in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def nothing_was_done(store: Path) -> None:
    """No stage beyond reading the checkpoint has left anything in the store."""
    kept = {path.name for path in store.iterdir()} if store.is_dir() else set()
    assert kept <= {"digests", "locks"}, kept


# What it prints


def test_plan_prints_a_table_to_stdout_and_progress_to_stderr(tiny_llama_folder: Path) -> None:
    """The table names every kind of layer with its count, shares, decision and reason; progress goes elsewhere."""
    finished = run("plan", tiny_llama_folder, *PLAN_SIZES)
    assert finished.code == 0
    for word in ("LlamaMLP", "gated_mlp", "Linear", "reason", "agrees", "%"):
        assert word in finished.stdout, word
    assert "started" not in finished.stdout
    assert "plan: done" in finished.stderr


def test_plan_as_json_has_the_same_numbers(tiny_llama_folder: Path) -> None:
    """--json prints one JSON document and no progress in it: counts and shares of every layer, and why."""
    finished = run("plan", tiny_llama_folder, *PLAN_SIZES, "--json")
    table = run("plan", tiny_llama_folder, *PLAN_SIZES).stdout
    phases = {phase["phase"]: phase for phase in finished.json["phases"]}
    assert set(phases) == {"prefill", "decode"}
    for phase in phases.values():
        rows = phase["plan"]
        assert sum(row["count"] for row in rows) == sum(phase["layer_count"].values())
        assert sum(row["flops_share"] for row in rows) == pytest.approx(1)
        assert sum(row["bytes_share"] for row in rows) == pytest.approx(1)
        assert all(row["reason"] for row in rows if row["decision"] == "compiler")
        for row in rows:
            assert row["module_class"] in table
    mlp = next(row for row in phases["prefill"]["plan"] if row["module_class"] == "LlamaMLP")
    assert (mlp["count"], mlp["decision"], mlp["recipe"]) == (2, "recipe", "gated_mlp")
    assert finished.json["bundle"] is None


def test_plan_needs_no_weights(config_only_folder: Path) -> None:
    """With --random-weights a configuration is enough to plan."""
    assert run("plan", config_only_folder, *PLAN_SIZES, "--random-weights").code == 0


def test_no_arguments_print_the_help() -> None:
    """Without arguments the help is shown, and no error."""
    finished = run()
    assert finished.code == 2
    assert not finished.errors
    assert finished.stderr.startswith("Usage: neuron-port ")
    assert "convert" in finished.stderr


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("convert", "--help"), ("plan", "-h")])
def test_help_and_version_are_data(arguments: tuple[str, ...]) -> None:
    """Help and version go to stdout and end well."""
    finished = run(*arguments)
    assert finished.code == 0
    assert finished.stdout
    assert finished.stderr == ""


# Wrong usage: refused before anything is read


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--target", "trn9"), "Unknown target: `trn9`\n  hint: One of inf2, trn1, trn2."),
        (("--dtype", "int3"), "Unknown dtype: `int3`\n  hint: One of bfloat16, float32."),
        (("--buckets", "a,b"), "`a,b` is not a list of numbers"),
        (("--buckets", ""), "is not a list of numbers"),
        (("--buckets", "0"), "A bucket must hold at least one token: `0`"),
        (("--buckets", "64", "--cache-length", "32"), "cannot hold the largest bucket, 64 tokens"),
        (("--cache-length", "0"), "The cache of 0 slots"),
        (("--batch", "0"), "The batch must be at least one: `0`"),
        (("--new-tokens", "1"), "At least two tokens must be generated"),
        (("--weights", "steal"), "'steal' is not one of"),
        (("--recipes", "nowhere"), "Directory 'nowhere' does not exist"),
        (("--nonsense",), "No such option"),
        (("--revision", "main"), "it has no revision `main`"),
    ],
)
def test_wrong_options_are_refused(
    arguments: tuple[str, ...], sentence: str, tiny_llama_folder: Path, store_folder: Path
) -> None:
    """An option that no conversion can have is named with its value, in one sentence, with exit code 2."""
    assert sentence in failed(run("convert", tiny_llama_folder, *arguments), 2)
    nothing_was_done(store_folder)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("konvert",), "No such command 'konvert'"), (("convert",), "Missing argument 'MODEL'")],
)
def test_wrong_commands_are_refused(arguments: tuple[str, ...], sentence: str) -> None:
    """An unknown command and a missing model say so, and where the help is."""
    assert sentence in failed(run(*arguments), 2)


def test_a_misspelt_recipe_gets_its_neighbour(tiny_llama_folder: Path) -> None:
    """--compiler with an unknown name is refused with the nearest one."""
    said = failed(run("plan", tiny_llama_folder, *PLAN_SIZES, "--compiler", "linaer"), 1)
    assert "`linaer`" in said
    assert "Did you mean `linear`?" in said


# Models that cannot be had


def write_config(folder: Path, **values: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_a_misspelt_model_gets_its_neighbour() -> None:
    """An unknown model is refused with the nearest preset."""
    said = failed(run("convert", "smollm2-135n"), 2)
    assert "Unknown model: `smollm2-135n`" in said
    assert "Did you mean `smollm2-135m`?" in said


def test_a_model_of_the_hub_needs_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a hub id that is not in the cache is refused, and the reason is the offline switch."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = failed(run("convert", "nobody/nothing-at-all"), 1)
    assert "nobody/nothing-at-all" in said
    assert "HF_HUB_OFFLINE" in said


@pytest.mark.parametrize("more", [(), ("--random-weights",)])
def test_a_class_that_transformers_lacks_is_refused(more: tuple[str, ...], tmp_path: Path) -> None:
    """An architecture that is no model of transformers is named, with weights or without."""
    folder = write_config(tmp_path / "bert", architectures=["BertForNothing"], model_type="bert")
    assert "BertForNothing, which is no model known to transformers" in failed(
        run("convert", folder, *more), 1
    )


def test_a_configuration_without_weights_names_the_way_out(config_only_folder: Path) -> None:
    """A folder without weights is refused with the option that goes on without them."""
    assert "--random-weights" in failed(run("convert", config_only_folder), 1)


def test_a_truncated_checkpoint_is_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    """Half a safetensors file is named with the bytes that are there and that should be."""
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "half")
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    said = failed(run("convert", folder), 1)
    assert "model.safetensors is truncated" in said
    assert str(shard.stat().st_size) in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"GGUF\x03\0\0\0\x02\0\0\0\0\0", "is truncated or damaged"), (b"PK", "is not a GGUF file")],
)
def test_a_damaged_gguf_is_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    """A GGUF file that ends in its header, or is none, is named."""
    (tmp_path / "model.gguf").write_bytes(content)
    assert sentence in failed(run("convert", tmp_path / "model.gguf"), 1)


# What must fail before the long work


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        (("--buckets", "4"), "Prompt 1 has 6 tokens, the largest bucket holds 4\n  hint: Use --buckets 6"),
        (("--new-tokens", "28"), "(6 tokens) and 28 new tokens need 33 cache slots, there are 32"),
        (("--new-tokens", "20"), "Prompt 3 (14 tokens) and 20 new tokens need 33 cache slots, there are 32"),
        (("--buckets", "200"), "longer than the model's 128 positions\n  hint: Use --cache-length 128 and"),
        (("--cache-length", "129"), "longer than the model's 128 positions\n  hint: Use --cache-length 128."),
    ],
)
def test_what_the_graphs_cannot_hold_is_refused_at_once(
    sizes: tuple[str, ...], sentence: str, tiny_llama_folder: Path, store_folder: Path
) -> None:
    """A prompt beyond the bucket, an answer beyond the cache and a cache beyond the model stop before any stage."""
    options = dict(zip(SIZES[::2], SIZES[1::2], strict=True)) | dict(
        zip(sizes[::2], sizes[1::2], strict=True)
    )
    if sizes == ("--buckets", "200"):
        options["--cache-length"] = "200"
    arguments = [part for pair in options.items() for part in pair]
    said = failed(run("convert", tiny_llama_folder, *arguments), 2)
    assert sentence in said
    nothing_was_done(store_folder)


def test_the_cure_for_a_short_cache_is_a_cure(tiny_llama_folder: Path, store_folder: Path) -> None:
    """The hint names the sizes that are just enough: one token less than refused passes the check."""
    from neuron_port.checkpoint import resolve
    from neuron_port.pipeline.options import complete_options
    from neuron_port.pipeline.refusals import check_prompts
    from neuron_port.pipeline.workbench import Workbench
    from neuron_port.store import Store

    said = failed(run("convert", tiny_llama_folder, *SIZES[:4], "--new-tokens", "20"), 2)
    assert "Use --cache-length 33 or larger, or --new-tokens 19." in said
    checkpoint = resolve(str(tiny_llama_folder), store=Store())
    for cache_length, new_tokens in ((32, 19), (33, 20)):
        options = complete_options(
            str(tiny_llama_folder), buckets=(16,), cache_length=cache_length, new_tokens=new_tokens
        )
        check_prompts(Workbench(options, checkpoint, Store()))


def add_tokenizer(folder: Path, tokens: int) -> Path:
    """A tokenizer of words w0, w1, ... beside a model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(tokens)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("prompt", "code", "sentence"),
    [
        ("w1 " * 17, 2, "Prompt 2 has 17 tokens, the largest bucket holds 16"),
        ("", 2, "Prompt 2, ``, has no tokens"),
        ("w1 w399", 1, "The tokenizer gives token 399, but the model's vocabulary has 320"),
    ],
)
def test_prompts_of_a_tokenizer_are_checked_first(
    prompt: str, code: int, sentence: str, tiny_llama_folder: Path, tmp_path: Path, store_folder: Path
) -> None:
    """A text that is too long, empty, or made of tokens that the model does not have is refused by number."""
    folder = add_tokenizer(shutil.copytree(tiny_llama_folder, tmp_path / "model"), 400)
    said = failed(run("convert", folder, *SIZES, "--prompt", "w1 w2", "--prompt", prompt), code)
    assert sentence in said
    nothing_was_done(store_folder)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("foreign", "is not empty and no neuron bundle"),
        ("file", "is a file, not a neuron bundle"),
        ("link", "is a link, not a neuron bundle"),
        ("file/bundle", "Nothing can be written at"),
    ],
)
def test_a_place_that_is_taken_is_refused_at_once(
    place: str, sentence: str, tiny_llama_folder: Path, tmp_path: Path, store_folder: Path
) -> None:
    """An output that would replace something of the user's is refused before any work, and stays as it is."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "foreign")
    said = failed(run("convert", tiny_llama_folder, *SIZES, "--output", place), 2)
    assert sentence in said
    assert f"`{place}`" in said
    assert (tmp_path / "foreign" / "thesis.txt").read_text() == "years of work"
    nothing_was_done(store_folder)


def test_quiet_says_nothing_but_the_result(config_only_folder, store_folder, capfd):
    """With --quiet standard error stays empty; the table is on standard output."""
    with pytest.raises(SystemExit) as left:
        main(
            [
                "plan",
                str(config_only_folder),
                "--random-weights",
                "--quiet",
                "--cache-length",
                "64",
                "--buckets",
                "16",
            ]
        )
    told = capfd.readouterr()
    assert left.value.code == 0
    assert told.err == ""
    assert "LlamaMLP" in told.out
