"""Step 5b, in the nrtpy environment: runs every NEFF on its golden inputs, compares with the reference.

Written against nrtpy's public documentation (aws-neuron-sdk, neuron-runtime/nrtpy, SDK 2.32). NOT VERIFIED:
no machine with a Neuron device has run it. Tensor-parallel ranks are models of one process, as the documents
describe it (visible cores, `core_id`, `cc_enabled`, `rank_id`, `world_size`), each in a thread of its own,
because a rank's call returns only when all ranks have called; whether nrtpy lets threads run at once is not
documented, and the caller's time limit ends a run in which it does not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .comparing import compare_outputs
from .files import MANIFEST, read_json, write_json
from .weights import Weights, laid_out, narrow, open_weights, part_of, raw_dtype, weight_sources

ALIAS_SUFFIX = ".must_alias_input"  # what the compiler adds to the name of an input that it writes in place


def device_main(request_path: Path, result_path: Path) -> int:
    """Entry point in the nrtpy environment: run every graph on its golden inputs and compare."""
    request = read_json(request_path)
    folder = Path(request["bundle"])
    manifest, plan = read_json(folder / MANIFEST), read_json(folder / "build" / "plan.json")
    ranks = manifest["target"]["tp"]
    wanted = weight_sources(folder, request["graphs"])
    opened = [open_weights(folder, manifest, request["weights"], wanted, rank) for rank in range(ranks)]
    if missing := next((problem for _, problem in opened if problem), ""):
        write_json(result_path, {"problem": missing})
        return 0
    cores = [Core(weights, rank, ranks) for rank, (weights, _) in enumerate(opened)]
    if ranks > 1:
        import nrtpy

        nrtpy.configure(visible_cores=range(ranks))
    report: dict[str, Any] = {"graphs": {}, "benchmarks": {}}
    for graph in request["graphs"]:
        golden_path = folder / "parity" / "golden" / f"{graph}.safetensors"
        if not golden_path.is_file():
            problem = "the bundle has no golden values for this graph"
            report["graphs"][graph] = {"pass": False, "problem": problem}
            continue
        neff = folder / "neff" / request["target"] / f"{graph}.neff"
        interface = read_json(folder / "graphs" / graph / "io.json")
        checked = run_graph(cores, neff, interface, Weights([golden_path]), plan["device_limits"])
        report["benchmarks"][graph] = checked.pop("benchmark")
        report["graphs"][graph] = checked
    write_json(result_path, report)
    return 0


class Core:
    """One rank: its core, its weights, and those of them that are on the device already."""

    def __init__(self, weights: Weights, rank: int, ranks: int) -> None:
        self.weights, self.rank, self.ranks = weights, rank, ranks
        self._uploaded: dict[tuple[str, str, str], Any] = {}

    def load(self, neff: Path) -> Any:
        from nrtpy import NrtpyModel

        if self.ranks == 1:
            return NrtpyModel.load_from_neff(str(neff))
        return NrtpyModel.load_from_neff(
            str(neff), core_id=self.rank, cc_enabled=True, rank_id=self.rank, world_size=self.ranks
        )

    def place(self, array: Any, name: str) -> Any:
        """The array as a tensor on this rank's core."""
        import numpy
        from nrtpy import NrtpyTensor

        return NrtpyTensor.from_numpy(numpy.ascontiguousarray(array), name=name, core_id=self.rank)

    def weight(self, entry: Mapping[str, Any]) -> Any:
        """A weight as the interface's entry wants it; weights that graphs share are uploaded once."""
        import numpy

        key = (entry["source"], entry["transform"], entry["dtype"])
        if key not in self._uploaded:
            array = self.weights.cast(entry["source"].removeprefix("derived:"), entry["dtype"])
            array = numpy.ascontiguousarray(laid_out(array, entry["transform"]))
            self._uploaded[key] = self.place(array.reshape(entry["shape"]), entry["name"])
        return self._uploaded[key]

    def given(self, entry: Mapping[str, Any], golden: Weights) -> Any:
        """An input or state from the golden file, or zeros; of a state the part that this rank holds."""
        import numpy

        if entry["name"] in golden:
            array = part_of(golden.cast(entry["name"], entry["dtype"]), entry.get("shard"), self.rank)
        else:
            array = narrow(numpy.zeros(entry["shape"], numpy.float32), entry["dtype"])
        return self.place(array.reshape(entry["shape"]), entry["name"])


