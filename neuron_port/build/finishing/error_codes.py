"""What neuronx-cc's documented error codes mean for a bundle, and what to do about each.

The list is that of the SDK (aws-neuron-sdk, compiler/error-codes, 2.32: 60 codes), in our words; the cure is
one that the owner of a bundle has: flags of finish.py, options of a new conversion, or a report to us.
"""

from __future__ import annotations

LIST = "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/compiler/error-codes/index.html"

_SMALLER = (
    "convert again with a smaller bucket, batch or cache, or split the model (convert --tensor-parallel)"
)
_TWIN = "finish with --kernels off: without its kernels the graph is plain HLO"
_NEWER = "try the newest neuronx-cc; if it stays, report the graph with its lint.json"
_OURS = "this is a fault of the exported graph: report it with the log and the graph's lint.json"
_OTHER_DTYPE = "convert again with --dtype bfloat16 or float32"
_OTHER_WEIGHTS = "convert again with another weight format: int8, bfloat16 or float32"
_DOWNCAST = (
    "use neuronx-cc 2.27 or newer, for which the plan passes --implicit-integer-downcast=all; "
    "if it stays, report it"
)
# Our graphs hold no QuantizeMX and no ScaledMatmul: only a kernel or a hand-made graph can bring them in.
_MX = "nothing that neuron-port writes makes this call; report the graph, or remove what was added by hand"

_INSTRUCTIONS = "the graph becomes more instructions than a NEFF may have"
_MEMORY = "the graph needs more device memory (HBM) than there is: activations, scratch space and spills"
_UNKNOWN_CALL = "the graph makes a custom call that this compiler does not know"

