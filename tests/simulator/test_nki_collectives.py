"""nki.collectives over simulated ranks, against NumPy; on one core and on two for each rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.simulator import (
    ConstraintError,
    KernelRun,
    OutOfBoundsError,
    SynchronizationError,
    UnsupportedError,
    UnwrittenReadError,
    run_kernel,
    run_ranks,
)
from neuron_port.simulator.nki import collectives as ncc
from neuron_port.simulator.nki import isa as nisa
from neuron_port.simulator.nki import language as nl

RANKS, ROWS, COLUMNS = 4, 8, 16
GROUP = ncc.ReplicaGroup([list(range(RANKS))])
CORES = pytest.mark.parametrize("lnc", [None, 1, 2])


@pytest.fixture
def xs(rng: np.random.Generator) -> list[np.ndarray]:
    """[8, 16] float32 for each of four ranks."""
    return [rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) for _ in range(RANKS)]


def kernel_of(
    collective: Callable[[Any, Any, Any], None], shape: tuple[int, int] = (ROWS, COLUMNS), buffer: Any = None
) -> Callable[..., Any]:
    """A kernel: x to src, collective(src, dst, group), dst of `shape` to the output."""

    def kernel(x, group):
        src = nl.ndarray(x.shape, x.dtype, buffer or nl.shared_hbm, name="src")
        dst = nl.ndarray(shape, x.dtype, buffer or nl.shared_hbm, name="dst")
        nisa.dma_copy(src, x)
        collective(src, dst, group)
        out = nl.ndarray(shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, dst)
        return out

    return kernel


def on_ranks(kernel: Any, xs: list[np.ndarray], group: Any = GROUP, **options: Any) -> list[KernelRun]:
    """One run for each rank."""
    return run_ranks(kernel, [(x, group) for x in xs], **options)


def outputs(runs: list[KernelRun]) -> list[np.ndarray]:
    """The output of each rank."""
    return [run.outputs[0] for run in runs]


@CORES
@pytest.mark.parametrize("op", [nl.add, nl.minimum, nl.maximum], ids=str)
def test_all_reduce(xs: list[np.ndarray], op: Any, lnc: int | None) -> None:
    """Every rank gets the sum, minimum or maximum over all ranks."""
    runs = on_ranks(kernel_of(lambda s, d, g: ncc.all_reduce([s], [d], g, op)), xs, lnc=lnc)
    reference = {"add": np.sum, "minimum": np.min, "maximum": np.max}[op.name](xs, axis=0)
    for out in outputs(runs):
        np.testing.assert_allclose(out, reference, rtol=1e-6, atol=1e-6)
    assert [run.rank for run in runs] == list(range(RANKS))
    assert runs[0].warnings == ()


@CORES
def test_all_reduce_in_place(xs: list[np.ndarray], lnc: int | None) -> None:
    """With two cores that both issue it, a collective on shared data still happens once."""

    def kernel(x, group):
        data = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(data, x)
        ncc.all_reduce([data], [data], group, nl.add)
        return data

    for out in outputs(on_ranks(kernel, xs, lnc=lnc)):
        np.testing.assert_allclose(out, np.sum(xs, axis=0), rtol=1e-6, atol=1e-6)


def test_all_reduce_rounds_once(rng: np.random.Generator) -> None:
    """bfloat16 is reduced in float32 and rounded at the end; integers are added exactly and saturate."""
    halves = [rng.standard_normal((ROWS, COLUMNS)).astype(ml_dtypes.bfloat16) for _ in range(RANKS)]
    kernel = kernel_of(lambda s, d, g: ncc.all_reduce([s], [d], g, nl.add))
    exact = np.sum([half.astype(np.float32) for half in halves], axis=0, dtype=np.float32)
    np.testing.assert_array_equal(outputs(on_ranks(kernel, halves))[0], exact.astype(ml_dtypes.bfloat16))
    large = [np.full((ROWS, COLUMNS), 2**30 + 1, np.int32) for _ in range(RANKS)]
    np.testing.assert_array_equal(outputs(on_ranks(kernel, large))[0], np.full_like(large[0], 2**31 - 1))


@CORES
def test_groups_work_apart(xs: list[np.ndarray], lnc: int | None) -> None:
    """Ranks of different groups do not see each other, and the order within a group counts."""
    group = ncc.ReplicaGroup([[2, 0], [1, 3]])
    kernel = kernel_of(lambda s, d, g: ncc.all_gather([s], [d], g, 0), (2 * ROWS, COLUMNS))
    first, second = np.concatenate([xs[2], xs[0]]), np.concatenate([xs[1], xs[3]])
    for out, expected in zip(outputs(on_ranks(kernel, xs, group, lnc=lnc)), (first, second) * 2, strict=True):
        np.testing.assert_array_equal(out, expected)


@CORES
@pytest.mark.parametrize(
    ("dim", "buffer"),
    [(0, nl.shared_hbm), (0, nl.sbuf), (1, nl.sbuf)],
    ids=["hbm", "sbuf-rows", "sbuf-columns"],
)
def test_all_gather(xs: list[np.ndarray], dim: int, buffer: Any, lnc: int | None) -> None:
    """Every rank gets all sources along dimension 0, or in SBUF along the free dimension."""
    shape = (RANKS * ROWS, COLUMNS) if dim == 0 else (ROWS, RANKS * COLUMNS)
    kernel = kernel_of(lambda s, d, g: ncc.all_gather([s], [d], g, collective_dim=dim), shape, buffer)
    for out in outputs(on_ranks(kernel, xs, lnc=lnc)):
        np.testing.assert_array_equal(out, np.concatenate(xs, axis=dim))


@CORES
def test_reduce_scatter(xs: list[np.ndarray], lnc: int | None) -> None:
    """Rank i gets block i of the sum."""
    kernel = kernel_of(lambda s, d, g: ncc.reduce_scatter([s], [d], g, 0, nl.add), (ROWS // RANKS, COLUMNS))
    blocks = np.split(np.sum(xs, axis=0), RANKS)
    for out, block in zip(outputs(on_ranks(kernel, xs, lnc=lnc)), blocks, strict=True):
        np.testing.assert_allclose(out, block, rtol=1e-6, atol=1e-6)


@CORES
def test_all_to_all(xs: list[np.ndarray], lnc: int | None) -> None:
    """Rank i gets block i of every rank."""
    kernel = kernel_of(lambda s, d, g: ncc.all_to_all([s], [d], g, 0))
    for rank, out in enumerate(outputs(on_ranks(kernel, xs, lnc=lnc))):
        np.testing.assert_array_equal(out, np.concatenate([np.split(x, RANKS)[rank] for x in xs]))


def test_collective_permute_moves_pairs(xs: list[np.ndarray]) -> None:
    """Targets receive from their sources; a rank that is no target keeps what it had."""

    def permute(src, dst, _):
        nisa.dma_copy(dst, nl.zeros(dst.shape, dst.dtype, nl.sbuf))
        ncc.collective_permute([src], [dst], [(0, 1), (1, 2)])

    out = outputs(on_ranks(kernel_of(permute), xs))
    for rank, expected in enumerate((0 * xs[0], xs[0], xs[1], 0 * xs[3])):
        np.testing.assert_array_equal(out[rank], expected)


@CORES
def test_ring_passes_and_names_its_data(xs: list[np.ndarray], lnc: int | None) -> None:
    """After i steps around the ring, the data are those of the rank that the ring says is processed."""

    def kernel(x, group):
        out = nl.ndarray((RANKS, *x.shape), x.dtype, nl.shared_hbm)
        held, received = (nl.ndarray(x.shape, x.dtype, nl.sbuf) for _ in range(2))
        nisa.dma_copy(held, x)
        for step in range(RANKS):
            owner = ncc.collective_permute_implicit_current_processing_rank_id(step, group)
            nisa.dma_copy(out.select(0, owner), held)
            if step < RANKS - 1:
                ncc.collective_permute_implicit([[held]], [[received]], group)
                held, received = received, held
        return out

    for out in outputs(on_ranks(kernel, xs, lnc=lnc)):
        np.testing.assert_array_equal(out, xs)


def test_ring_reduces_on_two_channels(xs: list[np.ndarray]) -> None:
    """Each channel sends op of its two sources to the successor."""

    def kernel(x, group):
        tile = nl.ndarray(x.shape, x.dtype, nl.sbuf)
        received = nl.ndarray(x.shape, x.dtype, nl.sbuf)
        nisa.dma_copy(tile, x)
        left, right = tile[:, 0:8], tile[:, 8:16]
        dsts = [[received[:, 0:8]], [received[:, 8:16]]]
        ncc.collective_permute_implicit_reduce(
            [[left], [left]], [[left], [right]], dsts, group, nl.add, channel_ids=[0, 1]
        )
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, received)
        return out

    for rank, out in enumerate(outputs(on_ranks(kernel, xs))):
        left, right = np.split(xs[rank - 1], 2, axis=1)
        np.testing.assert_array_equal(out, np.concatenate([left + left, left + right], axis=1))


def test_rank_id_addresses_data(xs: list[np.ndarray]) -> None:
    """rank_id is a register, to be used as an offset; a rank alone is rank 0."""

    def kernel(x, _):
        out = nl.ndarray((1, COLUMNS), x.dtype, nl.shared_hbm)
        nisa.dma_copy(out, x.ap([[COLUMNS, 1], [1, COLUMNS]], scalar_offset=ncc.rank_id(), indirect_dim=0))
        return out

    for rank, out in enumerate(outputs(on_ranks(kernel, xs))):
        np.testing.assert_array_equal(out[0], xs[rank][rank])
    np.testing.assert_array_equal(run_kernel(kernel, xs[1], GROUP).outputs[0][0], xs[1][0])


def counted_kernel(collective, slots):
    """A kernel that copies source and metadata to HBM of its own, and returns dst [4, slots] and the metadata."""

    def kernel(x, metadata, group):
        src = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        table = nl.ndarray(metadata.shape, nl.uint32, nl.shared_hbm)
        nisa.dma_copy(src, x)
        nisa.dma_copy(table, metadata)
        dst = nl.zeros((RANKS, slots), x.dtype, nl.shared_hbm)
        collective([src], [dst], group, table)
        return dst, table

    return kernel


def test_all_to_all_v_sends_counted_chunks() -> None:
    """Each rank sends its own number of elements to each rank, which lands in the sender's slot."""
    xs = [np.arange(32, dtype=np.float32) + 100 * rank for rank in range(RANKS)]
    counts = [[(sender + target) % 3 for target in range(RANKS)] for sender in range(RANKS)]
    tables = [np.array([row, [0, 8, 16, 24], [0] * 4], np.uint32) for row in counts]
    inputs = [(x, table, GROUP) for x, table in zip(xs, tables, strict=True)]
    for target, run in enumerate(run_ranks(counted_kernel(ncc.all_to_all_v, 3), inputs)):
        out, table = run.outputs
        for sender in range(RANKS):
            count = counts[sender][target]
            np.testing.assert_array_equal(out[sender, :count], xs[sender][8 * target : 8 * target + count])
            assert not out[sender, count:].any()
            assert table[2, sender] == count
    with pytest.raises(OutOfBoundsError, match=r"sends 2 elements to rank .* has room for 1"):
        run_ranks(counted_kernel(ncc.all_to_all_v, 1), inputs)


