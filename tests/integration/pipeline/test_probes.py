"""Probes of the store, the tracking server and the cluster's job server."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mgpt.config import load_settings, read_settings
from mgpt.pipeline.probes import probe_cluster, probe_services, probe_store, probe_tracking

ROOT = Path(__file__).parents[3]
CLOSED = "http://127.0.0.1:9"  # nothing listens on the discard port


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that has MLflow's and Ray's version endpoints and accepts one token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in ("/version", "/api/version")
            allowed = self.headers.get("Authorization") == "Bearer secret"
            self.send_response(200 if known and allowed else 401 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"version": "1"}).encode())

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def settings(**variables: str):
    return load_settings("params.yaml", {f"MGPT_{name}": value for name, value in variables.items()})


def test_default_services_respond() -> None:
    assert not probe_services(read_settings("params.yaml", {})).issues
    assert not list(Path("store").iterdir())
    assert not Path("mlflow.db").exists()


def test_every_dead_service_is_reported() -> None:
    Path("file").write_text("")
    environment = {
        "MGPT_STORAGE__ROOT": "file/store",
        "MGPT_TRACKING__URI": CLOSED,
        "MGPT_CLUSTER__ADDRESS": CLOSED,
    }
    found = probe_services(read_settings("params.yaml", environment)).issues
    assert {issue.key: issue.source for issue in found} == {
        "storage.root": "MGPT_STORAGE__ROOT",
        "tracking.uri": "MGPT_TRACKING__URI",
        "cluster.address": "MGPT_CLUSTER__ADDRESS",
    }


def test_service_with_wrong_settings_is_not_probed() -> None:
    found = probe_services(read_settings("params.yaml", {"MGPT_CLUSTER__ADDRESS": "head:8265"})).issues
    assert [issue.key for issue in found] == ["cluster.address"]


def test_servers_need_their_token(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(TRACKING__URI=server, CLUSTER__ADDRESS=server)
    for probe in (probe_tracking, probe_cluster):
        issue = probe(chosen)
        assert issue is not None
        assert "401" in issue.rule
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert probe_tracking(chosen) is None
    assert probe_cluster(chosen) is None


def test_ray_token_is_read_from_its_file(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("token").write_text("secret\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "token")
    assert probe_cluster(settings(CLUSTER__ADDRESS=server)) is None


def test_another_server_is_not_mlflow(server: str) -> None:
    issue = probe_tracking(settings(TRACKING__URI=f"{server}/elsewhere"))
    assert issue is not None
    assert "404" in issue.rule


def test_damaged_database_is_reported() -> None:
    Path("mlflow.db").write_bytes(b"x" * 4096)
    issue = probe_tracking(settings())
    assert issue is not None
    assert "not a database" in issue.rule


def test_existing_database_is_not_changed() -> None:
    with sqlite3.connect("mlflow.db") as connection:
        connection.execute("create table x (y)")
    before = Path("mlflow.db").read_bytes()
    assert probe_tracking(settings()) is None
    assert Path("mlflow.db").read_bytes() == before


def test_store_on_s3(bucket: str) -> None:
    assert probe_store(settings(STORAGE__ROOT=f"{bucket}/prefix")) is None
    issue = probe_store(settings(STORAGE__ROOT="s3://no-such-bucket-here/prefix"))
    assert issue is not None
    assert issue.key == "storage.root"
