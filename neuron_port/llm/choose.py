"""From a name, `openai:gpt-5` or `http://localhost:8000/v1#qwen`, to the model: options, then environment, then file.

The configuration file is `$NEURON_PORT_HOME/config.toml` when there is one, else `~/.config/neuron-port/config.toml`:

    [llm]
    model = "openai:gpt-5"
    base_url = "https://proxy.example/v1"    # for openai: names
    api_key_env = "PROXY_KEY"                # the variable that holds the key, never the key itself

    [prices."gpt-5"]                         # US$ per million tokens
    input_usd = 1.25
    output_usd = 10.0

Nothing here falls back to another provider. `openai` and `boto3` are imported only for a model that needs them.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import tomllib
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from neuron_port.errors import UsageError
from neuron_port.llm.errors import MissingKeyError, ModelNotFoundError
from neuron_port.llm.failures import Endpoint
from neuron_port.llm.messages import LanguageModel, Price
from neuron_port.llm.prices import BEDROCK, find_price, known_models, price_from_config
from neuron_port.llm.quirks import QuirkMemory
from neuron_port.llm.replay import ReplayModel
from neuron_port.llm.retry import RetryPolicy, Say
from neuron_port.llm.settings import OPENAI_URL

if TYPE_CHECKING:
    from neuron_port.llm.openai_compatible import OpenAICompatible

SCHEMES = ("openai", "bedrock", "replay", "http", "https")
FORMS = "`openai:NAME`, `http://HOST/v1#NAME`, `bedrock:ID` or `replay:FILE`"
NAMED_BY = "NEURON_PORT_LLM"  # a model's name, for those who always use the same
KEY_OF_OPENAI = "OPENAI_API_KEY"
KEY_OF_OTHERS = "NEURON_PORT_LLM_KEY"  # an OpenAI key is not sent to other addresses unasked
NO_KEY = "none"  # servers of one's own want none, the openai package wants some


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the configuration file says."""

    file: Path | None = None
    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)


def choose_model(
    spec: str | None = None,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    price: Price | None = None,
    home: Path | None = None,
    say: Say | None = None,
    retry: RetryPolicy | None = None,
) -> LanguageModel:
    """The model of that name; nothing is asked of it yet, except for its list of models when an address has no `#NAME`.

    Args:
        spec: a name in one of the forms; None: from NEURON_PORT_LLM or the configuration file.
        base_url, api_key, price: win over environment, configuration file and the table of prices.
        home: where quirks are remembered; None: `$NEURON_PORT_HOME`, or `~/.cache/neuron-port`.
        say: hears a sentence for each wait and each parameter that a model does not take.
    Raises UsageError for a name that has no form, MissingKeyError that names the variable to set.
    """
    config = read_config()
    spec = spec or os.environ.get(NAMED_BY) or config.model
    if spec is None:
        raise UsageError(
            "No language model is named.", hint=f"Name one as {FORMS}, as the option or in {NAMED_BY}."
        )
    home = home or Path(os.environ.get("NEURON_PORT_HOME") or Path.home() / ".cache" / "neuron-port")
    scheme, _, rest = spec.partition(":")
    if scheme not in SCHEMES or not rest:
        raise UsageError(f"Unknown language model: `{_shown(spec)}`", hint=_suggestion(spec, scheme, rest))
    if scheme == "replay":
        return ReplayModel(Path(rest))
    if scheme == "bedrock":
        _require("boto3")
        from neuron_port.llm.bedrock import BedrockModel

        return BedrockModel(
            rest,
            endpoint_url=base_url,
            price=price or _own_price(config, spec, rest) or find_price(rest, base_url=None),
            quirks=QuirkMemory(home),
            known_models=known_models(BEDROCK),
            retry=retry,
            say=say,
        )
    at = _Address.of_openai(rest, base_url, config) if scheme == "openai" else _Address.of_url(spec, base_url)
    key, key_name = _key(at, api_key, config)
    open_model = _Opener(at, key, key_name, QuirkMemory(home), say, retry)
    model = at.model or _only_model(open_model("", None), at)
    return open_model(model, price or _own_price(config, spec, model) or find_price(model, base_url=at.url))


@dataclass(frozen=True, kw_only=True)
class _Address:
    """Where to ask for which model; an empty name means the only one that is there."""

    scheme: str
    url: str
    model: str

    @classmethod
    def of_openai(cls, model: str, base_url: str | None, config: Config) -> _Address:
        url = base_url or os.environ.get("OPENAI_BASE_URL") or config.base_url or OPENAI_URL
        return cls(scheme="openai", url=_checked(url), model=model)

    @classmethod
    def of_url(cls, spec: str, base_url: str | None) -> _Address:
        if base_url is not None:
            raise UsageError(
                f"Two addresses are given: `{_shown(spec)}` and `{_shown(base_url)}`.",
                hint="Leave one out, or use `openai:NAME` with the other.",
            )
        url, _, model = spec.partition("#")
        return cls(scheme="http", url=_checked(url), model=model)

    @property
    def shown(self) -> str:
        """The address without user name and password."""
        return _shown(self.url)

    def name(self, model: str) -> str:
        """What reports and caches call it; the address is left out only when it is OpenAI's own."""
        return f"openai:{model}" if self.url == OPENAI_URL else f"{self.shown}#{model}"


