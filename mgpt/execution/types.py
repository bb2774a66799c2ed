"""Types of the execution package; imports neither ray nor torch."""

from __future__ import annotations

from dataclasses import dataclass

# Variables by which the client tells a job what it is; the job then computes no fingerprint and submits no other job.
JOB_INPUTS = "MGPT_JOB_INPUTS"


@dataclass(frozen=True)
class JobSpec:
    """A stage's work as a Ray job.

    `name` is the stage's as DVC has it; `inputs` are paths from the project's folder, each with the run file next to
    it.
    """

    name: str
    stage: str
    model_name: str | None
    fingerprint: str
    inputs: tuple[str, ...]
