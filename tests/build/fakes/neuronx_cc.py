"""A stand-in for `neuronx-cc`: strict about its command line, checks the HLO, writes a NEFF.

FAKE_CC (JSON, in the environment) steers it: "version"; "fail": graph id -> how; "io": graphs/ of the bundle,
whose io.json says how many parameters there must be; "calls": a file to which each compilation adds a line.
"""

import json
import os
import re
import signal
import struct
import sys
import time
from pathlib import Path

STEER = json.loads(os.environ.get("FAKE_CC", "{}"))
VALUES = {
    "--framework": {"XLA"}, "--target": {"inf2", "trn1", "trn1n", "trn2"},
    "--model-type": {"generic", "transformer", "unet-inference"}, "--auto-cast": {"none", "matmult", "all"},
    "--native-int64": {"default", "enabled", "disabled"},
    "--implicit-integer-downcast": {"default", "all", "none"},
    "--lnc": {"1", "2"}, "-O": {"1", "2", "3"}, "--output": None, "--logfile": None,
    "--verbose": {"info", "warning", "error", "critical", "debug"},
}  # fmt: skip
SWITCHES = {
    "--enable-saturate-infinity",
    "--enable-fast-loading-neuron-binaries",
    "--enable-fast-context-switch",
}
CUSTOM_CALLS = {"AwsNeuronCustomNativeKernel", "AwsNeuronTopK", "AwsNeuronRmsNorm"}


def refuse(message: str, status: int = 70) -> None:
    print(f"ERROR:neuronxcc.driver.CommandDriver:{message}", file=sys.stderr)
    sys.exit(status)


def parse(arguments: list[str]) -> tuple[str, dict[str, str]]:
    files, options = [], {}
    rest = iter(arguments)
    for part in rest:
        name, equals, value = part.partition("=")
        if re.fullmatch(r"-O\d", part):
            name, value = "-O", part[2:]
        elif not part.startswith("-"):
            files.append(part)
            continue
        elif part in SWITCHES:
            options[part] = "true"
            continue
        elif name in VALUES and not equals:
            value = next(rest, "")
        if name not in VALUES:
            refuse(f"unrecognized arguments: {part}", 2)
        if not value or (VALUES[name] is not None and value not in VALUES[name]):
            refuse(f"argument {name}: invalid choice: {value}", 2)
        options[name] = value
    if len(files) != 1 or "--framework" not in options or "--target" not in options:
        refuse("one model file, --framework and --target are required", 2)
    if "--lnc" in options and options["--target"] != "trn2":
        refuse("NCC_EARG001 Unsupported Logical Neuron Core configuration")
    if (
        tuple(map(int, STEER["version"].split(".")[:2])) < (2, 27)
        and "--implicit-integer-downcast" in options
    ):
        refuse("unrecognized arguments: --implicit-integer-downcast", 2)
    return files[0], options


def fields(data: bytes):
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 2:
            size = varint()
            assert at + size <= len(data), "truncated protobuf"
            yield key >> 3, data[at : at + size]
            at += size
        else:
            raise AssertionError(f"wire type {key & 7}")


def check_hlo(data: bytes, graph: str) -> list[str]:
    module = list(fields(data))
    entry = dict(module)[6]
    computations = [dict(fields(value)) | {"all": list(fields(value))} for key, value in module if key == 3]
    assert entry in [found[5] for found in computations], "no entry computation"
    parameters = []
    for computation in computations:
        for key, value in computation["all"]:
            if key != 2:
                continue
            found = dict(fields(value))
            if not 0 < found[35] <= 2**31 - 1:
                refuse(f"RET_CHECK failure proto.id() <= INT_MAX: Instruction with id > INT_MAX: {found[35]}")
            if found[2] == b"custom-call" and found[28].decode() not in CUSTOM_CALLS:
                refuse(f"[NCC_EVRF015] custom call target {found[28].decode()} is not recognized")
            if found[2] == b"parameter" and computation[5] == entry:
                parameters.append(found[1].decode())
    wanted = json.loads((Path(STEER["io"]) / graph / "io.json").read_text())["inputs"]
    assert len(parameters) == len(wanted), f"{len(parameters)} parameters, io.json has {len(wanted)}"
    return parameters


def compile_graph(arguments: list[str]) -> None:
    path, options = parse(arguments)
    graph = Path.cwd().parent.name
    with Path(STEER["calls"]).open("a") as calls:
        calls.write(json.dumps({"graph": graph, "argv": arguments, "env": sorted(os.environ)}) + "\n")
    data = Path(path).read_bytes()
    names = check_hlo(data, graph)
    how = STEER.get("fail", {}).get(graph, "")
    if how == "memory":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        Path(STEER["calls"] + ".hanging").touch()
        time.sleep(600)
    if how.startswith("NCC_") and not (
        how.endswith("+kernels") and b"AwsNeuronCustomNativeKernel" not in data
    ):
        Path(options["--logfile"]).write_text(f"... [{how.removesuffix('+kernels')}] something was refused\n")
        refuse("Compilation failed")
    payload = json.dumps({"target": options["--target"], "inputs": names}).encode()
    neff = struct.pack("<5Q", 2, 1024, len(payload), 2, 0).ljust(1024, b"\0") + payload
    Path(options["--output"]).write_bytes(neff[:-10] if how == "truncated" else neff)


if sys.argv[1:] == ["--version"]:
    print(f"NeuronX Compiler version {STEER['version']}\n\nPython version 3.11.0")
elif sys.argv[1:2] == ["compile"]:
    compile_graph(sys.argv[2:])
else:
    refuse(f"unknown command {sys.argv[1:]}", 2)
