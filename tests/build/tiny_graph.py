"""The tiny model's graph as HLO bytes: (x * gamma) @ w, and cache + 1."""

from __future__ import annotations

import hashlib
import json

from neuron_port.build.finishing.hlo_edit import without_kernels
from neuron_port.lower.module import Alias, Computation, Instruction, Module, Shape, shape_message

# T = tokens, H = hidden, N = out features
T, H, N = 2, 4, 3
KERNEL_SOURCE = """import nki


@nki.jit
def rms_norm(x, gamma, bias=None, eps=1e-6):
    return x
"""


def kernel_source(name: str) -> str:
    """The source of a kernel of that name; all of them do the same."""
    return KERNEL_SOURCE.replace("rms_norm", name)


def kernel_sha256(name: str) -> str:
    return hashlib.sha256(kernel_source(name).encode()).hexdigest()


INPUTS = {"x": (T, H), "gamma": (H,), "w": (H, N), "cache": (T, N)}
_ROWS = Shape("float32", (T, H))
_OUT = Shape("float32", (T, N))


def graph_bytes(
    *,
    kernel: str | None,
    sha256: str | None = None,
    first_id: int = 1,
    parameters: int = 4,
    others: tuple[str, ...] = (),
) -> bytes:
    """The graph; `kernel` makes x * gamma a placeholder with its reference, None puts the reference in its place.

    `others` are further kernels, each called on the result of the one before, which they only multiply by one gamma.
    """
    made = _module(kernel or "rms_norm", sha256, first_id, parameters, others).to_bytes()
    return made if kernel else without_kernels(made)


def _module(
    kernel: str, sha256: str | None, first_id: int, parameters: int, others: tuple[str, ...]
) -> Module:
    taken = iter(range(first_id, first_id + 100))
    reference = _reference(taken)
    names = list(INPUTS)[:parameters]
    body = [
        Instruction(next(taken), "parameter", Shape("float32", INPUTS[name]), (), {
            "parameter_number": number, "frontend_attributes": {"map": {"neff_input_names": name}},
        })
        for number, name in enumerate(names)
    ]  # fmt: skip
    x, gamma, w, cache = (body[min(number, parameters - 1)].id for number in range(4))
    for name in (kernel, *others):
        digest = (sha256 if name == kernel else None) or kernel_sha256(name)
        config = {"kernel": digest, "entry": name, "attributes": {"eps": 1e-5, "bias": None}}
        call = {
            "custom_call_target": f"neuron_port.{name}", "custom_call_api_version": 2,
            "backend_config": json.dumps(config).encode(), "called_computation_ids": [reference.id],
        }  # fmt: skip
        x = _add(body, taken, "custom-call", _ROWS, (x, gamma), **call)
    axes = {"lhs_contracting_dimensions": [1], "rhs_contracting_dimensions": [0]}
    y = _add(body, taken, "dot", _OUT, (x, w), dot_dimension_numbers=axes)
    literal = {"shape": shape_message(Shape("float32")), "f32s": b"\0\0\x80\x3f"}
    one = _add(body, taken, "constant", Shape("float32"), (), literal=literal)
    ones = _add(body, taken, "broadcast", _OUT, (one,), dimensions=[])
    written = _add(body, taken, "add", _OUT, (cache, ones))
    root = _add(body, taken, "tuple", Shape("tuple", (), (_OUT, _OUT)), (y, written),
                frontend_attributes={"map": {"neff_output_names": "y,cache_out"}})  # fmt: skip
    main = Computation(next(taken), "main", root, tuple(body), tuple(names))
    aliases = (Alias(1, 3),) if parameters == 4 else ()
    return Module("tiny", (reference, main), main.id, aliases)


def _reference(taken: object) -> Computation:
    body: list[Instruction] = []
    x = _add(body, taken, "parameter", _ROWS, (), parameter_number=0)
    gamma = _add(body, taken, "parameter", Shape("float32", (H,)), (), parameter_number=1)
    wide = _add(body, taken, "broadcast", _ROWS, (gamma,), dimensions=[1])
    product = _add(body, taken, "multiply", _ROWS, (x, wide))
    return Computation(next(taken), "rms_norm.reference", product, tuple(body), ("p0", "p1"))  # type: ignore[call-overload]


def _add(
    body: list[Instruction],
    taken: object,
    opcode: str,
    shape: Shape,
    operands: tuple[int, ...],
    **attributes: object,
) -> int:
    body.append(Instruction(next(taken), opcode, shape, operands, attributes))  # type: ignore[call-overload]
    return body[-1].id
