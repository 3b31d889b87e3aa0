"""Step 5b, in the nrtpy environment: runs every NEFF on its golden inputs, compares with the reference.

Written against nrtpy's public documentation (aws-neuron-sdk, neuron-runtime/nrtpy, SDK 2.32). NOT VERIFIED:
no machine with a Neuron device has run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import MANIFEST, read_json, sha256_of, write_json
from .weights import Weights, narrow, widen


def device_main(request_path: Path, result_path: Path) -> int:
    """Entry point in the nrtpy environment: run every graph on its golden inputs and compare."""
    request = read_json(request_path)
    folder = Path(request["bundle"])
    manifest, plan = read_json(folder / MANIFEST), read_json(folder / "build" / "plan.json")
    wanted = {name for graph in request["graphs"] for name in _weight_names(folder, graph)}
    weights, missing = _open_weights(folder, manifest, request["weights"], wanted)
    if missing:
        write_json(result_path, {"problem": missing})
        return 0
    report: dict[str, Any] = {"graphs": {}, "benchmarks": {}}
    uploaded: dict[tuple[str, str, str], Any] = {}
    for graph in request["graphs"]:
        neff = folder / "neff" / request["target"] / f"{graph}.neff"
        interface = read_json(folder / "graphs" / graph / "io.json")
        golden_path = folder / "parity" / "golden" / f"{graph}.safetensors"
        if not golden_path.is_file():
            report["graphs"][graph] = {
                "pass": False,
                "problem": "the bundle has no golden values for this graph",
            }
            continue
        checked = run_graph(neff, interface, Weights([golden_path]), weights, plan["device_limits"], uploaded)
        report["benchmarks"][graph] = checked.pop("benchmark")
        report["graphs"][graph] = checked
    write_json(result_path, report)
    return 0


def _weight_names(folder: Path, graph: str) -> list[str]:
    inputs = read_json(folder / "graphs" / graph / "io.json")["inputs"]
    return [entry["source"] for entry in inputs if entry["role"] == "weight"]


def _open_weights(
    folder: Path, manifest: Mapping[str, Any], elsewhere: str | None, wanted: set[str]
) -> tuple[Weights, str]:
    """The weights of the bundle or of --weights, their hashes checked; or why they are not there."""
    mine = sorted((folder / "weights").glob("*.safetensors")) if (folder / "weights").is_dir() else []
    outside = sorted(Path(elsewhere).glob("*.safetensors")) if elsewhere else []
    expected = {entry["name"]: entry["sha256"] for entry in manifest["weights"]["files"]}
    for path in [*mine, *outside]:
        if not path.is_file():
            return Weights(
                []
            ), f"weights/{path.name} is a link to nothing; --weights DIR names the checkpoint's folder"
        if path.name in expected and sha256_of(path) != expected[path.name]:
            return Weights([]), f"{path.name} is not the file that was converted: its SHA-256 differs"
    weights = Weights([*mine, *outside])
    absent = sorted(name for name in wanted if name.removeprefix("derived:") not in weights)
    if absent:
        why = (
            "they were random and are not stored"
            if manifest["weights"]["random"]
            else "--weights DIR names their folder"
        )
        return weights, f"{len(absent)} weights are not in the bundle ({absent[0]}, ...): {why}"
    return weights, ""


def laid_out(array: Any, transform: str) -> Any:
    """The weight in the kernel's layout, as the interface's `transform` says (docs/bundle.md)."""
    if transform == "none":
        return array
    if transform == "transpose":
        return array.swapaxes(-1, -2)
    return array.transpose([int(axis) for axis in transform.removeprefix("permute:").split(",")])


def run_graph(
    neff: Path, interface: Mapping[str, Any], golden: Weights, weights: Weights,
    limits: Mapping[str, Mapping[str, float]], uploaded: dict[tuple[str, str, str], Any],
) -> dict[str, Any]:  # fmt: skip
    """Load one NEFF through nrtpy, run it on the golden inputs and compare every golden output.

    State (key/value caches) that the golden file does not give starts as zeros. An aliased output is the same
    device tensor as its input, which is how the runtime shares the buffer.
    """
    import numpy
    from nrtpy import NrtpyModel, NrtpyTensor

    model = NrtpyModel.load_from_neff(str(neff))
    tensors: dict[str, Any] = {}
    for entry in interface["inputs"]:
        name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
        if entry["role"] == "weight":
            key = (entry["source"], entry["transform"], dtype)
            if key not in uploaded:
                array = weights.cast(entry["source"].removeprefix("derived:"), dtype)
                array = laid_out(array, entry["transform"])
                uploaded[key] = NrtpyTensor.from_numpy(
                    numpy.ascontiguousarray(array).reshape(shape), name=name
                )
            tensors[name] = uploaded[key]
        else:
            array = (
                golden.cast(name, dtype)
                if name in golden
                else narrow(numpy.zeros(shape, numpy.float32), dtype)
            )
            tensors[name] = NrtpyTensor.from_numpy(array.reshape(shape), name=name)
    outputs = {}
    for entry in interface["outputs"]:
        blank = narrow(numpy.zeros(entry["shape"], numpy.float32), entry["dtype"])
        shared = tensors.get(entry["alias_of"]) if entry["alias_of"] else None
        outputs[entry["name"]] = (
            shared if shared is not None else NrtpyTensor.from_numpy(blank, name=entry["name"])
        )
    inputs = {_neff_name(name, model.input_tensors_info): tensor for name, tensor in tensors.items()}
    results = {_neff_name(name, model.output_tensors_info): tensor for name, tensor in outputs.items()}
    model(inputs=inputs, outputs=results)
    compared = {}
    for entry in interface["outputs"]:
        if entry["name"] in golden:
            got = outputs[entry["name"]].numpy()
            raw = numpy.frombuffer(numpy.ascontiguousarray(got).tobytes(), dtype=blank_dtype(entry["dtype"]))
            reference = golden.float32(entry["name"])
            compared[entry["name"]] = compare(widen(raw, entry["dtype"]).reshape(entry["shape"]), reference,
                                              limits[entry["dtype"]])  # fmt: skip
    passed = bool(compared) and all(result["pass"] for result in compared.values())
    return {"pass": passed, "outputs": compared, "benchmark": benchmark(model, inputs, results)}


def blank_dtype(dtype: str) -> str:
    """NumPy's name for the raw bits of `dtype`."""
    return "uint16" if dtype == "bfloat16" else dtype


