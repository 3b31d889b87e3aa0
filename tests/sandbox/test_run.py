"""A job: arrays and facts come out, each failure in its own words, and nothing that a child sends is believed."""

from __future__ import annotations

import os
import struct
from concurrent.futures import CancelledError
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_port.registry import Registry
from neuron_port.sandbox import frames
from neuron_port.sandbox.facts import check_facts, check_failure
from neuron_port.sandbox.frames import HEADER, MAGIC, Kind, ProtocolError, pack, unpack_body, unpack_header
from neuron_port.sandbox.job import KernelCall, SandboxJob, SandboxLimits
from neuron_port.sandbox.process import SandboxProcess
from neuron_port.sandbox.run import run_inspected, run_job
from neuron_port.simulator import load_kernel_source, run_kernel
from tests.sandbox.kernels import KERNEL, STRICT, X, escape, job, with_lines


def test_outputs_and_facts_come_out() -> None:
    """Outputs are those of the simulator in this process, and the facts count what ran."""
    outcome = run_job(job(KERNEL))
    assert outcome.failure is None
    (call,) = outcome.calls
    assert call.failure is None
    np.testing.assert_array_equal(call.outputs[0], 2 * X)
    assert call.facts is not None
    assert call.facts.by_opcode == {"dma_copy": 2, "tensor_scalar": 1}
    assert call.facts.instructions == 3
    assert call.facts.hbm_read_bytes == X.nbytes
    assert call.facts.latency_ns is None
    assert outcome.cpu_seconds > 0


def rms_norm_call(dtype: Any, **options: bool) -> KernelCall:
    random = np.random.default_rng(0)
    x, gamma = (random.standard_normal(shape).astype(dtype) for shape in ((130, 256), (256,)))
    return KernelCall(arrays=(x, gamma), attributes={"eps": 1e-5}, **options)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_recipe_gives_the_same_bits(dtype: Any) -> None:
    """Confined and not, in float32 and bfloat16, a recipe's outputs are equal."""
    kernel = Registry()["rms_norm"].kernel
    call = rms_norm_call(dtype)
    outcome = run_job(SandboxJob(source=kernel.source, entry_point="rms_norm", calls=(call,)))
    function = load_kernel_source(kernel.source, "rms_norm")
    expected = run_kernel(function, *call.arrays, **call.attributes).outputs[0]
    output = outcome.calls[0].outputs[0]
    assert output.dtype == expected.dtype
    np.testing.assert_array_equal(output, expected)


def test_a_prediction_comes_with_lines_and_advice() -> None:
    """`predict` adds latency and a small profile, `advise` lines and advice; the dtypes of matmuls are named."""
    kernel = Registry()["rms_norm"].kernel
    calls = (rms_norm_call(np.float32, predict=True), rms_norm_call(np.float32, advise=True))
    plain, advised = run_job(SandboxJob(source=kernel.source, entry_point="rms_norm", calls=calls)).calls
    assert plain.facts is not None
    assert advised.facts is not None
    assert plain.facts.latency_ns
    assert plain.facts.latency_ns == advised.facts.latency_ns
    assert plain.facts.profile is not None
    assert "lines" not in plain.facts.profile
    assert {"busy_ns", "bound", "hbm_read_bytes", "peak_sbuf_bytes", "peak_psum_banks"} <= set(
        plain.facts.profile
    )
    assert advised.facts.profile is not None
    assert advised.facts.profile["lines"][0]["file"] == "kernel.py"
    assert isinstance(advised.facts.profile["advice"], list)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_dtypes_of_matmuls_are_named(dtype: Any) -> None:
    """A silent loss of precision shows in the facts."""
    kernel = Registry()["linear"].kernel
    x, w = (np.ones(shape, dtype) for shape in ((128, 128), (128, 128)))
    job = SandboxJob(source=kernel.source, entry_point="linear", calls=(KernelCall(arrays=(x, w)),))
    facts = run_job(job).calls[0].facts
    assert facts is not None
    assert facts.matmul_dtypes == (np.dtype(dtype).name,)


def test_a_refused_source_starts_no_process() -> None:
    """The gate's refusal is the outcome; no CPU time is spent and no layer is reported."""
    outcome = run_job(job(with_lines("n = open('x')")))
    assert outcome.failure is not None
    assert outcome.failure.kind == "refused"
    assert (outcome.calls, outcome.cpu_seconds, outcome.isolation) == ((), 0.0, ())