def test_all_gather_v_sends_one_chunk_to_all() -> None:
    """Each rank's chunk lands in its slot on every rank; NKI has it for four ranks of two cores."""
    xs = [np.arange(8, dtype=np.float32) + 100 * rank for rank in range(RANKS)]
    inputs = []
    for rank, x in enumerate(xs):
        table = np.zeros((3, RANKS), np.uint32)
        table[:2, 0] = rank, 2
        inputs.append((x, table, GROUP))
    kernel = counted_kernel(ncc.all_gather_v, 4)
    for run in run_ranks(kernel, inputs, lnc=2):
        for sender in range(RANKS):
            np.testing.assert_array_equal(run.outputs[0][sender, :sender], xs[sender][2 : 2 + sender])
        np.testing.assert_array_equal(run.outputs[1][2], range(RANKS))
    with pytest.raises(ConstraintError, match="groups of four ranks of two cores"):
        run_ranks(kernel, inputs)


def test_one_rank_is_told_how_to_run_several(xs: list[np.ndarray]) -> None:
    """A collective of four ranks under run_kernel says that run_ranks simulates them; a group of one works."""
    kernel = kernel_of(lambda s, d, g: ncc.all_reduce([s], [d], g, nl.add))
    np.testing.assert_array_equal(run_kernel(kernel, xs[0], ncc.ReplicaGroup([[0]])).outputs[0], xs[0])
    with pytest.raises(ConstraintError, match=r"runs on 1 rank\n  hint: .*run_ranks"):
        run_kernel(kernel, xs[0], GROUP)


