"""Engine `trace`, in the environment that has torch_neuronx: traces a graph to TorchScript, runs it on a device.

Written against torch_neuronx's public documentation (aws-neuron-sdk, api-torch-neuronx-trace.rst, SDK 2.31).
NOT VERIFIED: no machine with torch_neuronx has run it. States are parameters of the traced module that
`input_output_aliases` maps to outputs, as in AWS's own example of it (t5-inference-tutorial.ipynb); weights
are parameters too, kept out of the NEFF by `inline_weights_to_neff=False`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .comparing import compare_outputs
from .files import MANIFEST, read_json, write_json
from .torch_graph import TorchGraph
from .weights import Weights, laid_out, open_weights, weight_sources

STATE = "state_"  # names of the parameters that hold states: state_0, state_1 ..
WARMUP, TIMED = 5, 20


class TracedGraph(torch.nn.Module):
    """A bundle's graph as the callable that torch_neuronx.trace takes: inputs in, outputs and new states out.

    Args:
        states: values by name; the graph's other inputs that are no weights are the module's arguments.
    """

    def __init__(
        self, hlo: bytes, interface: Mapping[str, Any], weights: Weights, states: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__()
        self.graph = TorchGraph(hlo)
        self.places: list[tuple[str, Any]] = []  # of each input: a parameter's name or an argument's number
        self.aliased: list[tuple[str, int]] = []  # parameter's name, index among what forward returns
        named: dict[str, str] = {}
        arguments = 0
        for number, entry in enumerate(interface["inputs"]):
            if entry["role"] == "input":
                self.places.append(("argument", arguments))
                arguments += 1
                continue
            if entry["role"] == "weight":
                name, value = f"weight_{number}", weight_tensor(weights, entry)
            else:
                name, value = f"{STATE}{len(named)}", states[entry["name"]]
                named[entry["name"]] = name
            self.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
            self.places.append(("parameter", name))
        outputs = interface["outputs"]
        # What callers read comes first, in order; new states follow.
        self.order = sorted(range(len(outputs)), key=lambda index: outputs[index]["alias_of"] is not None)
        for position, index in enumerate(self.order):
            if outputs[index]["alias_of"] is not None:
                self.aliased.append((named[outputs[index]["alias_of"]], position))

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = [arguments[at] if kind == "argument" else getattr(self, at) for kind, at in self.places]
        results = self.graph(*inputs)
        return tuple(results[index] for index in self.order)

    def aliases(self) -> dict[torch.Tensor, int]:
        """State tensor -> index of the output that is written over it."""
        return {getattr(self, name): index for name, index in self.aliased}


def to_torch(array: Any, dtype: str) -> torch.Tensor:
    """A raw NumPy array (16 bits of a bfloat16, 8 of a float8) as a tensor of `dtype`."""
    import numpy

    plain = numpy.ascontiguousarray(array)
    if plain.dtype == numpy.uint16:
        plain = plain.view(numpy.int16)
    tensor = torch.from_numpy(plain.copy())
    return tensor if str(tensor.dtype) == f"torch.{dtype}" else tensor.view(getattr(torch, dtype))


def weight_tensor(weights: Weights, entry: Mapping[str, Any]) -> torch.Tensor:
    array = weights.cast(entry["source"].removeprefix("derived:"), entry["dtype"])
    return to_torch(laid_out(array, entry["transform"]).reshape(entry["shape"]), entry["dtype"])


def value_of(entry: Mapping[str, Any], golden: Weights) -> torch.Tensor:
    """An input or state from the golden file, or zeros."""
    if entry["name"] in golden:
        return to_torch(golden.cast(entry["name"], entry["dtype"]).reshape(entry["shape"]), entry["dtype"])
    return torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"]))


def trace_main(request_path: Path, result_path: Path) -> int:
    """Entry point: trace one graph and save it; {"problem": ..} when its weights are not there."""
    import torch_neuronx

    request = read_json(request_path)
    folder, graph = Path(request["bundle"]), request["graph"]
    interface = read_json(folder / "graphs" / graph / "io.json")
    weights, problem = open_weights(
        folder, read_json(folder / MANIFEST), request["weights"], weight_sources(folder, [graph])
    )
    if problem:
        write_json(result_path, {"problem": problem})
        return 0
    zeros = {entry["name"]: torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"]))
             for entry in interface["inputs"] if entry["role"] != "weight"}  # fmt: skip
    hlo = (folder / "graphs" / graph / "graph.ref.hlo.pb").read_bytes()
    module = TracedGraph(hlo, interface, weights, zeros).eval()
    examples = tuple(zeros[entry["name"]] for entry in interface["inputs"] if entry["role"] == "input")
    with torch.no_grad():
        traced = torch_neuronx.trace(
            module, examples, input_output_aliases=module.aliases(), compiler_workdir=request["workdir"],
            compiler_args=request["compiler_args"], inline_weights_to_neff=False,
            cpu_backend=request["cpu_backend"],
        )  # fmt: skip
    torch.jit.save(traced, request["output"])
    write_json(result_path, {"problem": ""})
    return 0


def check_main(request_path: Path, result_path: Path) -> int:
    """Entry point on a device: run every traced graph on its golden inputs, compare and time it."""
    request = read_json(request_path)
    folder = Path(request["bundle"])
    limits = read_json(folder / "build" / "plan.json")["device_limits"]
    report: dict[str, Any] = {"graphs": {}, "benchmarks": {}}
    for graph in request["graphs"]:
        golden_path = folder / "parity" / "golden" / f"{graph}.safetensors"
        if not golden_path.is_file():
            problem = "the bundle has no golden values for this graph"
            report["graphs"][graph] = {"pass": False, "problem": problem}
            continue
        interface = read_json(folder / "graphs" / graph / "io.json")
        traced = load(Path(request["folder"]) / f"{graph}.pt")
        checked = check(traced, interface, Weights([golden_path]), limits)
        if "benchmark" in checked:
            report["benchmarks"][graph] = checked.pop("benchmark")
        report["graphs"][graph] = checked
    write_json(result_path, report)
    return 0


def load(path: Path) -> Any:
    """The traced module on core 0: weights outside of the NEFF travel with every call unless they are moved there."""
    import torch_neuronx

    traced = torch.jit.load(str(path))
    torch_neuronx.move_trace_to_device(traced, 0)
    return traced


def check(
    traced: Any, interface: Mapping[str, Any], golden: Weights, limits: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Run once from the golden states and compare what callers read; then time it."""
    states = [value_of(entry, golden) for entry in interface["inputs"] if entry["role"] == "state"]
    problem = set_states(traced, states)
    if problem:
        return {"pass": False, "problem": problem, "outputs": {}}
    arguments = [value_of(entry, golden) for entry in interface["inputs"] if entry["role"] == "input"]
    with torch.no_grad():
        returned = traced(*arguments)
        results = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        names = [entry["name"] for entry in interface["outputs"] if entry["alias_of"] is None]
        found = dict(zip(names, results))
        plain = {**interface, "outputs": [e for e in interface["outputs"] if e["name"] in found]}
        compared = compare_outputs(plain, golden, limits, lambda entry: raw(found[entry["name"]]))
        timed = benchmark(traced, arguments)
    passed = bool(compared) and all(result["pass"] for result in compared.values())
    return {"pass": passed, "outputs": compared, "benchmark": timed}


