"""The table of instance types: arithmetic, evidence, neighbours and prices."""

from __future__ import annotations

import datetime

import pytest

from neuron_port.errors import UsageError
from neuron_port.instances import (
    all_instances,
    compile_hosts,
    gpu_instances,
    instance,
    instances_of,
    table_date,
    with_price,
    with_prices,
)


def test_figures_of_chips_are_multiplied() -> None:
    """inf2.24xlarge is six Inferentia2: 12 cores, 192 GiB, 1,140 TFLOPS, 4,920 GiB/s, as its own page says."""
    found = instance("inf2.24xlarge")
    assert (found.cores, found.device_memory_gib, found.tflops_bf16, found.bandwidth_gib_s) == (
        12,
        192,
        1140,
        4920,
    )


def test_a_bandwidth_in_gb_becomes_gib() -> None:
    """An L4's 300 GB/s are 279.4 GiB/s."""
    assert instance("g6.xlarge").bandwidth_gib_s == pytest.approx(300e9 / 2**30)


def test_one_size_may_have_links_of_its_own() -> None:
    """trn1n.32xlarge has twice the links of trn1.32xlarge, and everything else alike; one chip has no links."""
    trn1, trn1n = instance("trn1.32xlarge"), instance("trn1n.32xlarge")
    assert trn1.link_gib_s is not None
    assert trn1n.link_gib_s == pytest.approx(2 * trn1.link_gib_s)
    assert trn1n.tflops_bf16 == trn1.tflops_bf16
    assert instance("trn1.2xlarge").link_gib_s is None


def test_instances_of_a_target_come_cheapest_first() -> None:
    """What is compiled for inf2 runs on four types, the cheapest is the first."""
    found = instances_of("inf2")
    prices = [entry.usd_per_hour for entry in found]
    assert found[0].name == "inf2.xlarge"
    assert len(found) == 4
    assert prices == sorted(price for price in prices if price is not None)


def test_an_unknown_name_gets_its_neighbours() -> None:
    """A misspelt type is refused in one sentence that names the nearest ones."""
    with pytest.raises(UsageError, match=r"Unknown instance type: `inf2\.xlrge`") as caught:
        instance("inf2.xlrge")
    assert "inf2.xlarge" in str(caught.value.hint)


def test_a_given_price_replaces_the_tables() -> None:
    """A price of the reader's own says so, changes the order, and leaves the table as it was."""
    dear = with_prices(instances_of("inf2"), {"inf2.xlarge": 99.0})
    assert dear[-1].name == "inf2.xlarge"
    assert dear[-1].usd_per_hour == 99.0
    assert "given by you" in dear[-1].price_evidence.source
    assert instance("inf2.xlarge").usd_per_hour == 0.7582


@pytest.mark.parametrize("usd", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(usd: float) -> None:
    """A negative or infinite price is refused by name."""
    with pytest.raises(UsageError, match=r"Price of inf2\.xlarge is `"):
        with_price(instance("inf2.xlarge"), usd)


@pytest.mark.parametrize("entry", all_instances(), ids=lambda entry: entry.name)
def test_every_figure_has_its_source(entry: object) -> None:
    """Hardware and price have a source, a date and a confidence; power has them or is not given."""
    found = instance(entry.name)  # type: ignore[attr-defined]
    groups = [found.hardware_evidence, found.price_evidence]
    groups += [found.power_evidence] if found.watts is not None else []
    for evidence in groups:
        assert evidence.source
        assert evidence.confidence in ("high", "medium", "low")
        assert datetime.date.fromisoformat(evidence.date) <= datetime.date.fromisoformat("2026-12-31")
    if found.watts is None:
        assert found.power_evidence.confidence == "unknown"


def test_kinds_do_not_mix() -> None:
    """GPUs have no target, hosts to compile on have no accelerator, and every type is of one kind."""
    assert all(entry.kind == "gpu" and entry.target is None for entry in gpu_instances())
    assert all(entry.kind == "cpu" and entry.device_memory_gib == 0 for entry in compile_hosts())
    neuron = [entry for entry in all_instances() if entry.kind == "neuron"]
    assert len(neuron) + len(gpu_instances()) + len(compile_hosts()) == len(all_instances())
    assert datetime.date.fromisoformat(table_date())