BAD = {
    "a group twice": (lambda s, d, g: ncc.ReplicaGroup([[0, 1], [1]]), "each rank in one of them only"),
    "rank outside": (
        lambda s, d, g: ncc.all_reduce([s], [d], ncc.ReplicaGroup([[0, 1]]), nl.add),
        "rank 2 is in no group",
    ),
    "no list": (lambda s, d, g: ncc.all_reduce(s, d, g, nl.add), "must be a list of tensors"),
    "operator": (lambda s, d, g: ncc.all_reduce([s], [d], g, nl.multiply), "use nl.add"),
    "shape": (lambda s, d, g: ncc.all_gather([s], [d], g, 0), r"dst .* must have shape \(32, 16\)"),
    "dimension": (lambda s, d, g: ncc.all_gather([s], [d], g, 1), "collective_dim 1"),
    "memory": (
        lambda s, d, g: ncc.all_to_all([nl.zeros(s.shape, s.dtype)], [nl.zeros(s.shape, s.dtype)], g, 0),
        "must be in HBM",
    ),
    "mixture": (
        lambda s, d, g: ncc.all_reduce([nl.zeros(s.shape, s.dtype)], [d], g, nl.add),
        "all in HBM or all in SBUF",
    ),
    "pairs": (lambda s, d, g: ncc.collective_permute([s], [d], [(0, 1), (0, 2)]), "once as a source"),
    "channels": (
        lambda s, d, g: ncc.collective_permute_implicit([[s]], [[d]], g, [1]),
        "channel_ids is",
    ),
    "dtype": (
        lambda s, d, g: ncc.all_reduce([s], [nl.ndarray(s.shape, nl.bfloat16, nl.shared_hbm)], g, nl.add),
        "one dtype",
    ),
    "priority": (lambda s, d, g: ncc.all_reduce([s], [d], g, nl.add, priority=0), "needs NeuronCore-v4"),
}


