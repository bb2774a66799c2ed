"""Reads random rows of curated shards as training does: rows a second, bytes read per byte used, memory, requests.

`python benchmarks/data_feed.py [--rows 2000] [--shards 1 8 64] [--results benchmarks/results/data_feed.json]`

Shards of 50 kB rows lie on local disk, on an S3 server (moto, in a process of its own), and on the same server behind
30 ms of added latency. Plain concurrent range requests of 50 kB on the same server in the same run are what S3 figures
are compared with. Every measurement runs in a process of its own, since memory is part of it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mgpt.data.shards import RowReader, write_shard
from mgpt.data.types import IMAGE_BYTES, Sample, SampleImage, Turn
from mgpt.storage import Store

ROW_BYTES = 50_000
BATCH = 256  # rows of one global batch
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def write(root: str, number: int, rows: int) -> None:
    """Writes shard `number` below `root`: captions of images that are random bytes."""
    rng = np.random.default_rng(number)
    samples = (
        Sample.create(
            dataset="made",
            split="train",
            task="caption",
            images=(SampleImage(rng.bytes(ROW_BYTES), 448, 448),),
            turns=(Turn("user", ""), Turn("assistant", f"image {row} of shard {number}")),
        )
        for row in range(rows)
    )
    write_shard(Store(root), f"{root}/{number:05d}.lance", samples)


def measure(root: str, shards: int, rows: int, steps: int) -> dict[str, float]:
    """Reads `steps` random batches over the first `shards` files below `root`; in a process of its own."""
    reader, rng, process = RowReader(), np.random.default_rng(1), psutil.Process()
    wanted = [
        [(f"{root}/{int(rng.integers(shards)):05d}.lance", int(rng.integers(rows))) for _ in range(BATCH)]
        for _ in range(steps + 1)
    ]
    reader.rows(wanted[0])
    before, began = process.io_counters().read_chars, time.perf_counter()
    for batch in wanted[1:]:
        assert all(len(row[IMAGE_BYTES][0]) == ROW_BYTES for row in reader.rows(batch))
    seconds = time.perf_counter() - began
    read = process.io_counters().read_chars - before
    return {
        "rows_per_second": steps * BATCH / seconds,
        "amplification": read / (steps * BATCH * ROW_BYTES),
        "rss_mb": process.memory_info().rss / 1e6,
    }


def raw_requests(address: str, path: str, size: int, count: int) -> float:
    """Returns plain range requests of 50 kB a second, 16 at a time, to one S3 object."""
    starts = np.random.default_rng(2).integers(0, size - ROW_BYTES, count)
    host, port = address.removeprefix("http://").split(":")
    local = threading.local()

    def get(start: int) -> int:
        if not hasattr(local, "connection"):
            local.connection = HTTPConnection(host, int(port))
        local.connection.request("GET", path, headers={"Range": f"bytes={start}-{start + ROW_BYTES - 1}"})
        return len(local.connection.getresponse().read())

    with ThreadPoolExecutor(16) as pool:
        began = time.perf_counter()
        assert all(length == ROW_BYTES for length in pool.map(get, map(int, starts)))
    return count / (time.perf_counter() - began)


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to an S3 server after a pause, and counts them."""

    protocol_version = "HTTP/1.1"
    target, pause, requests = "", 0.0, 0
    local = threading.local()

    def pass_on(self) -> None:
        type(self).requests += 1
        time.sleep(self.pause)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = self._connection()
        connection.request(self.command, self.path, body=body, headers=dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header(
            "Content-Length", answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        )
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

    def _connection(self) -> HTTPConnection:
        if not hasattr(self.local, "connection"):
            self.local.connection = HTTPConnection(self.target)
        return self.local.connection

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def proxy(target: str, pause: float) -> Iterator[tuple[str, type[Proxy]]]:
    """Runs a counting proxy; gives its address and handler class."""
    handler = type(
        "Handler",
        (Proxy,),
        {"target": target.removeprefix("http://"), "pause": pause, "requests": 0, "local": threading.local()},
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        server.shutdown()


@contextmanager
def s3_server() -> Iterator[str]:
    """Runs a moto S3 server with a bucket `feed` in a process of its own; gives its address."""
    import boto3

    port = 28811
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                boto3.client("s3", endpoint_url=address).create_bucket(Bucket="feed")
                break
            except Exception:
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(10)


def apart(root: str, shards: int, rows: int, steps: int, endpoint: str = "") -> dict[str, float]:
    """Runs `measure` in a new process, for which S3 is at an endpoint."""
    arguments = json.dumps([root, shards, rows, steps])
    environment = os.environ | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})
    command = [sys.executable, __file__, "--measure", arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_s3(rows: int, shards: list[int], steps: int) -> dict[str, Any]:
    """Compares rows from an S3 server with plain requests to it, without and with 30 ms of latency."""
    found: dict[str, Any] = {}
    with s3_server() as server:
        os.environ["AWS_ENDPOINT_URL"] = server
        for number in range(max(shards)):
            write("s3://feed", number, rows)
        import boto3

        boto3.client("s3", endpoint_url=server).put_bucket_acl(Bucket="feed", ACL="public-read-write")
        size = boto3.client("s3", endpoint_url=server).head_object(Bucket="feed", Key="00000.lance")["ContentLength"]
        for pause in (0.0, 0.03):
            with proxy(server, pause) as (address, handler):
                raw = raw_requests(address, "/feed/00000.lance", size, steps * BATCH // 2)
                handler.requests = 0
                ours = apart("s3://feed", max(shards), rows, steps, address)
                ours["requests_per_row"] = handler.requests / ((steps + 1) * BATCH)
                raw = max(raw, raw_requests(address, "/feed/00000.lance", size, steps * BATCH // 2))
            found[f"s3_{int(pause * 1000)}ms"] = ours | {
                "raw_requests_per_second": raw,
                "of_raw_requests": ours["rows_per_second"] / raw,
            }
    return found


def main() -> None:
    """Measures and prints; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--s3-rows", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", type=int, default=10_000, help="one-row shards for the memory test")
    parser.add_argument("--measure")
    parser.add_argument("--results", type=Path)
    asked = parser.parse_args()
    os.environ.update({name: value for name, value in KEYS.items() if name not in os.environ})
    if asked.measure:
        print(json.dumps(measure(*json.loads(asked.measure))))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(max(asked.shards)):
            write(folder, number, asked.rows)
        for shards in asked.shards:
            found[f"local_{shards}"] = apart(folder, shards, asked.rows, asked.steps)
            print(f"local, {shards} shards: {found[f'local_{shards}']}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.tiny):
            write(folder, number, 1)
        found["tiny"] = apart(folder, asked.tiny, 1, 2 * asked.tiny // BATCH)
        print(f"local, {asked.tiny} shards of a row: {found['tiny']}", flush=True)
    found |= measure_s3(asked.s3_rows, asked.shards, asked.steps)
    first, last = (found[f"local_{n}"] for n in (min(asked.shards), max(asked.shards)))
    summary = {
        "amplification": max(value["amplification"] for name, value in found.items() if name.startswith("local")),
        "memory_growth": last["rss_mb"] / first["rss_mb"],
        "memory_growth_tiny": found["tiny"]["rss_mb"] / first["rss_mb"],
        "rows_per_second": min(value["rows_per_second"] for name, value in found.items() if name.startswith("local")),
        "of_raw_requests": min(value["of_raw_requests"] for name, value in found.items() if name.startswith("s3")),
        "requests_per_row": max(value["requests_per_row"] for name, value in found.items() if name.startswith("s3")),
        "measured": found,
    }
    if asked.results is not None:
        asked.results.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
