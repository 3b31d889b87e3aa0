"""Steps 2 and 3: whether graphs are compiled with NKI kernels, and what nki makes of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .environment import Bundle, Compiler, version_pair
from .files import ENVIRONMENT, FINISH, Stop, read_json, write_json
from .hlo import Placeholder
from .processes import TIMED_OUT, Processes, fresh
from .tables import MINIMUM_NKI


@dataclass(frozen=True)
class NkiProbe:
    """What the NKI interpreter says: a version and the compiler driver, or why not."""

    version: str = ""
    problem: str = ""

    @property
    def usable(self) -> bool:
        return not self.problem


_PROBE_NKI = """
import importlib.metadata as m, json
try: version = m.version("nki")
except m.PackageNotFoundError: version = ""
try:
    import nki, nki.compiler.driver, nki.compiler.frontend, nki.compiler.ncc_driver
    version = version or getattr(nki, "__version__", "")
    print(json.dumps({"version": version, "problem": ""}))
except ImportError as error: print(json.dumps({"version": version, "problem": f"{error}"}))
"""


def probe_nki(python: str) -> NkiProbe:
    """Import `nki` in its own interpreter and ask what it is."""
    try:
        answer = subprocess.run(
            [python, "-c", _PROBE_NKI], capture_output=True, text=True, timeout=300, check=False
        )
        found = json.loads(answer.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return NkiProbe(problem=f"nki cannot be imported by {python} ({type(error).__name__})")
    if found["problem"]:
        reserved = (
            " (a placeholder, not the SDK's)"
            if version_pair(found["version"]) == (0, 0) and found["version"]
            else ""
        )
        return NkiProbe(found["version"], f"no usable nki{reserved}: {found['problem']}")
    if version_pair(found["version"]) < MINIMUM_NKI:
        return NkiProbe(
            found["version"], f"nki {found['version']} is older than {MINIMUM_NKI[0]}.{MINIMUM_NKI[1]}"
        )
    return NkiProbe(found["version"])


def choose_kernels(requested: str, target: str, probe: Callable[[], NkiProbe]) -> tuple[bool, str]:
    """Whether graphs are compiled with NKI kernels, and why; "on" stops when it cannot be had."""
    if requested == "off":
        return False, "switched off by --kernels off"
    if requested == "auto" and target != "trn2":
        return False, (
            f"AWS's documents disagree on NKI for {target}; the compiler-lowered twin is used "
            "(--kernels on tries the kernels)"
        )
    found = probe()
    if found.usable:
        return True, f"nki {found.version}" + ("" if target == "trn2" else f", experimental on {target}")
    if requested == "on":
        raise Stop(
            ENVIRONMENT,
            f"--kernels on: {found.problem}.",
            "Name the interpreter that has the SDK's nki by --nki-python, or use --kernels auto.",
        )
    return False, found.problem


class Workshop:
    """Compiles the kernels of one graph with nki, each call form once.

    A call form is a kernel with the shapes, dtypes and attributes of a call: equal forms share a compiled
    kernel.
    """

    def __init__(
        self, bundle: Bundle, *, target: str, compiler: Compiler, nki_python: str, work: Path,
        processes: Processes,
    ) -> None:  # fmt: skip
        self.kernels = {kernel["name"]: kernel for kernel in bundle.manifest["kernels"]}
        self.folder, self.target, self.compiler = bundle.folder, target, compiler
        self.nki_python, self.work, self.processes = nki_python, work / "kernels", processes
        self.configs: dict[int, bytes] = {}  # instruction id -> backend_config
        self.refusals: dict[str, str] = {}  # kernel -> why it cannot be had
        self._made: dict[str, bytes | str] = {}  # call form -> backend_config, or the sentence of its failure

    def compile(self, calls: Sequence[Placeholder]) -> None:
        """Fill `configs` for the calls; a kernel of which one form fails is refused, with the reason."""
        for call in calls:
            if call.kernel in self.refusals:
                continue
            made = self._form(call)
            if isinstance(made, bytes):
                self.configs[call.instruction.id] = made
            else:
                self.refusals[call.kernel] = made

    def _form(self, call: Placeholder) -> bytes | str:
        kernel = self.kernels.get(call.kernel)
        if kernel is None:
            return "the bundle has no such kernel"
        if call.kernel_sha256 != kernel["sha256"]:
            return "the graph wants another version of it than the bundle has"
        request = call.request()
        form = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
        if form not in self._made:
            request |= {
                "source": str(self.folder / kernel["path"] / "kernel.py"),
                "entry_point": kernel["entry_point"],
                "target": self.target,
                "neuronx_cc": self.compiler.path,
                "artifacts": str(self.work / f"{call.kernel}-{form}"),
            }
            self._made[form] = self._compile_elsewhere(request)
        return self._made[form]

    def _compile_elsewhere(self, request: Mapping[str, Any]) -> bytes | str:
        """Run `finish.py _kernel` in the NKI environment: the call's backend_config, or why there is none."""
        folder = fresh(Path(request["artifacts"]))
        asked, answered, log = folder / "request.json", folder / "result.json", folder / "log.txt"
        write_json(asked, request)
        # The chip is named by a variable because NKI >= 0.3 refuses a platform argument on `nki.jit`.
        environment = os.environ | {"NEURON_PLATFORM_TARGET_OVERRIDE": request["target"]}
        command = [self.nki_python, str(FINISH), "_kernel", str(asked), str(answered)]
        status = self.processes.run(command, cwd=folder, environment=environment, log=log)
        if status == TIMED_OUT:
            return "nki did not compile it within --timeout-minutes"
        if status != 0 or not answered.is_file():
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return f"nki did not compile it: {(said or [f'it ended with {status}'])[-1][:300]}"
        config = str(read_json(answered)["backend_config"])
        try:
            json.loads(base64.b64decode(config, validate=True))
        except (binascii.Error, ValueError) as error:
            return f"nki's answer for it is not base64 JSON: {error}"
        return config.encode()


