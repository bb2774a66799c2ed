"""Where things run and lie: `storage` and `cluster`. Neither is part of a stage's fingerprint: the same work elsewhere is the same work."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from mgpt.config.base import Section, mistake
from mgpt.config.training import WorkerSettings


class StorageSettings(Section):
    """The store that holds data, live checkpoints and finished outputs."""

    root: Annotated[str, Field(min_length=1)] = "store"  # a local folder, or s3://bucket/prefix

    @field_validator("root")
    @classmethod
    def _known_scheme(cls, root: str) -> str:
        if root.startswith(("http://", "https://")):
            raise mistake(
                "a local folder or s3://bucket/prefix",
                "write one of the two; S3-compatible servers are reached through AWS_ENDPOINT_URL",
            )
        return root


class ClusterSettings(Section):
    """The Ray that stages use: a local one that they share, or a cluster to which each stage submits itself as a job."""

    address: str = ""  # the job server's address, as http://head:8265; empty: a local Ray
    cpus: Annotated[int, Field(ge=0)] = (
        0  # CPUs that the local Ray hands out; 0: as many as the machine has, two at least
    )
    object_store_mb: Annotated[int, Field(ge=80)] = 400  # shared memory of the local Ray
    idle_minutes: Annotated[float, Field(gt=0)] = (
        10.0  # the local Ray ends by itself when no stage has used it for so long
    )
    upload_limit_mb: Annotated[float, Field(gt=0)] = 50.0  # a larger working folder is refused before anything is sent
    training: WorkerSettings = WorkerSettings()  # the worker group of a training stage

    @field_validator("address")
    @classmethod
    def _http(cls, address: str) -> str:
        if address and not address.startswith(("http://", "https://")):
            raise mistake(
                "empty, or the job server's http(s) address",
                "write http://HEAD:8265, the address that `ray job submit` takes",
            )
        return address.rstrip("/")
