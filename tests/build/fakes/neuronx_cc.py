"""A stand-in for `neuronx-cc`: strict about its command line, checks the HLO, writes a NEFF.

FAKE_CC (JSON, in the environment) steers it: "version"; "fail": graph id -> how; "refused_kernels": kernel -> the
line of the log that refuses a graph with it; "io": graphs/ of the bundle, whose io.json says what the interface must be;
"calls": a file to which each compilation adds a line. The NEFF holds the interface and the graph's twin, so that the
stand-in for nrtpy can run it.
"""

import base64
import json
import os
import re
import signal
import struct
import sys
import time
from pathlib import Path

STEER = json.loads(os.environ.get("FAKE_CC", "{}"))
VALUES = {  # aws-neuron-sdk, compiler/neuronx-cc/api-reference-guide
    "--framework": {"XLA"}, "--target": {"inf2", "trn1", "trn1n", "trn2"},
    "--model-type": {"generic", "transformer", "unet-inference"}, "--auto-cast": {"none", "matmult", "all"},
    "--auto-cast-type": {"bf16", "fp16", "tf32", "fp8_e4m3"},
    "--native-int64": {"default", "enabled", "disabled"},
    "--implicit-integer-downcast": {"default", "all", "none"}, "--distribution-strategy": {"llm-training"},
    "--lnc": {"1", "2"}, "--logical-nc-config": {"1", "2"}, "-O": {"1", "2", "3"}, "--optlevel": {"1", "2", "3"},
    "--output": None, "--logfile": None, "--verbose": {"info", "warning", "error", "critical", "debug"},
}  # fmt: skip
SWITCHES = {
    "--enable-saturate-infinity",
    "--enable-fast-loading-neuron-binaries",
    "--enable-fast-context-switch",
    "--enable-mixed-precision-accumulation",
    "--disable-mixed-precision-accumulation",
}
CUSTOM_CALLS = {"AwsNeuronCustomNativeKernel", "AwsNeuronTopK", "AwsNeuronRmsNorm"}
TYPES = {1: "bool", 2: "int8", 3: "int16", 4: "int32", 6: "uint8", 10: "float16", 11: "float32", 16: "bfloat16",
         19: "float8_e5m2", 20: "float8_e4m3fn"}  # fmt: skip
LITERAL_LIMIT_BYTES = 1024


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
    release = tuple(map(int, STEER["version"].split(".")[:2]))
    if {"--lnc", "--logical-nc-config"} & set(options) and options["--target"] != "trn2":
        refuse("[NCC_EARG001] Unsupported Logical Neuron Core configuration")
    for name in ("--implicit-integer-downcast", "--native-int64"):
        if name in options and release < (2, 27):
            refuse(f"unrecognized arguments: {name}", 2)
    if "--native-int64" in options and options["--target"] != "trn2":
        refuse("--native-int64 is only available on trn2 and later", 2)
    if "--auto-cast-type" in options and "--auto-cast" not in options:
        refuse("--auto-cast-type goes with --auto-cast", 2)
    if not Path(files[0]).is_absolute():
        refuse(f"model file is not an absolute path: {files[0]}")  # nkipy: the compiler changes its directory
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


def numbers(value: int | bytes) -> list[int]:
    """A repeated number, packed or not."""
    if isinstance(value, int):
        return [value]
    found, number, shift = [], 0, 0
    for byte in value:
        number, shift = number | (byte & 127) << shift, shift + 7
        if byte < 128:
            found.append(number)
            number = shift = 0
    return found


def shape_of(data: bytes) -> list:
    """[dtype, [sizes]] of an array; ["tuple", [members]] of a tuple."""
    found = list(fields(data))
    kind = dict(found).get(2)
    if kind == 13:
        return ["tuple", [shape_of(value) for key, value in found if key == 4]]
    if kind not in TYPES:
        refuse(f"[NCC_ESPP004] element type {kind} is not supported")
    return [TYPES[kind], [size for key, value in found if key == 3 for size in numbers(value)]]


def attribute(instruction: dict, wanted: str) -> str:
    """A frontend attribute of an instruction."""
    for key, pair in fields(instruction.get(68, b"")):
        entry = dict(fields(pair))
        if key == 1 and entry.get(1, b"").decode() == wanted:
            return entry.get(2, b"").decode()
    return ""


