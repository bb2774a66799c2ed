"""Access of this project's clients to an S3-compatible server: one set of options, from the usual `AWS_*` variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def s3_options(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Returns the keywords of `s3fs.S3FileSystem`.

    Reads `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_REGION` or `AWS_DEFAULT_REGION`, `AWS_PROFILE` and
    `AWS_CA_BUNDLE`. Keys are found by botocore itself. Listings are not cached, since other processes write to the same
    prefixes.
    """
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    client = {"region_name": region, "verify": environment.get("AWS_CA_BUNDLE")}
    return {
        "endpoint_url": environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"),
        "profile": environment.get("AWS_PROFILE"),
        "client_kwargs": {name: value for name, value in client.items() if value},
        "use_listings_cache": False,
        "skip_instance_cache": True,
    }


def lance_options(uri: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns Lance's storage options for a URI, equal in meaning to `s3_options`; none unless it is on S3.

    Keys are found as botocore finds them (environment, profile, instance), since Lance does not read profiles.
    """
    if not uri.startswith("s3://"):
        return {}
    import botocore.session

    options = s3_options(environment)
    session = botocore.session.Session(profile=options["profile"])
    found = {
        "aws_endpoint": options["endpoint_url"],
        "aws_region": options["client_kwargs"].get("region_name") or session.get_config_variable("region"),
        "allow_http": str(str(options["endpoint_url"]).startswith("http://")).lower(),
    }
    if (keys := session.get_credentials()) is not None:
        frozen = keys.get_frozen_credentials()
        found |= {
            "aws_access_key_id": frozen.access_key,
            "aws_secret_access_key": frozen.secret_key,
            "aws_session_token": frozen.token,
        }
    return {name: value for name, value in found.items() if value}