def test_a_simulator_error_keeps_its_words() -> None:
    """Class, message, hint and line are those of the simulator; the next call is made all the same."""
    source = KERNEL.replace("buffer=nl.sbuf", "buffer=nl.psum")
    first, second = run_job(job(source, calls=2)).calls
    failure = first.failure
    assert failure is not None
    assert (failure.kind, failure.error_class) == ("simulator", "ConstraintError")
    assert "dma_copy" in failure.message
    assert failure.hint
    assert failure.line == next(n for n, line in enumerate(source.splitlines(), 1) if "dma_copy" in line)
    assert second.failure == failure


def test_a_python_error_keeps_its_line() -> None:
    """What Python raises in the kernel comes with its class, words and line."""
    source = with_lines("n = 1 // 0")
    failure = run_job(job(source)).calls[0].failure
    assert failure is not None
    assert (failure.kind, failure.error_class) == ("python", "ZeroDivisionError")
    assert failure.line == source.splitlines().index("    n = 1 // 0") + 1


def test_an_endless_loop_of_instructions_ends_at_its_limit() -> None:
    """Simulated instructions are counted for each call."""
    source = with_lines(
        "for i in range(10**9):", "    nisa.memset(nl.ndarray((1, 1), nl.float32), value=0.0)"
    )
    limits = SandboxLimits(instructions=50)
    failure = run_job(job(source, limits=limits)).calls[0].failure
    assert failure is not None
    assert failure.error_class == "LimitError"


def test_attributes_keep_their_types() -> None:
    """Numbers, texts, lists and tuples arrive as they were; anything else is refused before the process gets it."""
    source = with_lines("assert (a, b, c, d, e) == (1, 0.1, 'x', (1, (2,)), [1, None])").replace(
        "def twice(x):", "def twice(x, a, b, c, d, e):"
    )
    attributes = {"a": np.int64(1), "b": 0.1, "c": "x", "d": (1, (2,)), "e": [1, None]}
    calls = (KernelCall(arrays=(X,), attributes=attributes),)
    outcome = run_job(SandboxJob(source=source, entry_point="twice", calls=calls))
    assert outcome.calls[0].failure is None
    with pytest.raises(TypeError, match="object"):
        run_job(
            SandboxJob(
                source=source,
                entry_point="twice",
                calls=(KernelCall(arrays=(X,), attributes={"a": object()}),),
            )
        )


def test_too_much_output_is_not_sent() -> None:
    """Outputs beyond the limit are a failure, whoever counts them: the child before, the parent while it reads."""
    limits = SandboxLimits(output_bytes=X.nbytes - 1)
    failure = run_job(job(KERNEL, limits=limits)).calls[0].failure
    assert failure is not None
    assert (failure.kind, failure.error_class) == ("protocol", "output size")
    assert run_job(job(KERNEL, limits=SandboxLimits(output_bytes=X.nbytes))).calls[0].failure is None


# Finds the parent's pipe, and with it the nonce, by walking the frames: what no gate lets pass.
FIND = [
    'frame = module("sys")._getframe()',
    'while "parent" not in frame.f_locals: frame = frame.f_back',
    'parent = frame.f_locals["parent"]',
    "fd = parent._result_fd",
]


def own_header(kind: int, array_bytes: int) -> str:
    """Source that writes a frame with the right nonce, of that kind, and announces as many bytes of arrays."""
    rest = HEADER.pack(MAGIC, bytes(16), kind, 2, array_bytes)[20:] + b"{}"
    return f"os.write(fd, {MAGIC!r} + parent._nonce + {rest!r})"


FORGERIES = {
    "garbage": ["os.write(fd, everything()['bytes'](1000))"],
    "no nonce": [f"os.write(fd, {HEADER.pack(MAGIC, bytes(16), Kind.result, 2, 0) + b'{}'!r})"],
    "unknown kind": [own_header(99, 0)],
    "10 GB": [own_header(Kind.result, 10**10)],
    "no facts": ["parent.send(18, {'failure': None, 'facts': None})"],
    "negative facts": ["parent.send(18, {'failure': None, 'facts': {'instructions': -1}})"],
    "parent's frame": ["parent.send(2, {})"],
    "failure without words": ["parent.send(20, {'failure': {'kind': 'time'}})"],
    "failure of no kind": ["parent.send(20, {'failure': {'kind': 'passed'}})"],
    "nesting": ["parent.send(18, {'failure': None, 'facts': " + "[" * 90 + "]" * 90 + "})"],
}  # fmt: skip