class Hlo:
    """A HloModuleProto, checked as XLA's own reader and neuronx-cc's documents say."""

    def __init__(self, data: bytes) -> None:
        module = list(fields(data))
        self.entry_id = dict(module).get(6, 0)
        self.computations = {}
        ids: set[int] = set()
        names: set[bytes] = set()
        for key, value in module:
            if key == 3:
                items = list(fields(value))
                body = [(dict(fields(item)), list(fields(item))) for inner, item in items if inner == 2]
                self.check_body(body, ids, names)
                root = dict(items)[6]
                if root not in [found[35] for found, _ in body]:
                    refuse(f"RET_CHECK failure root {root} is not in its computation")
                self.computations[dict(items)[5]] = (root, body)
        if self.entry_id not in self.computations:
            refuse("RET_CHECK failure no entry computation")
        if 4 not in dict(module):
            refuse("RET_CHECK failure has_host_program_shape: No program shape found in the proto")
        self.check_calls()
        self.aliases = self.read_aliases(dict(module).get(8, b""))

    def check_body(self, body: list, ids: set[int], names: set[bytes]) -> None:
        here: set[int] = set()
        for found, every in body:
            if not 0 < found[35] <= 2**31 - 1:
                refuse(f"RET_CHECK failure proto.id() <= INT_MAX: Instruction with id > INT_MAX: {found[35]}")
            if found[35] in ids or found[1] in names:
                refuse(f"RET_CHECK failure Instruction name is not unique: {found[1].decode()}")
            operands = [operand for key, value in every if key == 36 for operand in numbers(value)]
            if not set(operands) <= here:
                refuse(
                    f"RET_CHECK failure no instruction with id {sorted(set(operands) - here)} before {found[1]}"
                )
            here.add(found[35])
            ids.add(found[35])
            names.add(found[1])
            shape_of(found[3])
            if found[2] == b"constant" and len(found.get(8, b"")) > LITERAL_LIMIT_BYTES + 64:
                refuse(f"literal of {len(found[8])} bytes")

    def check_calls(self) -> None:
        called = {self.entry_id}
        for _, body in self.computations.values():
            for found, every in body:
                called |= {number for key, value in every if key == 38 for number in numbers(value)}
                if found[2] == b"custom-call":
                    self.check_custom_call(found)
        if called != set(self.computations):
            refuse(
                f"computations that are called {sorted(called)} and that are there {sorted(self.computations)}"
            )

    def check_custom_call(self, found: dict) -> None:
        target = found[28].decode()
        if target not in CUSTOM_CALLS:
            refuse(f"[NCC_EVRF015] custom call target {target} is not recognized")
        if target == "AwsNeuronCustomNativeKernel":
            config = json.loads(base64.b64decode(found[43], validate=True))
            if 38 in found:
                refuse("a native kernel calls no computation")
            if not Path(config["binary"]).is_file():
                refuse(f"[NCC_EVRF059] kernel file {config['binary']} does not exist")
            self.kernels.append(config["func_name"])

    kernels: list[str] = []

    def entry(self, opcode: bytes) -> list[dict]:
        return [found for found, _ in self.computations[self.entry_id][1] if found[2] == opcode]

    def inputs(self) -> dict[str, list]:
        """Name -> [dtype, sizes] of the parameters, in their order."""
        parameters = sorted(self.entry(b"parameter"), key=lambda found: found.get(9, 0))
        if [found.get(9, 0) for found in parameters] != list(range(len(parameters))):
            refuse("parameter numbers are not 0, 1, 2 ..")
        named = {attribute(found, "neff_input_names"): shape_of(found[3]) for found in parameters}
        if len(named) != len(parameters) or "" in named:
            refuse("every parameter needs a neff_input_names of its own")
        return named

    def outputs(self) -> dict[str, list]:
        """Name -> [dtype, sizes] of the results, in their order."""
        root_id = self.computations[self.entry_id][0]
        root = next(found for found, _ in self.computations[self.entry_id][1] if found[35] == root_id)
        kind, members = shape_of(root[3])
        names = attribute(root, "neff_output_names").split(",")
        if kind != "tuple" or len(set(names)) != len(members) or "" in names:
            refuse(f"the root is no tuple with a name for each of its members: {names}")
        return dict(zip(names, members))

    def read_aliases(self, data: bytes) -> dict[int, int]:
        """Output index -> parameter number."""
        found = {}
        for key, value in fields(data):
            entry = list(fields(value))
            index = [number for inner, item in entry if inner == 1 for number in numbers(item)]
            if key != 1 or len(index) != 1 or dict(entry).get(4) != 2:
                refuse("an alias names one member of the root and is a MUST_ALIAS")
            found[index[0]] = dict(entry).get(2, 0)
        if len(set(found.values())) != len(found):
            refuse("two outputs alias one parameter")
        return found