def _neff_name(name: str, known: Mapping[str, Any]) -> str:
    """The NEFF's name of a tensor: the compiler marks inputs that it writes in place by a suffix."""
    for candidate in (name, f"{name}.must_alias_input"):
        if candidate in known:
            return candidate
    raise KeyError(f"the NEFF has no tensor `{name}`; it has {', '.join(sorted(known))[:400]}")


def compare(got: Any, reference: Any, limits: Mapping[str, float]) -> dict[str, Any]:
    """Relative error (2-norm), cosine and largest difference against the float32 reference."""
    import numpy

    got, reference = got.astype(numpy.float64).ravel(), reference.astype(numpy.float64).ravel()
    if not numpy.isfinite(got).all():
        return {
            "pass": False,
            "problem": "the device returned NaN or infinity",
            "metrics": {},
            "limits": dict(limits),
        }
    norm = float(numpy.linalg.norm(reference))
    scale = norm if norm > 0 else 1.0
    both = norm * float(numpy.linalg.norm(got))
    metrics = {
        "relative_error": float(numpy.linalg.norm(got - reference)) / scale,
        "cosine_distance": 1.0 - float(got @ reference) / both if both > 0 else float(norm > 0),
        "max_abs": float(numpy.abs(got - reference).max(initial=0.0)),
    }
    passed = all(metrics[name] <= limit for name, limit in limits.items())
    return {"pass": passed, "metrics": metrics, "limits": dict(limits)}


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
