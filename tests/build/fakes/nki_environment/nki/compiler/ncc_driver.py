"""The options of the stand-in."""

from dataclasses import dataclass
from enum import Enum


class CompilationMode(Enum):
    INTEGRATION = 1


@dataclass(frozen=True)
class CompileOptions:
    target: str
    lnc: int
    artifacts_dir: str
    output_path: str
    neuronx_cc_path: str
    neuronx_cc_args: tuple
    mode: CompilationMode

    def disable_backend_optimizations(self):
        return self