@pytest.mark.parametrize("lines", FORGERIES.values(), ids=FORGERIES.keys())
def test_forged_frames_end_the_process(lines: list[str]) -> None:
    """A frame that is not ours, or does not hold together, is a failure of the protocol and never a result."""
    outcome = escape(*FIND, *lines, "os._exit(0)")
    assert outcome.failure is not None
    assert outcome.failure.kind == "protocol"
    assert outcome.calls == ()


def test_half_a_frame_is_nothing() -> None:
    """An answer that stops in its middle is the end of the process."""
    outcome = escape(*FIND, "os.write(fd, everything()['bytes'](10))", "os._exit(0)")
    assert outcome.failure is not None
    assert outcome.failure.error_class == "early exit"


def test_a_closed_pipe_is_named() -> None:
    """A kernel that closes its pipe and computes on is ended at once."""
    outcome = escape(*FIND, "os.close(fd)", "while True: pass", limits=SandboxLimits(cpu_seconds=30))
    assert outcome.failure is not None
    assert outcome.failure.error_class == "closed pipe"


def test_frames_are_bounded() -> None:
    """Sizes, dtypes and shapes that do not fit each other are refused by the reader."""
    nonce = os.urandom(16)
    sent = b"".join(map(bytes, pack(nonce, Kind.result, {"a": 1}, (X, X.astype(ml_dtypes.bfloat16)))))
    kind, text_bytes, array_bytes = unpack_header(sent[: HEADER.size], nonce, X.nbytes * 2)
    body, specs = unpack_body(sent[HEADER.size : HEADER.size + text_bytes], array_bytes)
    assert (kind, body) == (Kind.result, {"a": 1})
    assert specs == [(np.dtype(np.float32), X.shape), (np.dtype(ml_dtypes.bfloat16), X.shape)]
    with pytest.raises(ProtocolError, match="arrays, at most"):
        unpack_header(sent[: HEADER.size], nonce, X.nbytes)
    with pytest.raises(ProtocolError, match="no frame of this process"):
        unpack_header(sent[: HEADER.size], bytes(16), 10**6)
    with pytest.raises(ProtocolError, match="bytes are announced"):
        unpack_body(sent[HEADER.size : HEADER.size + text_bytes], array_bytes + 1)
    for arrays in (
        '[["object", [1]]]',
        '[["float32", [-1]]]',
        '[["float32", [true]]]',
        '[["float32"]]',
        "{}",
    ):
        with pytest.raises(ProtocolError):
            unpack_body(f'{{"arrays": {arrays}}}'.encode(), 4)
    too_long = struct.pack("<4s16sBIQ", MAGIC, nonce, Kind.result, frames.MAXIMUM_JSON_BYTES + 1, 0)
    with pytest.raises(ProtocolError, match="of JSON"):
        unpack_header(too_long, nonce, 0)


def test_what_a_child_says_is_checked() -> None:
    """Facts and failures of another form are no facts and no failures."""
    for facts in ([], {"instructions": "3"}, {"instructions": True}, {"instructions": 2**70}):
        with pytest.raises(ProtocolError):
            check_facts(facts)
    for failure in ([], {"kind": "passed"}, {"kind": "time", "error_class": 1, "message": ""}):
        with pytest.raises(ProtocolError):
            check_failure(failure)
    assert check_failure(None) is None


def test_a_process_for_each_call_shares_nothing() -> None:
    """What one job's kernel leaves in the simulator, the next job's does not see; within a job it does."""
    lines = ["nl.ndarray.__globals__['seen'] = nl.ndarray.__globals__.get('seen', 0) + 1",
             "assert nl.ndarray.__globals__['seen'] == 1"]  # fmt: skip
    source = with_lines(*lines)
    together = run_inspected(job(source, calls=2)).calls
    assert [call.failure is None for call in together] == [True, False]
    apart = [run_inspected(job(source)).calls[0] for _ in range(2)]
    assert [call.failure is None for call in apart] == [True, True]


def test_inputs_are_read_only_and_ours_stay_as_they_are() -> None:
    """A kernel that forces its way into an input's memory changes its own copy at most."""
    before = X.copy()
    outcome = escape("x.array.flags.writeable = True", "x.array[:] = 0")
    assert outcome.calls[0].failure is not None
    np.testing.assert_array_equal(X, before)


def test_a_cancelled_process_is_no_verdict() -> None:
    """Whoever waits for a process that another thread cancels gets a CancelledError, not a failed kernel."""
    with SandboxProcess(KERNEL, "twice", "trn2", STRICT) as process:
        process.cancel()
        with pytest.raises(CancelledError):
            process.ask(
                Kind.call, {"held": [None], "attributes": {}, "predict": False, "advise": False}, (X,)
            )
