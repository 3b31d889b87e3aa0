"""Facts that finishing stands on: chips, versions that go together, and the compiler's error codes."""

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
PLACEHOLDERS = ("neuronx-cc", "nki", "libneuronxla", "torch-neuronx", "nrtpy")

# Codes of neuronx-cc (aws-neuron-sdk, compiler/error-codes): what it means here, and what to do about it.
_TOO_BIG = "use a smaller bucket or batch, or split the model over more cores (tensor parallelism)"
_TWIN = "finish with --kernels off: the compiler-lowered twin of the graph needs no kernel"
_NEWER = "try the newest neuronx-cc; otherwise report the graph with its lint.json"
_OURS = "this is a fault of the exported graph: report it with the log and the graph's lint.json"
ERROR_CODES = {
    "EARG001": ("this chip has no such logical-core configuration", "name the chip you have by --target"),
    "EBIR023": ("a fused MLP has an intermediate size above 4096", "use tensor parallelism or --kernels off"),
    "EBVF030": ("the graph becomes too many instructions", _TOO_BIG),
    "EVRF007": ("the graph becomes too many instructions", _TOO_BIG),
    "EXTP002": ("the graph becomes too many instructions", _TOO_BIG),
    "EXTP004": ("the graph becomes too many instructions", _TOO_BIG),
    "EOOM001": ("activations do not fit the device's memory (HBM)", _TOO_BIG),
    "EOOM002": ("activations do not fit the device's memory (HBM)", _TOO_BIG),
    "EVRF009": ("activations do not fit the device's memory (HBM)", _TOO_BIG),
    "EXSP001": ("the graph needs more device memory (HBM) than there is", _TOO_BIG),
    "EMOD025": ("the graph has a dynamic shape", _OURS),
    "ESFH002": ("a 64-bit unsigned constant does not fit 32 bits", _OURS),
    "ESPP004": ("a data type is not supported", "convert again with --dtype bfloat16 or float32"),
    "ESPP047": ("an 8-bit float type is not supported", "convert again with --dtype bfloat16"),
    "EUOC002": ("an operation is not supported by this compiler", _NEWER),
    "EVRF001": ("an operation is not supported by this compiler", _NEWER),
    "EVRF004": ("complex numbers are not supported", _OURS),
    "EVRF005": ("an 8-bit float type (fnuz) is not supported", "convert again with --dtype bfloat16"),
    "EVRF013": ("top-k of integers is not supported", _OURS),
    "EVRF016": ("scatter with a reduction is not supported for integers", _OURS),
    "EVRF022": ("a shift of numbers that are not 32 bits wide", _OURS),
    "EVRF031": ("a scatter reaches out of bounds", _OURS),
    "EVRF056": ("a gather reaches out of bounds", _OURS),
    "EVRF035": ("a matrix product of integers is not permitted", _OURS),
    "EVRF051": ("float8 e4m3fn is not supported on this chip", "convert again with --dtype bfloat16"),
    "EVRF052": ("float8 e4m3 is not supported on this chip", "convert again with --dtype bfloat16"),
    "EVRF062": ("64-bit integers are not permitted", _OURS),
    "EVRF064": ("the HLO verifier refused the graph", _OURS),
    "EHCA005": ("the compiler does not know a custom call of the graph", _TWIN),
    "EVRF015": ("the compiler does not know a custom call of the graph", _TWIN),
    "EVRF059": ("a compiled kernel's file is missing", "run again; if it stays, " + _TWIN),
    "EVRF065": ("the nki of the kernels does not fit this neuronx-cc", "install the pair, or " + _TWIN),
    "INLA001": ("the compiler could not lower a kernel for this chip", _TWIN),
}  # fmt: skip
KERNEL_CODES = ("EHCA005", "EVRF015", "EVRF059", "EVRF065", "INLA001", "EBIR023")
