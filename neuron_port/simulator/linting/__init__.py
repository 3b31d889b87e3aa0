"""The lint: what the NKI compiler's subset of Python refuses in a kernel file, found without running it."""

from neuron_port.simulator.linting.findings import Finding, Severity
from neuron_port.simulator.linting.linter import lint_file, lint_source

__all__ = ["Finding", "Severity", "lint_file", "lint_source"]