def run_graph(
    cores: list[Core], neff: Path, interface: Mapping[str, Any], golden: Weights,
    limits: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:  # fmt: skip
    """Load one NEFF on every core, run it on the golden inputs and compare every golden output of every rank."""
    results = on_every(cores, lambda core: run_on_core(core, neff, interface, golden, limits))
    checked = results[0]
    for rank, other in enumerate(results[1:], start=1):
        checked["outputs"] |= {f"{name} (rank {rank})": value for name, value in other["outputs"].items()}
        checked["pass"] = checked["pass"] and other["pass"]
    return checked


def on_every(cores: list[Core], run: Callable[[Core], dict[str, Any]]) -> list[dict[str, Any]]:
    """What `run` returns for each core, all at the same time. Raises what the first one raised."""
    if len(cores) == 1:
        return [run(cores[0])]
    results: dict[int, dict[str, Any]] = {}
    failures: list[BaseException] = []
    ended = threading.Event()

    def one(core: Core) -> None:
        try:
            results[core.rank] = run(core)
        except BaseException as error:
            failures.append(error)
        if failures or len(results) == len(cores):
            ended.set()

    for core in cores:
        # Daemons: when one rank fails, the others may wait for it forever inside the runtime.
        threading.Thread(target=one, args=(core,), daemon=True).start()
    ended.wait()
    if failures:
        raise failures[0]
    return [results[core.rank] for core in cores]


def run_on_core(
    core: Core, neff: Path, interface: Mapping[str, Any], golden: Weights,
    limits: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:  # fmt: skip
    """Run one NEFF on one core and compare.

    State (key/value caches) that the golden file does not give starts as zeros. An aliased output is the same
    device tensor as its input, which is how the runtime shares the buffer.
    """
    import numpy

    model = core.load(neff)
    tensors, skipped = {}, []
    for entry in interface["inputs"]:
        name = _neff_name(entry["name"], model.input_tensors_info)
        if name is None and entry["role"] == "weight":
            skipped.append(entry["name"])  # nothing reads it, so the compiler has left it out
        else:
            tensor = core.weight(entry) if entry["role"] == "weight" else core.given(entry, golden)
            tensors[entry["name"]] = (_known(name, entry["name"], model.input_tensors_info), tensor)
    outputs = {}
    for entry in interface["outputs"]:
        name = _known(_neff_name(entry["name"], model.output_tensors_info), entry["name"],
                      model.output_tensors_info)  # fmt: skip
        if entry["alias_of"] is not None:
            outputs[entry["name"]] = (name, tensors[entry["alias_of"]][1])
        else:
            blank = narrow(numpy.zeros(entry["shape"], numpy.float32), entry["dtype"])
            outputs[entry["name"]] = (name, core.place(blank, entry["name"]))
    given, results = dict(tensors.values()), dict(outputs.values())
    model(inputs=given, outputs=results)

    def read(entry: Mapping[str, Any]) -> Any:
        """An output's raw values: the runtime may call their dtype void."""
        got = numpy.ascontiguousarray(outputs[entry["name"]][1].numpy())
        return numpy.frombuffer(got.tobytes(), dtype=raw_dtype(entry["dtype"])).reshape(entry["shape"])

    compared = compare_outputs(interface, golden, limits, read, core.rank)
    passed = bool(compared) and all(result["pass"] for result in compared.values())
    return {
        "pass": passed, "outputs": compared, "not_read": skipped, "benchmark": benchmark(model, given, results)
    }  # fmt: skip


def _neff_name(name: str, known: Mapping[str, Any]) -> str | None:
    return next((candidate for candidate in (name, name + ALIAS_SUFFIX) if candidate in known), None)


def _known(name: str | None, wanted: str, known: Mapping[str, Any]) -> str:
    if name is None:
        raise KeyError(f"the NEFF has no tensor `{wanted}`; it has {', '.join(sorted(known))[:400]}")
    return name


def benchmark(model: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Times of one graph: on the core when the runtime can trace it, otherwise around the call."""
    note = ""
    for mode in ("device", "host"):
        try:
            found = model.benchmark(
                inputs=inputs, outputs=outputs, warmup_iter=5, benchmark_iter=20, mode=mode
            )
        except RuntimeError as error:
            note = f"{mode} timing failed: {error}"
            continue
        return {"mode": mode, "mean_ms": found.mean_ms, "min_ms": found.min_ms, "max_ms": found.max_ms,
                "std_dev_ms": found.std_dev_ms, "iterations": found.iterations, "note": note}  # fmt: skip
    return {"mode": None, "note": note}
