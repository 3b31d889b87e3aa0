"""From a name to a model: options, environment, configuration file; and every way to get it wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neuron_port.errors import NeuronPortError, UsageError
from neuron_port.llm.choose import choose_model
from neuron_port.llm.errors import MissingKeyError, ModelNotFoundError
from neuron_port.llm.messages import Price
from neuron_port.llm.prices import find_price, providers
from tests.llm.conftest import ask
from tests.llm.scripted_server import ScriptedServer


def configure(text: str, tmp_path: Path) -> Path:
    """Write the configuration file of this test's home."""
    file = tmp_path / "home" / "config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_openai_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key in the environment a name is enough; the price is known, with its source."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    model = choose_model("openai:gpt-5-mini-2025-08-07")
    assert model.name == "openai:gpt-5-mini-2025-08-07"
    assert model.price is not None
    assert (model.price.input_usd, model.price.output_usd) == (0.25, 2.0)
    assert "genai-prices" in model.price.source


def test_no_key_names_the_variable() -> None:
    """Without a key the sentence says which variable to set."""
    with pytest.raises(MissingKeyError, match="OPENAI_API_KEY is not set") as caught:
        choose_model("openai:gpt-5")
    assert caught.value.hint is not None
    assert "export OPENAI_API_KEY=" in caught.value.hint


def test_a_server_of_ones_own_needs_no_key() -> None:
    """A local address works without a key, and has no price: nobody said one."""
    with ScriptedServer(["hello"]) as server:
        model = choose_model(f"{server.url}/#scripted")
        assert model.complete(ask()).text == "hello"
    assert model.name == f"{server.url}#scripted"
    assert model.price is None


def test_an_openai_key_stays_with_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is sent only where it belongs: OPENAI_API_KEY not to other addresses, NEURON_PORT_LLM_KEY to those."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    with ScriptedServer(lambda call: "x") as server:
        choose_model(f"{server.url}#m").complete(ask())
        monkeypatch.setenv("NEURON_PORT_LLM_KEY", "sk-other")
        choose_model(f"{server.url}#m").complete(ask())
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        choose_model("openai:m").complete(ask())
        choose_model("openai:m", api_key="sk-option").complete(ask())
    sent = [call.headers["authorization"].removeprefix("Bearer ") for call in server.calls]
    assert sent == ["none", "sk-other", "sk-openai", "sk-option"]


def test_the_only_model_need_not_be_named() -> None:
    """An address alone means the only model that it lists; with several, or none, they are named."""
    with ScriptedServer(["x"], models=("qwen",)) as server:
        assert choose_model(server.url).name == f"{server.url}#qwen"
    with ScriptedServer(models=("qwen", "llama")) as server:
        with pytest.raises(ModelNotFoundError, match="lists 2 models") as caught:
            choose_model(server.url)
        assert caught.value.hint == f"Name one: `{server.url}#qwen`, `{server.url}#llama`."
    with ScriptedServer(models=()) as server, pytest.raises(ModelNotFoundError, match="lists no models"):
        choose_model(server.url)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("opnai:gpt-5", "Did you mean `openai:gpt-5`?"),
        ("bedrok:amazon.nova", "Did you mean `bedrock:amazon.nova`?"),
        ("gpt-5", "Did you mean `openai:gpt-5`?"),
        ("localhost:8000/v1", "Did you mean `http://localhost:8000/v1`?"),
        ("llm.example.com:8000/v1#m", "Did you mean `http://llm.example.com:8000/v1#m`?"),
        ("openai:", "Models are named as"),
        ("anthropic:claude", "Models are named as"),
    ],
)
def test_an_unknown_form_gets_a_hint(spec: str, hint: str) -> None:
    """A name that has no known form is named, with what was probably meant."""
    with pytest.raises(UsageError, match="Unknown language model") as caught:
        choose_model(spec)
    assert caught.value.hint is not None
    assert hint in caught.value.hint


@pytest.mark.parametrize("url", ["http:///v1", "http://host:port/v1", "https://[::1/v1"])
def test_a_broken_address_is_named(url: str) -> None:
    """An address that nothing can be sent to is refused before anything is."""
    with pytest.raises(UsageError, match="is no address"):
        choose_model(f"{url}#m")


def test_a_password_in_the_address_is_not_shown() -> None:
    """User name and password go to the server, and into no name and no sentence."""
    with ScriptedServer(api_key="k") as server:
        url = server.url.replace("http://", "http://me:secret@")
        model = choose_model(f"{url}#m", api_key="wrong-key")
        assert model.name == f"{server.url}#m"
        with pytest.raises(NeuronPortError) as caught:
            model.complete(ask())
    assert "secret" not in str(caught.value)
    assert "wrong-key" not in str(caught.value)


