"""The deployable bundle: portable HLO with its proof, finished on an instance by `finish.py`."""

from neuron_port.build.artifact import Artifact, GraphFiles
from neuron_port.build.bundle import write_bundle
from neuron_port.build.manifest import load_manifest, verify_files

__all__ = ["Artifact", "GraphFiles", "write_bundle", "load_manifest", "verify_files"]
