"""What is compiled: a graph, the kernels chosen for it, and the key that tells one NEFF from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .environment import Bundle, version_pair

Choices = Mapping[str, "Choice"]  # by kernel


@dataclass(frozen=True)
class Choice:
    """What does a kernel's work in one graph: the NKI kernel, or what the compiler makes of its reference."""

    nki: bool
    reason: str

    def record(self) -> dict[str, str]:
        return {"by": "nki" if self.nki else "compiler", "reason": self.reason}


def chosen(choices: Choices) -> list[str]:
    """The kernels that are compiled with NKI, by name."""
    return sorted(name for name, choice in choices.items() if choice.nki)


def by_reason(refused: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> the kernels that it holds for."""
    found: dict[str, list[str]] = {}
    for name, reason in sorted(refused.items()):
        found.setdefault(reason, []).append(name)
    return found


@dataclass(frozen=True)
class Job:
    """One graph to compile, with its choices.

    `wanted_key` is the key of what was asked for; it differs from `key` when a kernel was refused on the way.
    """

    graph: str
    hlo_name: str  # the bundle's file that it comes from
    argv: tuple[str, ...]  # canonical: {hlo}, {neff} and {log} stand for paths
    key: str
    wanted_key: str
    choices: Choices


def job_of(
    bundle: Bundle, target: str, graph: Mapping[str, Any], *, choices: Choices, wanted: Choices,
    compiler: str, nki: str,
) -> Job:  # fmt: skip
    """The graph's job with these choices, for a compiler and an nki of these versions."""
    key, name, argv = key_of(bundle, target, graph, native=chosen(choices), compiler=compiler, nki=nki)
    asked, _, _ = key_of(bundle, target, graph, native=chosen(wanted), compiler=compiler, nki=nki)
    return Job(graph["id"], name, argv, key, asked, choices)


def key_of(
    bundle: Bundle, target: str, graph: Mapping[str, Any], *, native: Sequence[str], compiler: str, nki: str
) -> tuple[str, str, tuple[str, ...]]:
    """(key, the bundle's file that is compiled, its command) of a graph with these kernels compiled by nki."""
    name = "graph.hlo.pb" if native else "graph.ref.hlo.pb"
    hlo_sha256 = graph["hlo_sha256" if native else "ref_hlo_sha256"]
    argv = graph_argv(bundle.plan, target, graph["id"], compiler)
    hashes = {kernel["name"]: kernel["sha256"] for kernel in bundle.manifest["kernels"]}
    kernels = {kernel: hashes.get(kernel, "") for kernel in native}
    return job_key(hlo_sha256, argv, compiler, kernels, nki), f"graphs/{graph['id']}/{name}", argv


def is_current(bundle: Bundle, target: str, graph: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether a NEFF's record speaks of the graph, the kernels and the plan that the bundle has now."""
    native = [name for name, entry in record["kernels"].items() if entry["by"] == "nki"]
    key, _, _ = key_of(
        bundle, target, graph, native=native, compiler=record["compiler"], nki=record.get("nki") or ""
    )
    return key == record["key"]


def graph_argv(plan: Mapping[str, Any], target: str, graph: str, compiler: str) -> tuple[str, ...]:
    """The canonical command line of a graph: the plan's, and the flags that this compiler version knows."""
    entry = plan["targets"][target]
    argv = list(entry["graphs"][graph]["argv"])
    for extra in entry["version_flags"]:
        if version_pair(compiler) >= version_pair(extra["since"]):
            argv += extra["arguments"]
    return tuple(argv)


def job_key(hlo_sha256: str, argv: Sequence[str], compiler: str, kernels: Mapping[str, str], nki: str) -> str:
    """SHA-256 over everything that decides the NEFF.

    Args:
        hlo_sha256: of the bundle's file. kernels: SHA-256 of the source of every kernel that is compiled by nki.
    """
    text = json.dumps([hlo_sha256, list(argv), compiler, sorted(kernels.items()), nki if kernels else ""])
    return hashlib.sha256(text.encode()).hexdigest()
