"""The registered model as MLflow loads it: in another process and folder, and behind MLflow's own scoring server."""

import base64
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from mgpt.serving.images import sample_image
from mgpt.storage.types import WeightsReference
from tests.fixtures.project import ROOT
from tests.fixtures.registry import BOX_ANSWER, BOX_PROMPT, MODEL
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
    """Asserts the learned box, in pixels of the 224 x 224 image."""
    assert row["text"] == BOX_ANSWER
    (box,) = row["boxes"]
    assert box.pop("label") == "the red circle"
    assert box == pytest.approx({"x1": 22.4, "y1": 44.8, "x2": 134.4, "y2": 201.6})


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def store_root():
    """The function of the module that MLflow runs as code; importing it sets MLflow's current model, which no test here
    needs."""
    from mgpt.serving.pyfunc_model import store_root

    return store_root


def test_store_root_prefers_environment_then_params_then_registration(store_root, tmp_path, monkeypatch):
    weights = WeightsReference("minigpt-v2", "0" * 64, "content/0", {}, root="/registered")
    monkeypatch.delenv("MGPT_STORAGE__ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert store_root(weights) == "/registered"
    (tmp_path / "params.yaml").write_text("learning_rate: 0.1\n")
    assert store_root(weights) == "/registered"
    (tmp_path / "params.yaml").write_text("storage: {root: here}\n")
    assert store_root(weights) == "here"
    monkeypatch.setenv("MGPT_STORAGE__ROOT", "s3://there")
    assert store_root(weights) == "s3://there"


def test_loads_from_moved_store_in_other_process(registry, image, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Path(registry.store.root).rename(elsewhere / "store")
    command = [sys.executable, "-c", SCRIPT, registry.uri, str(image), BOX_PROMPT]
    moved = {**environment(), "MGPT_STORAGE__ROOT": str(elsewhere / "store")}
    done = subprocess.run(command, cwd=elsewhere, env=moved, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])
    check(row)


def test_loads_by_alias_in_other_process_and_folder(registry, image, tmp_path_factory):
    command = [sys.executable, "-c", SCRIPT, registry.uri, str(image), BOX_PROMPT]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(command, cwd=elsewhere, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])
    check(row)


def test_mlflow_serves_over_http(registry, image, tmp_path_factory):
    port, folder = free_port(), tmp_path_factory.mktemp("serving")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{MODEL}@champion",
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
    with urllib.request.urlopen(request, timeout=120) as response:
        (predicted,) = json.load(response)["predictions"]
    return predicted