def compile_kernel_with_nki(request: Mapping[str, Any]) -> str:
    """Compile one kernel with the SDK's `nki` and return its base64 backend_config.

    NOT VERIFIED: no machine with the Neuron SDK has run this function. The calls are those that public users
    of NKI >= 0.4 make (ZML's kernel compiler, vLLM Neuron): `compile_to_bir` with arrays for tensors and
    plain values for attributes. Kernels are launched without a grid, hence lnc=1. Whatever goes wrong here
    costs this kernel, never the graph: its calls are then compiled from its reference.
    """
    import importlib.util
    import inspect

    import numpy
    from nki.compiler.driver import compile_to_bir
    from nki.compiler.frontend import ParserFrontend
    from nki.compiler.ncc_driver import CompilationMode, CompileOptions

    def array(described: Mapping[str, Any]) -> Any:
        dtype = described["dtype"]
        if dtype in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
            import ml_dtypes

            dtype = getattr(ml_dtypes, dtype)
        return numpy.zeros(described["shape"], dtype=dtype)

    specification = importlib.util.spec_from_file_location("neuron_port_kernel", request["source"])
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    kernel = getattr(module, request["entry_point"])
    kernel = getattr(kernel, "func", kernel)  # `nki.jit` wraps the function that the front end parses

    # An optional tensor that the graph does not give stands among the attributes as None.
    names = [name for name in inspect.signature(kernel).parameters if name not in request["attributes"]]
    inputs = {name: array(described) for name, described in zip(names, request["inputs"], strict=True)}
    options = CompileOptions(
        target=request["target"],
        lnc=1,
        artifacts_dir=request["artifacts"],
        output_path=str(Path(request["artifacts"]) / "unused.neff"),
        neuronx_cc_path=request["neuronx_cc"],
        neuronx_cc_args=(),
        mode=CompilationMode.INTEGRATION,
    ).disable_backend_optimizations()
    compiled = compile_to_bir(
        kernel,
        frontend=ParserFrontend(),
        inputs={**inputs, **request["attributes"]},
        compile_opts=options,
        output_names=[f"output{index}" for index in range(len(request["outputs"]))],
    )
    config = compiled.build_config()
    if getattr(config, "operand_output_aliases", None):
        raise RuntimeError("the kernel writes its operands in place; the graph does not say so")
    encoded = config.backend_config_b64
    return encoded.decode() if isinstance(encoded, bytes) else str(encoded)
