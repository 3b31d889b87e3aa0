"""The process that runs a candidate: import, give everything up, then load the kernel and answer calls.

It is started by `process.py` with three inherited pipes. From `confine` on nothing here is trusted by the parent.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import pkgutil
import re
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

import neuron_port.simulator
from neuron_port.sandbox.confinement import Allowance, CpuTimeUp, confine
from neuron_port.sandbox.facts import facts_of
from neuron_port.sandbox.frames import (
    ABSENT,
    HEADER,
    Frame,
    Kind,
    from_wire,
    pack,
    unpack_body,
    unpack_header,
)
from neuron_port.sandbox.namespace import FILENAME, load_candidate, public_modules
from neuron_port.simulator import Limits, SimulatorError, to_hbm
from neuron_port.simulator.blas import thread_control
from neuron_port.simulator.runner import call_kernel

# Modules of the simulator that no kernel run needs.
_NOT_NEEDED = ("neuron_port.simulator.linting", "neuron_port.simulator.coverage")
_LOCATION = re.compile(rf"{re.escape(FILENAME)}:(\d+)")
_LONGEST_TEXT = 4000


class Parent:
    """The two pipes to the parent."""

    def __init__(self, job_fd: int, result_fd: int) -> None:
        self._job = io.FileIO(job_fd, closefd=False)
        self._result_fd = result_fd
        self._nonce: bytes | None = None

    def receive(self) -> Frame:
        """The next frame; ends the process when there is none."""
        header = bytes(self._read(HEADER.size))
        kind, json_bytes, array_bytes = unpack_header(header, self._nonce, 1 << 62)
        self._nonce = header[4:20]
        body, specs = unpack_body(bytes(self._read(json_bytes)), array_bytes)
        arrays = []
        for dtype, shape in specs:
            raw = self._read(dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
            arrays.append(np.frombuffer(raw.toreadonly(), dtype=np.uint8).view(dtype).reshape(shape))
        return Frame(kind=kind, body=body, arrays=tuple(arrays))

    def send(self, kind: Kind, body: dict[str, Any], arrays: tuple[np.ndarray, ...] = ()) -> None:
        """Write one frame."""
        assert self._nonce is not None
        for part in pack(self._nonce, kind, body, arrays):
            view = memoryview(part)
            while view.nbytes:
                view = view[os.write(self._result_fd, view) :]

    def _read(self, size: int) -> memoryview:
        buffer = memoryview(bytearray(size))
        done = 0
        while done < size:
            count = self._job.readinto(buffer[done:])
            if not count:
                os._exit(0)  # the parent is done with us
            done += count
        return buffer


def import_all(advise: bool) -> None:
    """Everything that a run may import late: afterwards there are no files."""
    package = neuron_port.simulator
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.startswith(_NOT_NEEDED):
            importlib.import_module(module.name)
    if advise:
        importlib.import_module("neuron_port.profiling.summary")
    thread_control()
    gc.freeze()  # what is here now stays for good


def main(job_fd: int, result_fd: int, lifeline_fd: int) -> NoReturn:
    """Serve one candidate until the parent closes the pipe."""
    parent = Parent(job_fd, result_fd)
    start = dict(parent.receive().body)
    import_all(start["advise"])
    modules = public_modules()
    warnings.simplefilter("ignore")
    silence = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(silence, standard)
    os.close(silence)
    isolation = confine(
        Allowance(
            cpu_seconds=start["cpu_seconds"],
            wall_seconds=start["wall_seconds"],
            memory_bytes=start["memory_bytes"],
            result_fd=result_fd,
            lifeline_fd=lifeline_fd,
        )
    )
    parent.send(Kind.ready, {"isolation": isolation})
    try:
        kernel = load_candidate(start["source"], start["entry_point"], modules)
        _serve(parent, kernel, start)
    except BaseException as error:  # hostile code may raise anything; the parent reads what it was
        parent.send(Kind.failed, {"failure": _failure_of(error, start)})
    os._exit(0)


def _serve(parent: Parent, kernel: Callable[..., Any], start: dict[str, Any]) -> None:
    limits = Limits(instructions=start["instructions"])
    held: dict[int, Any] = {ABSENT: None}
    while True:
        frame = parent.receive()
        if frame.kind is Kind.stop:
            return
        if frame.kind is Kind.hold:
            held[frame.body["id"]] = to_hbm(frame.arrays[0])
            parent.send(Kind.held, {})
            continue
        arrays = iter(frame.arrays)
        inputs = [next(arrays) if one is None else held[one] for one in frame.body["held"]]
        attributes = {name: from_wire(value) for name, value in frame.body["attributes"].items()}
        try:
            run = call_kernel(kernel, inputs, attributes, target=start["target"], limits=limits)
            outputs = run.outputs
            if sum(output.nbytes for output in outputs) > start["output_bytes"]:
                raise OutputSizeError(
                    f"the outputs are {sum(output.nbytes for output in outputs):,} bytes, "
                    f"at most {start['output_bytes']:,}"
                )
            facts = facts_of(
                run, start["entry_point"], predict=frame.body["predict"], advise=frame.body["advise"]
            )
        except Exception as error:  # of the kernel; the next call may be right
            parent.send(Kind.result, {"failure": _failure_of(error, start), "facts": None})
        else:
            parent.send(Kind.result, {"failure": None, "facts": facts}, outputs)
            del run, outputs


class OutputSizeError(Exception):
    """The kernel returned more bytes than may come."""


def _failure_of(error: BaseException, start: dict[str, Any]) -> dict[str, Any]:
    """The words of an error, and the line of the kernel that it came from."""
    line = _line_of(error)
    hint = None
    message = str(error)
    kind, error_class = "python", type(error).__name__
    if isinstance(error, SimulatorError):
        kind, message, hint = "simulator", error.message, error.hint
        located = _LOCATION.fullmatch(error.location or "")
        line = int(located[1]) if located else line
        if "host memory" in message:
            kind = "memory"
    elif isinstance(error, CpuTimeUp):
        kind, error_class = "time", "cpu time"
        message = f"the kernel uses more than {start['cpu_seconds']:g} seconds of CPU time"
        hint = "is there a loop without an end, or far more instructions than the task needs?"
    elif isinstance(error, MemoryError):
        kind = "memory"
        message = f"the kernel takes more than {start['memory_bytes']:,} bytes of memory"
    elif isinstance(error, OutputSizeError):
        kind, error_class = "protocol", "output size"
    elif isinstance(error, SyntaxError):
        line, message = error.lineno, error.msg
    return {
        "kind": kind,
        "error_class": error_class[:100],
        "message": (message or error_class)[:_LONGEST_TEXT],
        "hint": None if hint is None else hint[:_LONGEST_TEXT],
        "line": line,
    }


def _line_of(error: BaseException) -> int | None:
    """The innermost line of the kernel's file that an exception passed through."""
    line = None
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == FILENAME:
            line = step.tb_lineno
        step = step.tb_next
    return line
