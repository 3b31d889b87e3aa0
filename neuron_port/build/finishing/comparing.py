"""What a device returned against the float32 reference: relative error, cosine, largest difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .weights import Weights, part_of, widen


def compare_outputs(
    interface: Mapping[str, Any], golden: Weights, limits: Mapping[str, Mapping[str, float]],
    read: Callable[[Mapping[str, Any]], Any], rank: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """By name: how far every output that the golden file has is from it. `read` gives an output's raw values."""
    shards = {entry["name"]: entry.get("shard") for entry in interface["inputs"]}
    compared = {}
    for entry in interface["outputs"]:
        if entry["name"] in golden:
            reference = part_of(golden.float32(entry["name"]), shards.get(entry["alias_of"]), rank)
            values = widen(read(entry), entry["dtype"])
            compared[entry["name"]] = compare(values, reference, limits[entry["dtype"]])
    return compared


def compare(got: Any, reference: Any, limits: Mapping[str, float]) -> dict[str, Any]:
    """Relative error (2-norm), cosine and largest difference against the float32 reference."""
    import numpy

    got, reference = got.astype(numpy.float64).ravel(), reference.astype(numpy.float64).ravel()
    if got.size != reference.size:
        problem = f"the device returned {got.size} values, the reference has {reference.size}"
        return {"pass": False, "problem": problem, "metrics": {}, "limits": dict(limits)}
    if not numpy.isfinite(got).all():
        problem = "the device returned NaN or infinity"
        return {"pass": False, "problem": problem, "metrics": {}, "limits": dict(limits)}
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
