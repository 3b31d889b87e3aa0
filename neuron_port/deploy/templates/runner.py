"""Runs one phase of a neuron-port job on an EC2 instance: fetch, finish.py, upload. Python 3.10, aws CLI, no more.

Each step is written to <phase>/status.json on S3, and the log goes along every few seconds. Results go up first and the
status that names them last, with their SHA-256: a reader never sees half of them. NEFFs go up as they are finished, so
that an instance which is lost costs only the graph that it was at.
"""

import argparse
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PULSE_SECONDS = float(os.environ.get("NEURON_PORT_PULSE_SECONDS", "15"))
ATTEMPTS = 4
ENVIRONMENTS = os.environ.get("NEURON_PORT_ENVIRONMENTS", "/opt/aws_neuronx_venv_*")  # of the Neuron DLAMI


class PhaseError(Exception):
    """One sentence for status.json."""


def aws(*arguments: str) -> None:
    """`aws s3 cp ...`; a failure is repeated a few times, the last one is raised."""
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(
            ["aws", "s3", "cp", "--only-show-errors", *arguments], capture_output=True, text=True
        )
        if done.returncode == 0:
            return
        if attempt < ATTEMPTS:
            time.sleep(PULSE_SECONDS * attempt / 5)
    raise PhaseError(f"aws s3 cp {' '.join(arguments)}: {(done.stderr.strip() or 'no message')[-300:]}")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "r:gz") as tar:
        tar.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(folder)


