"""The build plan: for every chip and graph the exact neuronx-cc command, the environment and the versions.

Flags and their reasons: aws-neuron-sdk, compiler/neuronx-cc/api-reference-guide. `{hlo}`, `{neff}` and
`{log}` stand for paths, so that a command line can be compared and hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuron_port.build.finishing.tables import COMPILER_RELEASES, MINIMUM_COMPILER, MINIMUM_NKI, TARGETS
from neuron_port.types import GraphSpec

LOGICAL_CORE_SIZE = {"inf2": None, "trn1": None, "trn2": 2}
INSTANCE_TYPES = {
    "inf2": ("inf2.xlarge", "inf2.8xlarge", "inf2.24xlarge", "inf2.48xlarge"),
    "trn1": ("trn1.2xlarge", "trn1.32xlarge"),
    "trn2": ("trn2.3xlarge", "trn2.48xlarge"),
}
# Farther from float32 than this on a device is a fault. Chosen, not measured: no device has run yet.
DEVICE_LIMITS = {
    "float32": {"relative_error": 1e-3, "cosine_distance": 1e-4},
    "float16": {"relative_error": 2e-2, "cosine_distance": 1e-3},
    "bfloat16": {"relative_error": 1e-1, "cosine_distance": 5e-3},
    "int32": {"relative_error": 0.0},
    "bool": {"relative_error": 0.0},
}


def compile_argv(target: str, phase: str) -> list[str]:
    """The neuronx-cc command of one graph. Prefill graphs are large: -O1; decode graphs: -O2, as in NxDI."""
    argv = ["neuronx-cc", "compile", "{hlo}", "--framework", "XLA", "--target", target]
    argv += ["--model-type", "transformer", "--auto-cast", "none", "-O1" if phase == "prefill" else "-O2"]
    if LOGICAL_CORE_SIZE[target] is not None:
        argv += ["--lnc", str(LOGICAL_CORE_SIZE[target])]
    if target in ("inf2", "trn1"):
        # The compiler's own transposes turn infinities into NaN on NeuronCore-v2 unless told otherwise.
        argv += ["--enable-saturate-infinity"]
    return [*argv, "--output", "{neff}", "--logfile", "{log}"]


def version_flags(target: str) -> list[dict[str, Any]]:
    """Flags that older compilers do not know: they pin how 64-bit integers are treated."""
    arguments = ["--implicit-integer-downcast=all"]
    if target == "trn2":  # the only chip on which the flag is available
        arguments.insert(0, "--native-int64=disabled")
    return [{"since": "2.27", "arguments": arguments}]


def build_plan(specs: Sequence[GraphSpec], *, target: str, dtype: str) -> dict[str, Any]:
    """plan.json: what finish.py does for `target`, and what it would do for the other chips."""
    return {
        "schema_version": 1,
        "target": target,
        "dtype": dtype,
        "input": {
            "graph.hlo.pb": "kernels are placeholder custom calls, each with its reference: finish.py puts in "
            "what nki made of the kernel, or the reference",
            "graph.ref.hlo.pb": "the compiler-lowered twin: the reference everywhere, no nki needed",
        },
        "requires": {
            "neuronx-cc": f">={MINIMUM_COMPILER[0]}.{MINIMUM_COMPILER[1]}",
            "nki": f">={MINIMUM_NKI[0]}.{MINIMUM_NKI[1]} (only for kernels)",
            "releases": {
                f"{pair[0]}.{pair[1]}": {"sdk": sdk, "nki": nki}
                for pair, (sdk, nki) in COMPILER_RELEASES.items()
            },
        },
        "environment": {
            "NEURON_CC_FLAGS": "removed: its flags would change the result unseen",
            "NEURON_PLATFORM_TARGET_OVERRIDE": "the target: compilation needs no device",
        },
        "targets": {
            chip: {
                "graphs": {spec.id: {"argv": compile_argv(chip, spec.phase)} for spec in specs},
                "version_flags": version_flags(chip),
                "kernels": _kernels_rule(chip),
                "changes": _changes(target, chip),
            }
            for chip in (target, *(other for other in TARGETS if other != target))
        },
        "device_limits": DEVICE_LIMITS,
    }


def _kernels_rule(chip: str) -> str:
    if chip == "trn2":
        return (
            f"on when nki {MINIMUM_NKI[0]}.{MINIMUM_NKI[1]} or newer is importable, otherwise the twin; "
            "a kernel that fails is left to the compiler, the others stay"
        )
    return "off: AWS's documents disagree on NKI for this chip; --kernels on tries them"


def _changes(target: str, chip: str) -> list[str]:
    """In words, how compiling for `chip` differs from compiling for `target`."""
    if chip == target:
        return []
    mine, other = set(compile_argv(target, "decode")), set(compile_argv(chip, "decode"))
    changes = [f"--target {chip}"]
    changes += [f"without {flag}" for flag in sorted(mine - other) if flag.startswith("--")]
    changes += [f"with {flag}" for flag in sorted(other - mine) if flag.startswith("--")]
    shared = {"inf2", "trn1"}
    if {target, chip} <= shared:
        return [*changes, "the same core (NeuronCore-v2): NEFFs of one run on the other"]
    return [*changes, "another core: NEFFs cannot be exchanged"]
