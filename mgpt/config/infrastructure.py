"""Settings of the `storage` and `cluster` sections, which are part of no fingerprint: where work runs changes no
result.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from mgpt.config.base import Section, rule_error
from mgpt.config.training import WorkerSettings

STORE_SCHEMES = ("s3://", "gs://", "gcs://", "az://", "abfs://", "memory://")  # other than s3 need their fsspec package


class StorageSettings(Section):
    """The store, which holds data, live checkpoints and finished outputs."""

    root: Annotated[str, Field(min_length=1)] = "store"  # a local folder, or s3://bucket/prefix

    @field_validator("root")
    @classmethod
    def _has_known_scheme(cls, root: str) -> str:
        if "://" in root and not root.startswith(STORE_SCHEMES):
            raise rule_error(
                f"a local folder, or a URI with one of {', '.join(STORE_SCHEMES)}",
                "use a folder or s3://bucket/prefix; S3-compatible servers are reached through AWS_ENDPOINT_URL",
            )
        return root


class ClusterSettings(Section):
    """The Ray that stages use: a local one that they share, or a cluster to which each stage is submitted as a job."""

    address: str = ""  # of the job server, for instance http://head:8265; empty: a local Ray
    cpus: Annotated[int, Field(ge=0)] = 0  # CPUs of the local Ray; 0: as many as the machine has, at least two
    object_store_mb: Annotated[int, Field(ge=80)] = 400  # shared memory of the local Ray
    idle_minutes: Annotated[float, Field(gt=0)] = 10.0  # the local Ray stops when no stage has used it for so long
    upload_limit_mb: Annotated[float, Field(gt=0)] = 50.0  # a larger working folder is refused before it is sent
    training: WorkerSettings = WorkerSettings()  # the worker group of a training stage

    @field_validator("address")
    @classmethod
    def _is_http(cls, address: str) -> str:
        if address and not address.startswith(("http://", "https://")):
            raise rule_error(
                "empty, or the http(s) address of the job server",
                "use http://HEAD:8265, the address that `ray job submit` takes",
            )
        return address.rstrip("/")