def check_interface(hlo: Hlo, graph: str) -> dict:
    """What a NEFF says of itself, checked against the bundle's io.json."""
    inputs, outputs = hlo.inputs(), hlo.outputs()
    aliases = {list(outputs)[output]: list(inputs)[parameter] for output, parameter in hlo.aliases.items()}
    for output, name in aliases.items():
        if outputs[output] != inputs[name]:
            refuse(f"{output} aliases {name} of another shape")
    path = Path(STEER["io"]) / graph / "io.json"
    if path.is_file():
        io = json.loads(path.read_text())
        described = ({i["name"]: [i["dtype"], i["shape"]] for i in io["inputs"]},
                     {o["name"]: [o["dtype"], o["shape"]] for o in io["outputs"]},
                     {o["name"]: o["alias_of"] for o in io["outputs"] if o["alias_of"]})  # fmt: skip
        if described != (inputs, outputs, aliases) or list(described[0]) != list(inputs):
            refuse(f"the HLO and io.json disagree: {described} and {(inputs, outputs, aliases)}")
    return {"inputs": inputs, "outputs": outputs, "aliases": aliases}


def compile_graph(arguments: list[str]) -> None:
    path, options = parse(arguments)
    graph = Path.cwd().parent.name
    data = Path(path).read_bytes()
    hlo = Hlo(data)
    kernels = list(dict.fromkeys(hlo.kernels))
    with Path(STEER["calls"]).open("a") as calls:
        call = {
            "graph": graph,
            "argv": arguments,
            "env": sorted(os.environ),
            "kernels": kernels,
            "pid": os.getpid(),
        }
        calls.write(json.dumps(call) + "\n")
    described = check_interface(hlo, graph)
    play(STEER.get("fail", {}).get(graph, ""), kernels, options)
    refused = [name for name in kernels if name in STEER.get("refused_kernels", {})]
    if refused:
        words = STEER["refused_kernels"][refused[0]]
        Path(options["--logfile"]).write_text(f"INFO kernels: {kernels}\nERROR {words}\n")
        refuse("Compilation failed")
    twin = Path(STEER["io"]) / graph / "graph.ref.hlo.pb"
    described |= {"target": options["--target"], "kernels": kernels, "compiler": STEER["version"]}
    payload = json.dumps(described).encode() + b"\0" + (twin.read_bytes() if twin.is_file() else b"")
    neff = struct.pack("<5Q", 2, 1024, len(payload), 2, 0).ljust(1024, b"\0") + payload
    truncated = STEER.get("fail", {}).get(graph) == "truncated"
    Path(options["--output"]).write_bytes(neff[:-10] if truncated else neff)


def play(how: str, kernels: list[str], options: dict[str, str]) -> None:
    """Fail, hang or die as the test wants."""
    if how == "memory":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how.startswith("hang"):
        print("tiling layer 7 of 30", flush=True)
        Path(STEER["calls"] + ".hanging").touch()
        time.sleep(600)
    if how.startswith("NCC_") and (kernels or not how.endswith("+kernels")):
        Path(options["--logfile"]).write_text(f"... [{how.removesuffix('+kernels')}] something was refused\n")
        refuse("Compilation failed")


if sys.argv[1:] == ["--version"]:
    print(f"NeuronX Compiler version {STEER['version']}\n\nPython version 3.11.0")
elif sys.argv[1:2] == ["compile"]:
    compile_graph(sys.argv[2:])
else:
    refuse(f"unknown command {sys.argv[1:]}", 2)