@pytest.mark.parametrize(("collective", "message"), BAD.values(), ids=BAD)
def test_rules(xs: list[np.ndarray], collective: Any, message: str) -> None:
    """Each rule of collectives refuses the kernel that breaks it, by name."""
    with pytest.raises(ConstraintError, match=message):
        on_ranks(kernel_of(collective), xs)


def test_displacements_of_all_gather_v_are_unsupported(xs: list[np.ndarray]) -> None:
    """all_gather_v with receive displacements exists in no NKI either."""
    kernel = kernel_of(lambda s, d, g: ncc.all_gather_v([s], [d], g, s, has_rdispls=True))
    with pytest.raises(UnsupportedError, match="has_rdispls"):
        on_ranks(kernel, xs)


def test_unwritten_sources_are_refused(xs: list[np.ndarray]) -> None:
    """A collective that sends what nobody wrote is refused at its line."""

    def kernel(x, group, rows):
        src, dst = (nl.ndarray(x.shape, x.dtype, nl.shared_hbm) for _ in range(2))
        nisa.dma_copy(src[0:rows], x[0:rows])
        ncc.all_reduce([src], [dst], group, nl.add)
        return dst

    run_ranks(kernel, [(x, GROUP, ROWS) for x in xs])
    with pytest.raises(
        UnwrittenReadError, match=r"test_nki_collectives.py:\d+: all_reduce: .* never written"
    ):
        run_ranks(kernel, [(x, GROUP, ROWS - 1) for x in xs])


def test_ranks_must_agree(xs: list[np.ndarray]) -> None:
    """A rank that issues another collective, or none, is named with its line."""

    def kernel(x, group, op):
        src, dst = (nl.ndarray(x.shape, x.dtype, nl.shared_hbm) for _ in range(2))
        nisa.dma_copy(src, x)
        nisa.dma_copy(dst, x)
        if op is not None:
            ncc.all_reduce([src], [dst], group, op)
        return dst

    for odd in (nl.maximum, None):
        ops = [nl.add, nl.add, nl.add, odd]
        with pytest.raises(
            SynchronizationError, match=r"rank 0 waits in all_reduce .*rank 3 (waits|has ended)"
        ):
            run_ranks(kernel, [(x, GROUP, op) for x, op in zip(xs, ops, strict=True)])


def test_inputs_in_collectives_are_warned_of(xs: list[np.ndarray]) -> None:
    """The compiler may refuse collectives on a kernel's own inputs: a warning."""

    def kernel(x, group):
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        ncc.all_reduce([x], [out], group, nl.add)
        return out

    (warning,) = on_ranks(kernel, xs)[0].warnings
    assert "`x` (8, 16) float32 @ shared_hbm is a kernel input" in warning
