"""The registered model as MLflow loads it: in process from another folder, and behind MLflow's own scoring server."""

import base64
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from mgpt.serving.images import sample_image
from tests.fixtures.project import ROOT
from tests.fixtures.registry import BOX_ANSWER, BOX_PROMPT, SYSTEM
from tests.fixtures.servers import free_port, wait_for

SCRIPT = """
import sys, mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
table = pandas.DataFrame([{"image": open(sys.argv[2], "rb").read(), "prompt": sys.argv[3]}])
print(mlflow.pyfunc.load_model("models:/minigpt-v2@champion").predict(table).to_json(orient="records"))
"""


@pytest.fixture
def image(tmp_path):
    sample_image().save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def check(row):
    """The learned box, in pixels of the image of 224 x 224."""
    assert row["text"] == BOX_ANSWER
    (box,) = row["boxes"]
    assert box.pop("label") == "the red circle"
    assert box == pytest.approx({"x1": 22.4, "y1": 44.8, "x2": 134.4, "y2": 201.6})


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_another_process_in_another_folder_loads_it_by_alias(registry, image, tmp_path_factory):
    command = [sys.executable, "-c", SCRIPT, registry.uri, str(image), BOX_PROMPT]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(command, cwd=elsewhere, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])
    check(row)


def test_mlflow_serves_it_over_http(registry, image, tmp_path_factory):
    port, folder = free_port(), tmp_path_factory.mktemp("serving")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{SYSTEM}@champion",
        "--env-manager",
        "local",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**environment(), "MLFLOW_TRACKING_URI": registry.uri, "PATH": path}
    with open(folder / "log.txt", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", 180)
        check(invoke(port, image, {}))
        short = invoke(port, image, {"max_new_tokens": 3})
    finally:
        server.terminate()
        server.wait(20)
    assert short["boxes"] == []
    assert BOX_ANSWER.startswith(short["text"])


def invoke(port, image, params):
    row = {"image": base64.b64encode(image.read_bytes()).decode(), "prompt": BOX_PROMPT}
    body = json.dumps({"dataframe_records": [row], "params": params}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answered:
        (predicted,) = json.load(answered)["predictions"]
    return predicted