class Phase:
    def __init__(self, options: argparse.Namespace) -> None:
        self.root, self.home, self.name = Path(options.root), options.home, options.phase
        self.bundle, self.log = self.root / "bundle", self.root / "log.txt"
        self.record: dict[str, Any] = {"phase": self.name, "attempt": int(options.attempt), "started": now()}
        self.sent: set[str] = set()
        self.over, self.lock = threading.Event(), threading.Lock()

    def say(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text + "\n")
        print(text, flush=True)

    def status(self, state: str, message: str, **more: Any) -> None:
        self.say(f"[{now()}] {state}: {message}")
        self.record |= {"state": state, "message": message, "updated": now(), **more}
        path = self.root / "status.json"
        path.write_text(json.dumps(self.record, indent=2))
        aws(str(path), f"{self.home}/{self.name}/status.json")

    def fetch(self, name: str, path: Path, sha256: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aws(f"{self.home}/{name}", str(path))
        if sha256_of(path) != sha256:
            raise PhaseError(f"{name} is not what was uploaded: its SHA-256 is another")

    def pulse(self) -> None:
        """Send the log, and the NEFFs that are finished: each before the record that makes it whole."""
        with self.lock:
            if self.log.is_file():
                aws(str(self.log), f"{self.home}/{self.name}/log.txt")
            for record in sorted(self.bundle.glob("neff/*/*.json")):
                neff = record.with_suffix(".neff")
                if record.name.startswith(".") or not neff.is_file() or sha256_of(record) in self.sent:
                    continue
                digest = sha256_of(record)
                for path in (neff, record):
                    aws(str(path), f"{self.home}/{self.name}/{path.relative_to(self.bundle)}")
                self.sent.add(digest)

    def beat(self) -> None:
        while not self.over.wait(PULSE_SECONDS):
            try:
                self.pulse()
            except PhaseError as failure:  # the next beat tries again; the end of the phase does not forgive
                self.say(f"note: {failure}")

    def prepare(self, job: dict[str, Any]) -> None:
        """Bundle, earlier NEFFs and, to check on a device, the compiled results and the weights."""
        self.status("fetching", "fetching the bundle")
        files = job["files"]
        self.fetch("bundle.tar.gz", self.root / "bundle.tar.gz", files["bundle.tar.gz"]["sha256"])
        unpack(self.root / "bundle.tar.gz", self.bundle)
        aws("--recursive", f"{self.home}/{self.name}/neff", str(self.bundle / "neff"))
        if self.name == "verify":
            aws(f"{self.home}/compile/status.json", str(self.root / "compile.json"))
            compiled = json.loads((self.root / "compile.json").read_text())
            self.fetch("compile/out.tar.gz", self.root / "compiled.tar.gz", compiled["out"]["sha256"])
            unpack(self.root / "compiled.tar.gz", self.bundle)
            for name in sorted(name for name in files if name.startswith("weights/")):
                self.status("fetching", f"fetching {name}")
                self.fetch(name, self.bundle / name, files[name]["sha256"])

    def environment(self) -> dict[str, str]:
        """PATH with neuronx-cc: as it is, or that of one of the image's virtual environments."""
        path = os.environ.get("PATH", "")
        if not shutil.which("neuronx-cc"):
            found = sorted(glob.glob(f"{ENVIRONMENTS}/bin/neuronx-cc"))  # noqa: PTH207  (the pattern is absolute)
            if not found:
                raise PhaseError(
                    f"the machine image has no neuronx-cc on PATH or in {ENVIRONMENTS}; give another --image"
                )
            path = f"{Path(found[0]).parent}:{path}"
        library = ":".join(filter(None, ("/opt/aws/neuron/lib", os.environ.get("LD_LIBRARY_PATH"))))
        return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": library}

    def nrtpy_python(self, job: dict[str, Any]) -> str:
        """An interpreter that has nrtpy: the one named, or a fresh environment (nrtpy cannot share one with nki)."""
        if named := os.environ.get("NEURON_PORT_NRTPY_PYTHON"):
            return named
        self.status("preparing", "installing nrtpy")
        folder = self.root / "nrtpy"
        index = ["--extra-index-url", job["pip_index"]] if job.get("pip_index") else []
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin/pip"), "install", "--quiet", *index, "numpy", job["nrtpy"]],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise PhaseError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-300:]}")
        return str(folder / "bin/python")

    def finish(self, job: dict[str, Any]) -> int:
        """Run the bundle's own finish.py; its output is the log."""
        command = [sys.executable, "build/finish.py", "--target", job["target"], *job["finish"]]
        if self.name == "verify":
            command += ["--nrtpy-python", self.nrtpy_python(job)]
        environment = self.environment()
        self.status("running", " ".join(command[1:]))
        with self.log.open("a") as log:
            return subprocess.run(
                command, cwd=self.bundle, env=environment, stdout=log, stderr=log
            ).returncode

    def results(self) -> dict[str, Any]:
        """Pack what finish.py made; {} when it made nothing."""
        archive = self.root / "out.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name in ("neff", "device", "neuron_port.json"):
                if (self.bundle / name).exists():
                    tar.add(self.bundle / name, arcname=name)
        aws(str(archive), f"{self.home}/{self.name}/out.tar.gz")
        return {"sha256": sha256_of(archive), "bytes": archive.stat().st_size}

    def run(self) -> int:
        aws(f"{self.home}/job.json", str(self.root / "job.json"))
        job = json.loads((self.root / "job.json").read_text())
        self.prepare(job)
        beating = threading.Thread(target=self.beat, daemon=True)
        beating.start()
        try:
            code = self.finish(job)
        finally:
            self.over.set()
            beating.join()
        self.status("uploading", "uploading the results")
        out = self.results()
        self.pulse()
        state = json.loads((self.bundle / "neuron_port.json").read_text())["state"]
        if code == 0 and (self.name == "compile" or state == "device-verified"):
            self.status("done", f"the bundle is {state}", exit_code=code, out=out)
            return 0
        said = self.log.read_text(errors="replace").splitlines()
        errors = [
            line for line in said if "error" in line.lower() or "DISAGREES" in line or "skipped:" in line
        ]
        why = (errors or said or ["no message"])[-1].strip()
        self.status(
            "failed", f"finish.py ended with {code}, the bundle is {state}: {why}", exit_code=code, out=out
        )
        return 1


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: UP017  (Python 3.10)


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("root", "home", "phase", "attempt"):
        parser.add_argument(f"--{name}", required=True)
    phase = Phase(parser.parse_args())
    try:
        return phase.run()
    except Exception as error:  # whatever it is, whoever waits must hear of it
        why = str(error) if isinstance(error, PhaseError) else traceback.format_exc(limit=-3)
        phase.status("failed", why, exit_code=None)
        phase.pulse()
        return 1


if __name__ == "__main__":
    sys.exit(main())
