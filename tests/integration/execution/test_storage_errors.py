"""Training against an S3 server that answers 503 now and then."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import boto3
import pytest

from tests.fixtures.faulty import Faults, ProxyHandler, serve

CLIENT_ATTEMPTS = 5  # of the S3 client itself, before it raises

DRIVER = """
import sys
from pathlib import Path
import ray
from mgpt.storage import Manifest
from tests.fixtures.training_runs import INIT, settings
from mgpt.execution.train import train
from mgpt.execution.types import TrainRequest
from mgpt.config.training import WorkerSettings
backbones, manifest, bucket, out = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=150 << 20, log_to_driver=True)
backbones = {part: f"{backbones}/{part}" for part in ("vision", "language")}
request = TrainRequest(
    settings(steps=20, checkpoint_every=5),
    WorkerSettings(),
    Manifest.load(manifest),
    backbones,
    store_root=bucket,
    run_uri=bucket + "/runs/refused",
    out=Path(out),
    init=INIT,
)
train(request)
"""


class RefusingHandler(ProxyHandler):
    """Refuses the first two requests to write a file; for a checkpoint's weights more than the client retries."""

    def do_PUT(self) -> None:
        key = self.path.split("?")[0]
        self.server.asked[key] += 1
        weights = "/checkpoints/" in key and key.endswith("parameters.safetensors")
        if self.server.asked[key] <= (CLIENT_ATTEMPTS if weights else 2):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(503, {}, b"", "503")
        else:
            self.forward()


@pytest.mark.trial
def test_training_survives_refused_writes(training, bucket, s3_endpoint, tmp_path):
    backbones, manifest = training
    manifest.save(tmp_path / "manifest.json")
    (tmp_path / "out").mkdir()
    proxy = serve(RefusingHandler, port_behind=int(s3_endpoint.rsplit(":", 1)[1]), asked=Counter(), faults=Faults(0))
    arguments = [str(Path(backbones["vision"]).parent), str(tmp_path / "manifest.json"), bucket, str(tmp_path / "out")]
    address = f"http://127.0.0.1:{proxy.server_address[1]}"
    environment = {**os.environ, "AWS_ENDPOINT_URL": address, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", DRIVER, *arguments], env=environment, capture_output=True, text=True)
    proxy.shutdown()
    assert done.returncode == 0, done.stderr[-4000:]
    assert "upload: attempt 1 of 5 failed" in done.stdout + done.stderr
    assert (tmp_path / "out" / "weights" / "trainable.safetensors").exists()
    uploads = {key: times for key, times in proxy.asked.items() if key.endswith("parameters.safetensors")}
    assert len(uploads) == 4
    assert min(uploads.values()) > CLIENT_ATTEMPTS
    stored = boto3.client("s3", endpoint_url=s3_endpoint).get_object(
        Bucket=bucket.removeprefix("s3://"), Key="runs/refused/finished.json"
    )
    assert json.loads(stored["Body"].read())["steps"] == 20
