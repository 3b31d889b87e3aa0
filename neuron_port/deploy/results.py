"""Brings what an instance made into the bundle: files first, then a manifest that speaks of them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from neuron_port.build import load_manifest
from neuron_port.build.finishing.environment import damaged_files
from neuron_port.build.finishing.files import MANIFEST, write_json
from neuron_port.deploy.archive import unpack
from neuron_port.deploy.errors import DeployError

MADE = ("neff", "device")


def take_over(bundle: Path, archive: Path, target: str) -> str:
    """Put the results of `archive` into the bundle and return the state that its manifest now has.

    Other chips keep what they have. Raises: DeployError when a file is not what the results' manifest says.
    """
    with tempfile.TemporaryDirectory(prefix=".neuron-port-", dir=bundle) as name:
        made = Path(name)
        unpack(archive, made)
        theirs = load_manifest(made)
        prefixes = tuple(f"{folder}/" for folder in MADE)
        if problems := damaged_files(made, theirs, within=lambda file: file.startswith(prefixes)):
            raise DeployError(
                f"The results are damaged: {'; '.join(problems[:3])}",
                hint="Delete the job's files (neuron-port deploy destroy JOB --purge --remote s3://...) and build again.",
            )
        for folder in MADE:
            for path in sorted((made / folder).glob("*/*")) if (made / folder).is_dir() else []:
                destination = bundle / path.relative_to(made)
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, destination)
        ours = load_manifest(bundle)
        ours["state"] = theirs["state"]
        ours["build"] |= {name: value for name, value in theirs["build"].items() if name != "targets"}
        ours["build"]["targets"][target] = theirs["build"]["targets"][target]
        neffs = {graph["id"]: graph["neff"] for graph in theirs["graphs"]}
        for graph in ours["graphs"]:
            graph["neff"] = neffs[graph["id"]]
            graph.pop("torchscript", None)  # of engine trace, of which the state does not speak any more
        ours["files"] |= {
            file: digest for file, digest in theirs["files"].items() if file.startswith(prefixes)
        }
        write_json(bundle / MANIFEST, ours)
    return str(ours["state"])
