"""Models that several tests look at, built once."""

from __future__ import annotations

import pytest

from neuron_port.preflight.sizing import Sizes
from tests.preflight.models import config_of, make_sizes


@pytest.fixture(scope="session")
def llama_70b() -> Sizes:
    """Llama-3.1-70B, one sequence of 4,096 tokens, bfloat16."""
    return make_sizes(config_of("llama-3.1-70b"), "llama-3.1-70b")


@pytest.fixture(scope="session")
def mixtral() -> Sizes:
    """Mixtral-8x7B, one sequence of 4,096 tokens, bfloat16."""
    return make_sizes(config_of("mixtral-8x7b"), "mixtral-8x7b")
