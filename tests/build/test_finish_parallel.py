"""Tensor-parallel bundles in finishing: one NEFF for all ranks, each rank on a core with weights of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from parallel_bundle import make_parallel_arguments
from stand_in_instance import Instance

from neuron_port.build import write_bundle
from neuron_port.build.finishing.weights import part_of

GRAPH = "decode_b1_t6"


@pytest.fixture
def ranks(tmp_path: Path) -> Instance:
    """An instance with a bundle of two ranks."""
    bundle = write_bundle(tmp_path / "bundle", **make_parallel_arguments(tmp_path)).folder
    return Instance(tmp_path / "instance", bundle)


def test_two_ranks_run_one_neff(ranks: Instance) -> None:
    """Each rank has its part of weights and states on its core, and every rank's outputs are compared."""
    done = ranks.finish(*ranks.device)
    assert done.returncode == 0, done.stderr
    assert ranks.manifest["state"] == "device-verified"
    assert len(ranks.calls) == 1
    (report,) = (ranks.bundle / "device").glob("*/parity.json")
    outputs = json.loads(report.read_text())["graphs"][GRAPH]["outputs"]
    assert sorted(outputs) == ["cache_out", "cache_out (rank 1)", "y", "y (rank 1)"]
    assert all(output["metrics"]["relative_error"] < 1e-6 for output in outputs.values())


def test_a_rank_without_weights_is_named(ranks: Instance) -> None:
    """A missing file of one rank keeps the device from being asked, and says which."""
    path = ranks.bundle / "weights" / "tp1_sharded_checkpoint.safetensors"
    path.unlink()
    done = ranks.finish(*ranks.device)
    assert done.returncode == 0
    assert "weights/tp1_sharded_checkpoint.safetensors is not there: rank 1 has no weights" in done.stderr
    assert ranks.manifest["state"] == "compiled"


def test_a_device_that_hangs_meets_the_limit(ranks: Instance) -> None:
    """Ranks that wait for each other for ever are ended, and the state stays."""
    ranks.environment["FAKE_NRTPY_ERROR"] = "hang"
    assert ranks.finish().returncode == 0
    done = ranks.finish(*ranks.device, "--timeout-minutes", "0.25")
    assert done.returncode == 5
    assert "did not end within" in done.stderr
    assert ranks.manifest["state"] == "compiled"


def test_one_core_cannot_trace_for_ranks(ranks: Instance) -> None:
    """Engine trace refuses a tensor-parallel bundle and names the engine that takes it."""
    done = ranks.finish(*ranks.torch, target="inf2")
    assert done.returncode == 2
    assert "the bundle is for 2 tensor-parallel ranks" in done.stderr


@pytest.mark.parametrize(
    ("shard", "rank", "expected"),
    [
        (None, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"ranks": 2, "axis": 0, "blocks": 1, "units": 8}, 1, [4, 5, 6, 7]),
        ({"ranks": 2, "axis": 0, "blocks": 2, "units": 8}, 1, [2, 3, 6, 7]),
        ({"ranks": 4, "axis": 0, "blocks": 1, "units": 2}, 1, [0, 1, 2, 3]),
        ({"ranks": 4, "axis": 0, "blocks": 1, "units": 2}, 2, [4, 5, 6, 7]),
        ({"ranks": 4, "axis": None, "blocks": 1, "units": 1}, 2, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_a_rank_s_part_is_that_of_the_conversion(
    shard: dict[str, int] | None, rank: int, expected: list[int]
) -> None:
    """Finishing cuts states as `Shard` does, though it has none of our code."""
    from neuron_port.types import Shard

    whole = np.arange(8)
    assert part_of(whole, shard, rank).tolist() == expected
    if shard and shard["axis"] is not None:
        ranges = Shard(**shard).ranges(8, rank)
        assert [number for start, stop in ranges for number in range(start, stop)] == expected