def raw(tensor: torch.Tensor) -> Any:
    """A result as a raw NumPy array."""
    import numpy

    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(numpy.uint16)
    return tensor.contiguous().numpy()


def set_states(traced: Any, values: Sequence[torch.Tensor]) -> str:
    """Give the traced module's states their values; or say why that cannot be done.

    The documents show states among `parameters()` of the traced module. Whether they keep their names there is
    not documented: they are found by name, otherwise they must be all the parameters that there are.
    """
    named = list(traced.named_parameters())
    found = [tensor for name, tensor in named if name.rpartition(".")[2].startswith(STATE)]
    if len(found) != len(values):
        found = [tensor for _, tensor in named]
    shapes = [tuple(tensor.shape) for tensor in found]
    if shapes != [tuple(value.shape) for value in values]:
        if not any(bool(value.any()) for value in values):
            return ""  # they start as zeros, as they were traced
        return f"the traced module has {len(named)} parameters, among which its {len(values)} states are not found"
    with torch.no_grad():
        for tensor, value in zip(found, values):
            tensor.copy_(value)
    return ""


def benchmark(traced: Any, arguments: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Times of one graph around the call, transfers included."""
    for _ in range(WARMUP):
        traced(*arguments)
    times_ms = []
    for _ in range(TIMED):
        started = time.perf_counter()
        traced(*arguments)
        times_ms.append((time.perf_counter() - started) * 1e3)
    mean = sum(times_ms) / len(times_ms)
    spread = (sum((one - mean) ** 2 for one in times_ms) / len(times_ms)) ** 0.5
    return {"mode": "host", "mean_ms": mean, "min_ms": min(times_ms), "max_ms": max(times_ms),
            "std_dev_ms": spread, "iterations": TIMED, "note": ""}  # fmt: skip
