"""The script that an instance runs by itself: a bash frame that ends the instance, around a Python runner."""

from __future__ import annotations

import re
from pathlib import Path

from neuron_port.deploy.job import Job, Phase

TEMPLATES = Path(__file__).parent / "templates"
LARGEST_BYTES = 16_384  # EC2 user guide: raw user data


def phase_script(job: Job, phase: Phase, *, region: str, attempt: int, minutes: int) -> str:
    """User data for one phase of a job. `minutes` is when the instance ends itself at the latest."""
    values = {
        "JOB": job.id, "PHASE": phase.name, "REGION": region, "ATTEMPT": str(attempt), "MINUTES": str(minutes),
        "SECONDS": str(60 * minutes), "HOME": str(job.options.remote.below(job.id)),
        "RUNNER": (TEMPLATES / "runner.py").read_text(encoding="utf-8").rstrip(),
    }  # fmt: skip
    return filled((TEMPLATES / "user_data.sh").read_text(encoding="utf-8"), values)


def filled(template: str, values: dict[str, str]) -> str:
    """The template with @NAME@ replaced; a name that has no value is a fault of ours."""
    text = re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], template)
    assert len(text.encode()) <= LARGEST_BYTES, f"user data has {len(text.encode())} bytes"
    return text
