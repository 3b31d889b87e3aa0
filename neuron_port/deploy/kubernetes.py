"""The Kubernetes manifest that serves a bundle on EKS nodes with the Neuron device plugin."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from neuron_port.build import load_manifest
from neuron_port.deploy.servable import check_servable
from neuron_port.errors import UsageError
from neuron_port.registry import data_folder

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?")  # a DNS label, with room for `-key`
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_:@-]*")


def kubernetes_manifest(bundle: Path, *, container: str, name: str, devices: int, replicas: int) -> str:
    """The text of infra/kubernetes/serve.yaml for one bundle.

    Args:
        container: an image that holds neuron-port and the bundle in /opt/neuron-port/bundle (infra/Dockerfile).
        devices: Neuron chips per pod.

    Raises: UsageError for names that Kubernetes would refuse, and for a bundle that cannot be served.
    """
    manifest = load_manifest(bundle)
    check_servable(bundle, manifest)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"Not a name for Kubernetes: `{name}`", hint="Lower-case letters, digits and hyphens."
        )
    if not _IMAGE.fullmatch(container):
        raise UsageError(f"Not a container image: `{container}`")
    text = Template((data_folder("infra") / "kubernetes" / "serve.yaml").read_text(encoding="utf-8"))
    memory_gib = max(8, int(2 * manifest["weights"]["bytes"] / 2**30) + 4)
    return text.substitute(
        name=name, container=container, devices=devices, replicas=replicas, memory=f"{memory_gib}Gi",
        model=re.sub(r"[^A-Za-z0-9_.-]+", "-", manifest["model"]["id"]).strip("-_.")[:63].strip("-_."),
        state=manifest["state"],
    )  # fmt: skip
