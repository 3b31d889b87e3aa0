"""Sequencer registers: allocate, move, load and store the integers that address instructions at run time."""

from __future__ import annotations

from neuron_port.simulator.checks import require_written, touch
from neuron_port.simulator.context import record
from neuron_port.simulator.errors import ConstraintError
from neuron_port.simulator.memory import MemoryRegion
from neuron_port.simulator.registers import VirtualRegister
from neuron_port.simulator.tensor import NkiTensor
from neuron_port.simulator.trace import NkiInstruction, engine
from neuron_port.simulator.values import write_raw


def register_alloc(x: int | None = None) -> VirtualRegister:
    """A new register, holding `x` if it is given."""
    register = VirtualRegister()
    if x is not None:
        register.set(x)
    return register


def register_move(dst: VirtualRegister, src: int | VirtualRegister) -> None:
    """dst = an integer or another register."""
    _check_register("register_move", dst).set(src.value if isinstance(src, VirtualRegister) else src)


def register_load(dst: VirtualRegister, src: NkiTensor) -> NkiInstruction:
    """dst = the one element of src, in SBUF or HBM."""
    _check_element("register_load", "src", src)
    require_written("register_load", "src", src)
    touch(src.storage)
    _check_register("register_load", dst).set(int(src.array.reshape(-1)[0]))
    return record("register_load", engine.sync, (src,), writes=0)


def register_store(dst: NkiTensor, src: VirtualRegister) -> NkiInstruction:
    """The one element of dst = src."""
    _check_element("register_store", "dst", dst)
    touch(dst.storage, written=True)
    write_raw(
        dst, dst.array.dtype.type(_check_register("register_store", src).value).reshape(dst.array.shape)
    )
    return record("register_store", engine.sync, (dst,))


def _check_register(opcode: str, register: object) -> VirtualRegister:
    if not isinstance(register, VirtualRegister):
        raise ConstraintError(
            f"{opcode}: {register!r} is no register", hint="make one with nisa.register_alloc()"
        )
    return register


def _check_element(opcode: str, label: str, tensor: NkiTensor) -> None:
    if tensor.size != 1 or tensor.buffer is MemoryRegion.psum or tensor.dtype.itemsize > 4:
        raise ConstraintError(f"{opcode}: {label} {tensor!r} must be one element in SBUF or HBM")
    if not tensor.dtype.is_integer:
        raise ConstraintError(
            f"{opcode}: {label} {tensor!r} must have an integer dtype, as registers hold integers"
        )