def test_a_key_with_quotes_pasted_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that cannot be sent is refused without being shown; a newline at its end is dropped."""
    monkeypatch.setenv("OPENAI_API_KEY", "“sk-pasted”")
    with pytest.raises(UsageError, match="OPENAI_API_KEY holds characters") as caught:
        choose_model("openai:gpt-5")
    assert "sk-pasted" not in str(caught.value)
    with ScriptedServer(["x"], api_key="sk-1") as server:
        assert choose_model(f"{server.url}#m", api_key="sk-1\n").complete(ask()).text == "x"


def test_nothing_is_named() -> None:
    """Without a model the forms are listed."""
    with pytest.raises(UsageError, match="No language model is named") as caught:
        choose_model()
    assert caught.value.hint is not None
    assert "openai:NAME" in caught.value.hint


def test_options_beat_environment_beats_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same choice from three places: the nearest to the user wins."""
    configure('[llm]\nmodel = "openai:from-file"\nbase_url = "http://127.0.0.1:1/v1"\n', tmp_path)
    assert choose_model().name == "http://127.0.0.1:1/v1#from-file"
    monkeypatch.setenv("NEURON_PORT_LLM", "openai:from-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:2/v1")
    assert choose_model().name == "http://127.0.0.1:2/v1#from-environment"
    named = choose_model("openai:from-option", base_url="http://127.0.0.1:3/v1")
    assert named.name == "http://127.0.0.1:3/v1#from-option"


def test_the_configuration_names_the_variable_of_the_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """api_key_env is used for the configured address, and for no other."""
    monkeypatch.setenv("PROXY_KEY", "sk-proxy")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    with ScriptedServer(lambda call: "x") as server, ScriptedServer(lambda call: "x") as other:
        configure(f'[llm]\nbase_url = "{server.url}"\napi_key_env = "PROXY_KEY"\n', tmp_path)
        choose_model("openai:m").complete(ask())
        choose_model(f"{other.url}#m").complete(ask())
    assert server.calls[0].headers["authorization"] == "Bearer sk-proxy"
    assert other.calls[0].headers["authorization"] == "Bearer none"


def test_own_prices_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A price in the configuration beats the table, an option beats both; local models can be given one."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    file = configure('[prices."gpt-5"]\ninput_usd = 1\noutput_usd = 2\n', tmp_path)
    configured = choose_model("openai:gpt-5").price
    assert configured == Price(input_usd=1, output_usd=2, source=str(file))
    assert choose_model("http://127.0.0.1:1/v1#gpt-5").price == configured
    own = Price(input_usd=3, output_usd=4, source="me")
    assert choose_model("openai:gpt-5", price=own).price == own


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("[llm\n", "cannot be read", "TOML"),
        ('[llm]\nmodle = "x"\n', "Unknown setting in .llm.", "Did you mean `model`?"),
        ('[llm]\napi_key = "sk-x"\n', "Unknown setting in .llm.", "Keys do not belong in files"),
        ("[llm]\nmodel = 5\n", "must be text", "quotes"),
        ("llm = 5\n", "must be a table", "[llm]"),
        ('prices = "free"\n', "must be a table", "[prices]"),
        ("[prices.m]\ninput_usd = 1\n", "lacks output_usd", "output_usd"),
        ("[prices.m]\ninput_usd = 1\noutput = 2\n", "Unknown field", "Did you mean `output_usd`?"),
        ('[prices.m]\ninput_usd = "1"\noutput_usd = 2\n', "must be US", "input_usd = 1.25"),
        ("[prices.m]\ninput_usd = -1\noutput_usd = 2\n", "must be US", "input_usd = 1.25"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, words: str, hint: str) -> None:
    """A mistake in the file is named with the file, and never passed over."""
    configure(text, tmp_path)
    with pytest.raises(UsageError, match=words) as caught:
        choose_model("openai:m", api_key="k")
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("model", "base_url", "input_usd"),
    [
        ("gpt-5", "https://api.openai.com/v1", 1.25),
        ("gpt-5-2025-08-07", "https://api.openai.com/v1", 1.25),
        ("gpt-5-ultra", "https://api.openai.com/v1", None),
        ("gpt-5", "http://localhost:8000/v1", None),
        ("gpt-5", "https://api.openai.com.evil.example/v1", None),
        ("claude-haiku-4-5-20251001", "https://api.anthropic.com/v1", 1.0),
        ("models/gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta/openai", 1.25),
        ("openai.gpt-oss-120b-1:0", None, 0.15),
        ("eu.amazon.nova-pro-v1:0", None, 0.8),
        ("amazon.nova-unheard-of", None, None),
    ],
)
def test_prices_belong_to_an_address(model: str, base_url: str | None, input_usd: float | None) -> None:
    """A price is known for a model and its releases at its provider; elsewhere, and for other names, it is not."""
    price = find_price(model, base_url=base_url)
    assert (price and price.input_usd) == input_usd


def test_every_price_has_a_source_and_a_date() -> None:
    """About fifty prices, each with where it is from; output never cheaper than input, cached input never dearer."""
    prices = {name: price for provider in providers() for name, price in provider.prices.items()}
    assert len(prices) >= 20
    for name, price in prices.items():
        assert "2026-" in price.source, name
        assert 0 < price.input_usd <= price.output_usd, name
        assert price.cached_input_usd is None or price.cached_input_usd < price.input_usd, name


def test_choosing_stays_light() -> None:
    """Importing the choice of models imports neither openai nor boto3."""
    check = "import neuron_port.llm.choose, sys; heavy = {'openai', 'boto3', 'httpx'} & set(sys.modules); "
    done = subprocess.run(
        [sys.executable, "-c", check + "sys.exit(repr(heavy) if heavy else 0)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
