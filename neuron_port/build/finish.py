#!/usr/bin/env python3
"""Turns a portable neuron bundle into compiled NEFFs, and checks them on a device when there is one.

    python build/finish.py --target inf2|trn1|trn2 [--engine hlo|trace] [--kernels auto|on|off] [--jobs N] [--dry-run]
    python build/finish.py --status

Standard library only, Python 3.10 or newer: it runs inside the bundle, without neuron-port; its parts lie
beside it in `finishing/`. The same file is also run by other interpreters, because the `nki` and `nrtpy`
wheels cannot share an environment and torch_neuronx has one of its own: as `finish.py _kernel` in the NKI
environment (--nki-python), as `finish.py _device` in the nrtpy environment (--nrtpy-python), and as
`finish.py _trace` and `finish.py _check_traced` in that of torch_neuronx (--torch-python).

What was finished stays finished: a NEFF whose key and hash are right is skipped, so the same command
continues an interrupted or failed run.

Exit codes: 0 done, 2 usage, 3 environment or damaged bundle, 4 a graph did not compile, 5 the device
disagrees with the reference, 130 interrupted.
"""

import sys

if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036  (instances bring older interpreters)
        sys.exit("error: finish.py needs Python 3.10 or newer.")
    from pathlib import Path

    sys.dont_write_bytecode = True  # leave nothing in the bundle that is not in its manifest
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # also when Python runs isolated (-I)
    from finishing.command import main

    sys.exit(main())
