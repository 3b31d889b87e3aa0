"""SageMaker's model.tar.gz: the bundle, and code that serves it through `neuron-port serve`.

Contract: the archive is unpacked to /opt/ml/model; the container is run with `serve`, answers GET /ping and
POST /invocations on port 8080 (SageMaker developer guide, "Custom inference code with hosting services").
infra/Dockerfile makes such a container. No SageMaker endpoint has run it.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from neuron_port.build import load_manifest
from neuron_port.deploy.archive import files_below
from neuron_port.deploy.export import weight_files
from neuron_port.deploy.servable import check_servable

TEMPLATES = Path(__file__).parent / "templates"
ARCHIVE = "model.tar.gz"


def export_sagemaker(bundle: Path, output: Path) -> list[str]:
    """Write `output`/model.tar.gz and return warnings for the user.

    Raises: UsageError when there is nothing to serve: no weights, not compiled, or several ranks.
    """
    manifest = load_manifest(bundle)
    weight_files(bundle, manifest)
    check_servable(bundle, manifest)
    output.mkdir(parents=True, exist_ok=True)
    aside = output / f".{ARCHIVE}.partial"
    try:
        with tarfile.open(aside, "w:gz", dereference=True, compresslevel=1) as tar:
            tar.add(TEMPLATES / "sagemaker_inference.py", arcname="code/inference.py", filter=_anonymous)
            for name in files_below(bundle):
                tar.add(bundle / name, arcname=f"bundle/{name}", filter=_anonymous)
        aside.replace(output / ARCHIVE)
    finally:
        aside.unlink(missing_ok=True)
    if manifest["state"] == "compiled":
        return ["No Neuron device has confirmed this bundle's NEFFs yet (state: compiled)."]
    return []


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nothing of who made the archive."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
