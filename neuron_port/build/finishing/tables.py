"""Facts that finishing stands on: chips and versions that go together."""

from __future__ import annotations

TARGETS = ("inf2", "trn1", "trn2")
# NeuronCore-v2 is the core of inf2 and trn1, so their NEFFs are interchangeable; trn2 has NeuronCore-v3.
FAMILIES = {
    "inf2": ("inf2", "trn1", "trn1n"),
    "trn1": ("inf2", "trn1", "trn1n"),
    "trn2": ("trn2", "trn2n", "trn2u"),
}
MINIMUM_COMPILER = (2, 23)
MINIMUM_NKI = (0, 4)  # the first with the `nki.compiler.driver` that step 3 calls
# neuronx-cc release -> (Neuron SDK, its nki); aws-neuron-sdk, src/helperscripts/n2-manifest.json
COMPILER_RELEASES = {
    (2, 23): ("2.28", "0.2"), (2, 24): ("2.29", "0.3"), (2, 25): ("2.30", "0.4"), (2, 26): ("2.31", "0.5"),
    (2, 27): ("2.32", "0.6"),
}  # fmt: skip
INSTALL = (
    "pip install -r build/requirements-sdk2.32.txt, or activate a virtual environment of the Neuron DLAMI"
)
# What the public Python index has under the SDK's names (August 2026), besides versions 0.0: no module is in them.
PLACEHOLDERS = {
    "neuronx-cc": ((1, 0),), "nki": (), "libneuronxla": ((1, 0),), "torch-neuronx": ((1, 0),), "nrtpy": (),
}  # fmt: skip
