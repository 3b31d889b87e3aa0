"""`python -m neuron_port.cli` is the same as `neuron-port`."""

from neuron_port.cli import main

main()
