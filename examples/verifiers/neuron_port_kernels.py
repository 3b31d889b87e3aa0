"""The taskset for `verifiers`: put this folder on PYTHONPATH, then `neuron_port_kernels` is a taskset's id."""

from neuron_port.environments.verifiers_adapter import NeuronPortTaskset

__all__ = ["NeuronPortTaskset"]
