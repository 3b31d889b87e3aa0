"""`compile_to_bir` of the stand-in: binds the inputs as the kernel would, and names a file that it wrote."""

import base64
import inspect
import json
import os
from pathlib import Path
from types import SimpleNamespace

from nki.compiler.frontend import ParserFrontend
from nki.compiler.ncc_driver import CompileOptions


def compile_to_bir(kernel, *, frontend, inputs, compile_opts, output_names):
    broken = os.environ.get("FAKE_NKI", "").split()
    if "broken" in broken or f"broken:{kernel.__name__}" in broken:
        raise RuntimeError("tensor_tensor: partition dimension 256 exceeds maximum 128")
    if not isinstance(frontend, ParserFrontend) or not isinstance(compile_opts, CompileOptions):
        raise TypeError(f"frontend {frontend!r}, compile_opts {compile_opts!r}")
    bound = inspect.signature(kernel).bind(**inputs)
    shapes = {name: list(value.shape) for name, value in bound.arguments.items() if hasattr(value, "shape")}
    plain = {name: value for name, value in bound.arguments.items() if not hasattr(value, "shape")}
    binary = Path(compile_opts.artifacts_dir) / "kernel.klir"
    binary.write_text("klir")
    config = {"func_name": kernel.__name__, "binary": str(binary), "shapes": shapes, "plain": plain,
              "target": compile_opts.target, "outputs": output_names}  # fmt: skip
    encoded = base64.b64encode(json.dumps(config).encode())
    return SimpleNamespace(
        build_config=lambda: SimpleNamespace(backend_config_b64=encoded, operand_output_aliases={})
    )
