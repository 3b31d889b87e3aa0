"""The options of finish.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .files import FINISH
from .processes import PROGRESS_SECONDS
from .tables import TARGETS

ENGINES = {
    "hlo": "HLO -> neuronx-cc -> NEFF -> nrtpy",
    "trace": "torch_neuronx.trace of SDK 2.31 -> TorchScript",
}


def parser() -> argparse.ArgumentParser:
    """The command line, --help included."""
    made = argparse.ArgumentParser(
        prog="finish.py",
        description="Compile a neuron bundle for a chip, and check it on a device when there is one.",
        epilog="Exit codes: 0 done, 2 usage, 3 environment, 4 compilation, 5 parity on the device, "
        "130 interrupted. Run the same command again to continue.",
    )  # fmt: skip
    made.add_argument("--target", choices=TARGETS, help="the chip (required, but for --status)")
    engines = "; ".join(f"{name}: {meaning}" for name, meaning in ENGINES.items())
    made.add_argument("--engine", default="hlo", choices=ENGINES, help=f"{engines} (default: %(default)s)")
    made.add_argument(
        "--kernels", default="auto", choices=("auto", "on", "off"),
        help="NKI kernels. auto: on trn2, where nki is; a kernel that fails is left to the compiler. "
        "on: on every chip, and one that fails fails its graph (default: %(default)s)",
    )  # fmt: skip
    made.add_argument(
        "--retry-kernels", action="store_true", help="try again kernels that an earlier run was refused"
    )
    made.add_argument("--jobs", type=int, help="compilations at once (default: by processors and memory)")
    made.add_argument("--graphs", help="only these, separated by commas")
    made.add_argument(
        "--timeout-minutes",
        type=float,
        help="for each compilation; what takes longer is ended (default: none)",
    )
    made.add_argument(
        "--dry-run", action="store_true", help="check everything, print the commands, write nothing"
    )
    made.add_argument(
        "--status",
        action="store_true",
        help="say what the bundle's state is and what it rests on; write nothing",
    )
    made.add_argument("--cache", type=Path, help="folder of NEFFs shared by bundles (default: none)")
    made.add_argument("--work", type=Path, help="scratch folder (default: build/work in the bundle)")
    made.add_argument(
        "--weights", type=Path, help="the checkpoint's folder, when the bundle only refers to weights"
    )
    for name, has in (
        ("nki", "nki"), ("nrtpy", "nrtpy"), ("torch", "torch_neuronx (engine trace)"),
    ):  # fmt: skip
        made.add_argument(
            f"--{name}-python", default=sys.executable, metavar="PYTHON",
            help=f"interpreter of the environment that has {has}",
        )  # fmt: skip
    made.add_argument(
        "--device-nodes", default="/dev/neuron*", help="where devices appear (default: %(default)s)"
    )
    made.add_argument("--bundle", type=Path, default=FINISH.parent.parent, help=argparse.SUPPRESS)
    made.add_argument("--progress-seconds", type=float, default=PROGRESS_SECONDS, help=argparse.SUPPRESS)
    return made