ERROR_CODES = {
    "EARG001": ("the target has no such size of logical cores (--lnc)", "name the chip that you have by --target"),
    "EBIR023": ("a fused MLP has an intermediate size above 4096", f"convert with more tensor parallelism, or {_TWIN}"),
    "EBVF030": (_INSTRUCTIONS, _SMALLER),
    "EHCA005": (_UNKNOWN_CALL, _TWIN),
    "EMOD025": ("a dimension of the graph is not fixed", _OURS),
    "EOOM001": (_MEMORY, _SMALLER),
    "EOOM002": (_MEMORY, _SMALLER),
    "ESFH002": ("an unsigned 64-bit constant does not fit 32 bits", _OURS),
    "ESPP004": ("the compiler generates no code for a data type of the graph", _OTHER_DTYPE),
    "ESPP047": ("an 8-bit float type is not supported", _OTHER_WEIGHTS),
    "EUOC002": ("an operation is not supported by this compiler", _NEWER),
    "EVRF001": ("an operation is not supported by this compiler", _NEWER),
    "EVRF004": ("complex numbers are not supported", _OURS),
    "EVRF005": ("an 8-bit float type of the FNUZ kind is not supported", _OTHER_WEIGHTS),
    "EVRF006": ("random bits are asked for by a named algorithm; only the default one exists", _OURS),
    "EVRF007": (_INSTRUCTIONS, _SMALLER),
    "EVRF009": (_MEMORY, _SMALLER),
    "EVRF010": ("a convolution dilates both its input and its kernel", _OURS),
    "EVRF011": ("a convolution has strides and a dilated input", _OURS),
    "EVRF013": ("top-k of integers is not supported", _OURS),
    "EVRF015": (_UNKNOWN_CALL, _TWIN),
    "EVRF016": ("a scatter combines integers or booleans", _OURS),
    "EVRF017": ("a window reduction has a dilated base", _OURS),
    "EVRF018": ("a window reduction has a dilated window", _OURS),
    "EVRF019": ("a window reduction takes another number of operands than two", _OURS),
    "EVRF022": ("a right shift of numbers that are not 32 bits wide", _OURS),
    "EVRF031": ("a scatter counts further than its operand is long", _OURS),
    "EVRF035": ("a matrix product of integers is not supported on this chip", _DOWNCAST),
    "EVRF036": ("QuantizeMX: its configuration is not JSON", _MX),
    "EVRF037": ("QuantizeMX: it takes exactly one operand", _MX),
    "EVRF038": ("QuantizeMX: its axis is neither the last nor the one before", _MX),
    "EVRF039": ("QuantizeMX: the block size is not 32", _MX),
    "EVRF040": ("QuantizeMX: the scale method is not EMAX", _MX),
    "EVRF041": ("QuantizeMX: its input is neither bfloat16 nor float16", _MX),
    "EVRF042": ("QuantizeMX: the type or shape of its result is wrong", _MX),
    "EVRF043": ("ScaledMatmul: it takes exactly four operands", _MX),
    "EVRF044": ("ScaledMatmul: its left operand is not packed as QuantizeMX packs", _MX),
    "EVRF045": ("ScaledMatmul: its result is neither float32 nor bfloat16", _MX),
    "EVRF046": ("ScaledMatmul: its left operand has fewer than two axes", _MX),
    "EVRF047": ("ScaledMatmul: its right operand has fewer than two axes", _MX),
    "EVRF048": ("ScaledMatmul: the batch axes of its operands differ", _MX),
    "EVRF049": ("ScaledMatmul: its configuration cannot be read", _MX),
    "EVRF050": ("ScaledMatmul: the contracted axes of its operands differ", _MX),
    "EVRF051": ("float8_e4m3fn is not supported on Trainium1 and Trainium2", _OTHER_WEIGHTS),
    "EVRF052": ("float8_e4m3 is not supported on chips after Trainium3", _OTHER_WEIGHTS),
    "EVRF053": ("ScaledMatmul: an axis is both contracted and a batch axis", _MX),
    "EVRF054": ("ScaledMatmul: a batch axis does not exist", _MX),
    "EVRF055": ("ScaledMatmul: a contracted axis does not exist", _MX),
    "EVRF056": (
        "a gather counts further than its table is long",
        "convert again with buckets within the model's max_position_embeddings; if they are, report the graph",
    ),
    "EVRF057": ("QuantizeMX: its result is not a pair", _MX),
    "EVRF058": ("QuantizeMX: the quantized axis is no multiple of four", _MX),
    "EVRF059": (
        "the file of a compiled kernel is gone",
        f"run again with the same --work, which nothing may clear meanwhile; if it stays, {_TWIN}",
    ),
    "EVRF060": ("a scatter of 32-bit integers is not exact on this chip", _DOWNCAST),
    "EVRF061": ("an all-reduce of integers is not exact on this chip", _DOWNCAST),
    "EVRF062": ("an operation on 64-bit integers", _DOWNCAST),
    "EVRF063": ("a reduce-scatter of integers is not exact on this chip", _DOWNCAST),
    "EVRF064": ("an instruction of the graph breaks XLA's rules for shapes", _OURS),
    "EVRF065": (
        "the kernels were compiled by an nki that does not fit this neuronx-cc",
        f"install the nki that goes with the compiler (finish.py names it), or {_TWIN}",
    ),
    "EXSP001": (_MEMORY, _SMALLER),
    "EXTP004": (_INSTRUCTIONS, _SMALLER),
}  # fmt: skip
# Refusals that are about kernels. INLA is the compiler's instruction lowering, where a kernel's code arrives.
KERNEL_CODES = ("EBIR023", "EHCA005", "EVRF015", "EVRF059", "EVRF065", "INLA001")
# Not in that list, but named with their cause in the compiler's release notes (release-notes/components/compiler.rst).
NOTED_CODES = {
    "ESMP002": ("an index is beyond the size of the axis that it points into", _OURS),
    "IBIR229": ("a fault of the compiler: a tensor did not fit its on-chip memory (SBUF)", _NEWER),
    "INLA001": ("a fault of the compiler: it could not lower an access pattern for this chip", f"{_NEWER}; or {_TWIN}"),
}  # fmt: skip
