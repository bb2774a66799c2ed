"""A web server that fails on purpose, and the S3 server behind a proxy that does the same."""

from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest

from mgpt import storage
from tests.data.download.faulty import Faults, FileHandler, ProxyHandler, serve


@pytest.fixture
def web() -> Iterator[ThreadingHTTPServer]:
    """Serves `web.files` (path -> bytes); `web.faults` may be replaced; `web.requests` lists (path, range)."""
    server = serve(FileHandler, files={}, faults=Faults(0.0), requests=[])
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def faulty_s3(bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """The S3 server through a proxy that lets the methods `failing` (reads) fail as `faults` says; `bucket` is `s3://name`."""
    proxy = serve(
        ProxyHandler, port_behind=int(s3_endpoint.rsplit(":", 1)[1]), faults=Faults(0.0), failing=("GET",), left_to_answer=-1, bucket=bucket
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    storage._s3.cache_clear()  # a client belongs to the endpoint that it was made for
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    storage._s3.cache_clear()
