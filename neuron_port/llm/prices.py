"""What well-known models cost, from `prices.toml`; what is not there is not known, and the user may say it."""

from __future__ import annotations

import difflib
import re
import tomllib
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from neuron_port.errors import UsageError
from neuron_port.llm.messages import Price

TABLE = Path(__file__).with_name("prices.toml")
BEDROCK = "bedrock"  # in place of a host
# Providers release a model under dated names too, at the same price: gpt-5-2025-08-07, ...-20250929-v1:0.
RELEASE = re.compile(r"(?:-\d{4}-\d{2}-\d{2}|-\d{8}|-latest)?(?:-v\d+(?::\d+)?|-\d+:\d+)?")
# An inference profile in one part of the world costs what the model costs in a region.
GEOGRAPHY = re.compile(r"^(?:us|eu|apac|jp|au|ca|us-gov)\.")
FIELDS = ("input_usd", "output_usd", "cached_input_usd")


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One section of the table: who answers at these hosts, and what they charge."""

    hosts: tuple[str, ...]
    prices: Mapping[str, Price]


def find_price(model: str, *, base_url: str | None) -> Price | None:
    """The price of a model at an address, or on Bedrock when there is no address; None: not known.

    A name alone does not tell who charges: the same name elsewhere may cost more, less or nothing.
    """
    host = BEDROCK if base_url is None else urllib.parse.urlsplit(base_url).hostname or ""
    for provider in providers():
        if host in provider.hosts:
            name = GEOGRAPHY.sub("", model) if host == BEDROCK else model.removeprefix("models/")
            return next(_matching(name, provider.prices), None)
    return None


def _matching(name: str, prices: Mapping[str, Price]) -> Iterator[Price]:
    """Prices whose model's name is this one, or this one without its release; longest name first."""
    for known in sorted(prices, key=len, reverse=True):
        if name.startswith(known) and RELEASE.fullmatch(name[len(known) :]):
            yield prices[known]


def known_models(host: str) -> tuple[str, ...]:
    """The names that the table has for a host."""
    return tuple(name for provider in providers() if host in provider.hosts for name in provider.prices)


@cache
def providers() -> tuple[Provider, ...]:
    """The table that comes with neuron-port."""
    with TABLE.open("rb") as file:
        sections = tomllib.load(file)
    return tuple(
        Provider(
            hosts=tuple(section["hosts"]),
            prices={
                name: Price(**{"source": section["source"], **entry})
                for name, entry in section["prices"].items()
            },
        )
        for section in sections.values()
    )


def price_from_config(name: str, entry: Any, file: Path) -> Price:
    """A price that the user wrote: `[prices."NAME"]` with input_usd and output_usd per million tokens."""
    if not isinstance(entry, dict):
        raise UsageError(f'[prices."{name}"] in {file} is `{entry}`, must be a table.', hint=_example(name))
    for field, value in entry.items():
        if field not in (*FIELDS, "source"):
            near = difflib.get_close_matches(field, FIELDS, n=1)
            raise UsageError(
                f'Unknown field in [prices."{name}"] of {file}: `{field}`',
                hint=f"Did you mean `{near[0]}`?" if near else _example(name),
            )
        if field in FIELDS and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
            raise UsageError(
                f'{field} in [prices."{name}"] of {file} is `{value}`, must be US$ per million tokens.',
                hint=_example(name),
            )
    for field in ("input_usd", "output_usd"):
        if field not in entry:
            raise UsageError(f'[prices."{name}"] in {file} lacks {field}.', hint=_example(name))
    return Price(**{"source": str(file), **entry})


def _example(name: str) -> str:
    return f'For example: [prices."{name}"] with input_usd = 1.25 and output_usd = 10.0 (US$ per million tokens).'
