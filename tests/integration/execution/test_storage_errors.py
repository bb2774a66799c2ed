"""Training whose S3 server answers 503 now and then, through a proxy before a real server."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import boto3
import pytest

from tests.fixtures.faulty import Faults, ProxyHandler, serve

TRIED_BY_THE_CLIENT = 3  # pyarrow's S3 client asks so often by itself before it gives up

DRIVER = """
import sys
from pathlib import Path
import ray
from mgpt.storage import Manifest
from tests.fixtures.training_runs import FRESH, settings
from mgpt.execution.train import TrainRequest, train
from mgpt.config.training import WorkerSettings
backbones, manifest, run_uri, out = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=150 << 20, log_to_driver=True)
backbones = {part: f"{backbones}/{part}" for part in ("vision", "language")}
asked = settings(steps=20, checkpoint_every=5)
train(TrainRequest(asked, WorkerSettings(), Manifest.load(manifest), backbones, run_uri, Path(out), fresh=FRESH))
"""


class RefusingHandler(ProxyHandler):
    """Refuses the first requests to write each checkpoint's weights, more than the client tries by itself, and the first two to write
    any other file."""

    def do_PUT(self) -> None:
        key = self.path.split("?")[0]
        self.server.asked[key] += 1
        weights = "checkpoint_" in key and key.endswith("parameters.safetensors")
        if self.server.asked[key] <= (TRIED_BY_THE_CLIENT + 1 if weights else 2):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(503, {}, b"", "503")
        else:
            self.forward()


@pytest.mark.trial
def test_training_goes_on_when_storage_refuses_every_file_twice_and_checkpoints_more_often(
    training, bucket, s3_endpoint, tmp_path
):
    backbones, manifest = training
    manifest.save(tmp_path / "manifest.json")
    (tmp_path / "out").mkdir()
    proxy = serve(RefusingHandler, port_behind=int(s3_endpoint.rsplit(":", 1)[1]), asked=Counter(), faults=Faults(0))
    arguments = [
        str(Path(backbones["vision"]).parent),
        str(tmp_path / "manifest.json"),
        f"{bucket}/runs/refused",
        str(tmp_path / "out"),
    ]
    address = f"http://127.0.0.1:{proxy.server_address[1]}"
    environment = {**os.environ, "AWS_ENDPOINT_URL": address, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", DRIVER, *arguments], env=environment, capture_output=True, text=True)
    proxy.shutdown()
    assert done.returncode == 0, done.stderr[-4000:]
    assert "checkpoint: attempt 1 of 5 failed" in done.stdout + done.stderr
    assert (tmp_path / "out" / "weights" / "trainable.safetensors").exists()
    asked_often = [
        key
        for key, times in proxy.asked.items()
        if key.endswith("parameters.safetensors") and times > TRIED_BY_THE_CLIENT
    ]
    assert len(asked_often) == 4
    stored = boto3.client("s3", endpoint_url=s3_endpoint).get_object(
        Bucket=bucket.removeprefix("s3://"), Key="runs/refused/finished.json"
    )
    assert json.loads(stored["Body"].read())["steps"] == 20