@dataclass(frozen=True)
class _Opener:
    """Makes the client for a model at an address, once its name is known."""

    at: _Address
    key: str
    key_name: str
    quirks: QuirkMemory
    say: Say | None
    retry: RetryPolicy | None

    def __call__(self, model: str, price: Price | None) -> OpenAICompatible:
        _require("openai")
        from neuron_port.llm.openai_compatible import OpenAICompatible

        password = urllib.parse.urlsplit(self.at.url).password
        secrets = (() if self.key == NO_KEY else (self.key,)) + ((password,) if password else ())
        cure = f"Set {self.key_name} to a key of this endpoint."
        return OpenAICompatible(
            Endpoint(url=self.at.shown, model=model, key_cure=cure, secrets=secrets),
            base_url=self.at.url,
            api_key=self.key,
            name=self.at.name(model),
            price=price,
            quirks=self.quirks,
            say=self.say,
            retry=self.retry,
        )


def _only_model(at_endpoint: OpenAICompatible, at: _Address) -> str:
    names = at_endpoint.models()
    if len(names) == 1:
        return names[0]
    shown = ", ".join(f"`{at.shown}#{name}`" for name in names[:8])
    raise ModelNotFoundError(
        f"{at.shown} lists {len(names) or 'no'} models, and none is named.",
        hint=f"Name one: {shown}{' or another' * (len(names) > 8)}."
        if names
        else f"Check that it runs, and name the model: `{at.shown}#NAME`.",
    )


def _key(at: _Address, api_key: str | None, config: Config) -> tuple[str, str]:
    """The key to send, and the name of what holds it. A server that is not OpenAI's may want none."""
    variable = _key_variable(at, config)
    key, source = (api_key, "the key") if api_key else (os.environ.get(variable, ""), variable)
    key = key.strip()  # a key pasted with its newline
    if key and (not key.isascii() or any(character.isspace() for character in key)):
        raise UsageError(
            f"{source} holds characters that no key has.",
            hint="Copy the key again, without spaces or quotes.",
        )
    if not key and at.url == OPENAI_URL:
        raise MissingKeyError(
            f"There is no key for {at.shown}: {variable} is not set.",
            hint=f"Run `export {variable}=...` with your key, then the same command again.",
        )
    return key or NO_KEY, source if api_key is None else "the key option"


def _key_variable(at: _Address, config: Config) -> str:
    """Which variable holds the key for an address: no key goes to an address that it was not set for."""
    configured = {_bare(url) for url in (config.base_url, (config.model or "").partition("#")[0]) if url}
    if config.api_key_env and (at.url in configured or (at.scheme == "openai" and not config.base_url)):
        return config.api_key_env
    of_openai = _bare(os.environ.get("OPENAI_BASE_URL") or OPENAI_URL)
    return KEY_OF_OPENAI if at.scheme == "openai" or at.url == of_openai else KEY_OF_OTHERS


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"The package `{package}` is not installed.", hint=f"Run `pip install {package}`, then try again."
        )


def _own_price(config: Config, spec: str, model: str) -> Price | None:
    return config.prices.get(spec) or config.prices.get(model)


def read_config() -> Config:
    """The configuration file, or nothing when there is none; UsageError names what in it is wrong."""
    home = os.environ.get("NEURON_PORT_HOME")
    places = [Path(home) / "config.toml"] if home else []
    places.append(Path.home() / ".config" / "neuron-port" / "config.toml")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return Config()
    try:
        content = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} cannot be read: {error}.", hint="It is a TOML file, see docs/llm.md."
        ) from error
    settings, priced = content.get("llm", {}), content.get("prices", {})
    for section, table in {"llm": settings, "prices": priced}.items():
        if not isinstance(table, dict):
            raise UsageError(
                f"{section} in {file} is `{table}`, must be a table.", hint=f"Write [{section}]."
            )
    known = ("model", "base_url", "api_key_env")
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"It may be one of {', '.join(known)}."
            if name == "api_key":
                hint = "Keys do not belong in files: put it into a variable and its name here as api_key_env."
            raise UsageError(f"Unknown setting in [llm] of {file}: `{name}`", hint=hint)
        if not isinstance(value, str):
            raise UsageError(
                f"{name} in [llm] of {file} is `{value}`, must be text.", hint="Put it in quotes."
            )
    prices = {name: price_from_config(name, entry, file) for name, entry in priced.items()}
    return Config(file=file, prices=prices, **settings)


def _checked(url: str) -> str:
    """The address without a slash at its end; UsageError when it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            f"`{_shown(url)}` is no address of an endpoint.",
            hint=f"For example {OPENAI_URL} or http://localhost:8000/v1.",
        )
    return _bare(url)


def _bare(url: str) -> str:
    return url.rstrip("/")


def _shown(url: str) -> str:
    """The address without user name and password."""
    before, separator, after = url.partition("://")
    authority, slash, path = after.partition("/")
    return f"{before}{separator}{authority.rpartition('@')[2]}{slash}{path}" if separator else url


def _suggestion(spec: str, scheme: str, rest: str) -> str:
    near = difflib.get_close_matches(scheme, SCHEMES, n=1)
    if rest and near:
        return f"Did you mean `{near[0]}:{rest}`?"
    if (rest and "." in scheme) or scheme in ("localhost",):
        return f"Did you mean `http://{_shown(spec)}`?"
    return f"Models are named as {FORMS}." + (f" Did you mean `openai:{spec}`?" if not rest else "")
