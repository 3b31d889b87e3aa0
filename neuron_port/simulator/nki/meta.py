"""`nki.meta`: what describes kernels to tools; here its `tensor` module."""

from __future__ import annotations

from neuron_port.simulator.nki import tensor

__all__ = ["tensor"]
