"""Which tiers there are, and why not."""

from __future__ import annotations

import importlib.util

import pytest

from neuron_port.grading.grader import Grader
from neuron_port.grading.tiers import OfficialTier, available_tiers
from tests.grading.subjects import SOFTMAX, SOFTMAX_KERNEL, edited


def test_every_tier_is_there_or_says_why(tmp_path):
    """Lint and simulator are always there; the others give a reason in one sentence."""
    tiers = {tier.name: tier for tier in available_tiers(devices=tmp_path)}
    assert list(tiers) == ["lint", "simulator", "official", "device"]
    assert tiers["lint"].available
    assert tiers["simulator"].available
    assert not tiers["device"].available
    assert "is not there" in tiers["device"].reason
    assert all(tier.available or tier.reason for tier in tiers.values())


def test_a_device_is_seen_and_what_is_missing_said(tmp_path):
    """With a device file the reason is another: nobody has written that tier."""
    (tmp_path / "neuron0").touch()
    device = available_tiers(devices=tmp_path)[-1]
    assert not device.available
    assert "not written yet" in device.reason


@pytest.mark.skipif(importlib.util.find_spec("nki") is not None, reason="AWS's nki is installed")
def test_without_nki_the_official_tier_gives_no_outputs():
    """Asked nevertheless, every call has failed; nothing is passed on as right."""
    verdict = Grader(SOFTMAX, hidden_seed=0, official=OfficialTier()).grade(SOFTMAX_KERNEL, through="public")
    assert not verdict.passed
    assert verdict.error_class == "missing outputs"
    assert verdict.tier == "official"


@pytest.mark.nki
def test_the_official_tier_agrees():
    """AWS's own simulator gives the same answers (has never been run: the package was not available)."""
    pytest.importorskip("nki", reason="AWS's nki is not installed")
    grader = Grader(SOFTMAX, hidden_seed=0, official=OfficialTier())
    assert grader.grade(SOFTMAX_KERNEL, through="public").passed
    assert not grader.grade(edited(SOFTMAX_KERNEL, ("negate=True", "negate=False")), through="public").passed
